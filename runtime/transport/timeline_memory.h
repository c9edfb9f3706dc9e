// The memory of a process's timeline (base/timeline.h): a memfd that the process hands its worker,
// which so reads it without asking, also when the process has died.
#pragma once

#include <memory>

#include "base/file_descriptor.h"
#include "base/timeline.h"

namespace troupe::transport {

// The writer's side: the memory and who writes to it.
class TimelineMemory {
 public:
  // `clock` outlives it. A page costs memory once something is written to it. Errors: exhausted.
  static Result<std::unique_ptr<TimelineMemory>> create(const Clock& clock);
  // The same, or null if TROUPE_TIMELINE=0 says that nothing is to be noted.
  static Result<std::unique_ptr<TimelineMemory>> create_if_on(const Clock& clock);
  TimelineMemory(const TimelineMemory&) = delete;
  TimelineMemory& operator=(const TimelineMemory&) = delete;
  ~TimelineMemory();

  Timeline& timeline() { return timeline_; }
  // For the worker. Errors: exhausted.
  Result<FileDescriptor> share() const;
  Result<TimelineCopy> read() const { return read_timeline({memory_, timeline_bytes}); }

 private:
  TimelineMemory(FileDescriptor file, uint8_t* memory, const Clock& clock);
  FileDescriptor file_;
  uint8_t* const memory_;
  Timeline timeline_;
};

// Another process's, mapped read-only. Needs no descriptor once it is open.
class TimelineView {
 public:
  // Errors: invalid (another size), denied (it could still shrink, which would end the reader),
  // exhausted.
  static Result<TimelineView> open(FileDescriptor file);
  TimelineView(TimelineView&& other) noexcept;
  TimelineView& operator=(TimelineView&&) = delete;
  ~TimelineView();

  // Errors: invalid.
  Result<TimelineCopy> read() const { return read_timeline({memory_, timeline_bytes}); }

 private:
  explicit TimelineView(const uint8_t* memory) : memory_(memory) {}
  const uint8_t* memory_;
};

}  // namespace troupe::transport
