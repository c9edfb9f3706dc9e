// What the owner of a task or call notes of it in the process's timeline.
#pragma once

#include <string_view>

#include "base/timeline.h"

namespace troupe::client {

void note_submitted(Timeline& timeline, const RawId& result, std::string_view name, Instant now);
// It was sent now, and had waited since then.
void note_sent(Timeline& timeline, const RawId& result, std::string_view name, Instant submitted);
// This thread waited until now for an object, or for several (nil).
void note_wait(Timeline& timeline, const RawId& object, std::string_view name, Duration waited);
// An object went into the store, or was built there, from then until now.
void note_stored(Timeline& timeline, const RawId& object, Instant began, uint64_t size_bytes);

// When it was; zero: it is not noted.
inline Instant submitted_now(Timeline* timeline, const RawId& result, std::string_view name) {
  if (timeline == nullptr || !timeline->wants(result)) return {};
  const Instant now = timeline->now();
  note_submitted(*timeline, result, name, now);
  return now;
}

}  // namespace troupe::client
