#include "client/timeline_notes.h"

namespace troupe::client {

void note_submitted(Timeline& timeline, const RawId& result, std::string_view name, Instant now) {
  TimelineEvent event;
  event.kind = TimelineKind::submitted;
  event.name = timeline.name(name);
  event.id = timeline_id(result);
  event.start = now;
  timeline.add_sampled(event);
}

void note_sent(Timeline& timeline, const RawId& result, std::string_view name, Instant submitted) {
  TimelineEvent event;
  event.kind = TimelineKind::queued;
  event.name = timeline.name(name);
  event.id = timeline_id(result);
  event.start = submitted;
  event.duration = timeline.now() - submitted;
  timeline.add_sampled(event);
}

void note_wait(Timeline& timeline, const RawId& object, std::string_view name, Duration waited) {
  TimelineEvent event;
  event.kind = TimelineKind::waited;
  event.name = timeline.name(name);
  event.id = object.is_nil() ? 0 : timeline_id(object);
  event.start = timeline.now() - waited;
  event.duration = waited;
  timeline.add(event);
}

void note_stored(Timeline& timeline, const RawId& object, Instant began, uint64_t size_bytes) {
  TimelineEvent event;
  event.kind = TimelineKind::stored;
  event.name = timeline.name("store");
  event.id = timeline_id(object);
  event.start = began;
  event.duration = timeline.now() - began;
  event.amount = size_bytes;
  timeline.add_sampled(event);
}

}  // namespace troupe::client
