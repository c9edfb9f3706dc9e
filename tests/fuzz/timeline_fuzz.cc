// The memory of a timeline as a hostile process leaves it for its worker.
#include "base/timeline.h"

#include <algorithm>
#include <cstring>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace troupe;
  // Aligned, and of the size that its seal vouches for. What is given comes after the mark at the
  // beginning, and again where the names and the first records are.
  static std::vector<uint64_t> words(timeline_bytes / 8);
  auto* const memory = reinterpret_cast<uint8_t*>(words.data());
  std::ranges::fill(words, 0);
  constexpr size_t records_at = timeline_bytes - timeline_records_max * timeline_record_bytes;
  struct FixedClock final : Clock {
    Instant now() const override { return {}; }
    WallTime wall_now() const override { return {}; }
  } clock;
  const Timeline marks{{memory, timeline_bytes}, clock};
  for (const size_t at : {size_t{8}, timeline_head_bytes, records_at}) {
    std::memcpy(memory + at, data, std::min(size, timeline_bytes - at));
  }
  const auto copy = read_timeline({memory, timeline_bytes});
  if (!copy || copy->names.empty() || copy->names.size() > timeline_names_max) __builtin_trap();
  for (const TimelineEvent& event : events_of(copy->records)) {
    // What can be read can be written, and is the same then.
    Bytes again;
    append_record(again, event);
    const auto second = events_of(again);
    if (second.size() != 1 || second[0].start != event.start ||
        second[0].duration != event.duration || second[0].amount != event.amount ||
        second[0].thread != event.thread || second[0].name != event.name) {
      __builtin_trap();
    }
  }
  (void)events_of({data, size});
  return 0;
}
