// What a process notes of what it does and when, in memory that outlives it: a ring of records of
// fixed size and a table of names. One process writes; another, which has the memory mapped
// read-only, reads it at any time, also after the writer died, and believes nothing of it.
//
// To note costs about 60 ns, a tenth of the fastest call. So a process that is busier than
// timeline_rate notes one call of N: those whose result's id is small enough. The ids of one
// process are spread evenly, so caller and callee choose the same calls without a word.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "base/bytes.h"
#include "base/clock.h"
#include "base/ids.h"
#include "base/status.h"

namespace troupe {

enum class TimelineKind : uint8_t {
  none = 0,
  submitted = 1,  // A task or call, by its owner.
  queued = 2,     // The same, from its submission until it was sent.
  run = 3,        // Of a task or method; amount: nanoseconds that it waited in the mailbox.
  waited = 4,     // A thread, in get or wait.
  stored = 5,     // An object in the store; amount: bytes.
  pulled = 6,     // From another node, which the name says; amount: bytes.
  spilled = 7,    // To disk; amount: bytes.
  restored = 8,   // From disk; amount: bytes.
  process_started = 9,
  actor_started = 10,  // amount: its incarnation.
  // A clock elsewhere, as whoever passes records on measured it: when this process's clock said
  // `start`, the other one said `id` nanoseconds. duration: how wrong that may be.
  clock = 11,
};
inline constexpr TimelineKind timeline_kind_last = TimelineKind::clock;

struct TimelineEvent {
  TimelineKind kind = TimelineKind::none;
  bool is_open = false;  // It has not ended; no duration.
  bool has_failed = false;
  uint8_t sampled_log2 = 0;  // One of 2^n of its kind was noted.
  uint16_t name = 0;         // In the table.
  uint32_t thread = 0;       // The system's number.
  uint64_t id = 0;           // timeline_id() of what it is about; 0: nothing.
  Instant start{};
  Duration duration{};  // Exact up to 134 ms, beyond to 8 digits; the same of `amount`.
  uint64_t amount = 0;
};

// An id in half the room. Of results of different owners two are the same by chance alone.
inline uint64_t timeline_id(const RawId& id) {
  return id.high ^ id.low;
}

inline constexpr size_t timeline_record_bytes = 32;
inline constexpr size_t timeline_records_max = 32768;
inline constexpr size_t timeline_names_max = 1024;  // Name 0 stands for those beyond.
inline constexpr size_t timeline_name_bytes = 64;   // With a zero; of longer ones the end is kept.
inline constexpr size_t timeline_head_bytes = 4096;
inline constexpr size_t timeline_bytes = timeline_head_bytes +
                                         timeline_names_max * timeline_name_bytes +
                                         timeline_records_max * timeline_record_bytes;
inline constexpr uint64_t timeline_rate = 8192;       // Records a second that a process aims at.
inline constexpr uint8_t timeline_sampled_most = 10;  // At the least one of 1024 is noted.
// What takes so long is noted, sampled or not.
inline constexpr Duration timeline_long_run = std::chrono::microseconds(100);
inline constexpr Duration timeline_long_wait = std::chrono::microseconds(50);

// The writing side. Thread-safe; blocks nobody for long.
class Timeline {
 public:
  // `memory`: timeline_bytes of zeros, aligned to 8 bytes; it and `clock` outlive this.
  Timeline(std::span<uint8_t> memory, const Clock& clock);

  // Whether the task or call with this result is noted.
  bool wants(const RawId& result) const {
    return result.low <= limit_.load(std::memory_order_relaxed);
  }
  Instant now() const { return clock_.now(); }
  // The number of a name; 0 once the table is full.
  uint16_t name(std::string_view text);
  // Notes it as of this thread. Gives its place, for finish().
  uint64_t add(TimelineEvent event);
  // The same of what wants() chose: it counts for the rate.
  uint64_t add_sampled(TimelineEvent event);
  // What was added at `place` has become this, which stands for as many as that did. If others took
  // its place, it is added anew.
  void finish(uint64_t place, TimelineEvent event);

  // Called, on the thread that notes, when fewer than all begin to be noted: from then on relax()
  // should be called every relax_period until it says that all are again. Before the first record.
  void on_busy(std::function<void()> hook) { on_busy_ = std::move(hook); }
  static constexpr Duration relax_period = std::chrono::milliseconds(100);
  bool relax();

 private:
  using Word = std::atomic<uint64_t>;
  Word& word_at(uint64_t place, size_t word) const;
  void write(uint64_t place, const TimelineEvent& event);
  void look_at_rate(Instant now);
  void set_sampling(uint8_t log2);

  const Clock& clock_;
  uint8_t* const memory_;
  Word& next_;  // How many records there have been.
  std::atomic<uint64_t> limit_ = UINT64_MAX;
  std::atomic<uint8_t> sampled_log2_ = 0;
  std::atomic<uint64_t> sampled_ = 0;      // Records.
  std::atomic<uint64_t> relaxed_at_ = 0;   // The same, at the last relax().
  std::atomic<int64_t> looked_at_ns_ = 0;  // At the rate.
  std::function<void()> on_busy_;
  std::mutex names_mutex_;
  struct Hash : std::hash<std::string_view> {
    using is_transparent = void;
  };
  std::unordered_map<std::string, uint16_t, Hash, std::equal_to<>> names_;  // Guarded.
};

// What was in such memory: no record that was being written, or that makes no sense.
struct TimelineCopy {
  std::vector<std::string> names;  // By number; any bytes but zero.
  Bytes records;                   // Oldest first; events_of() reads them.
  uint64_t lost = 0;               // Older ones, and those that made no sense.
};
// Errors: invalid (not such memory).
Result<TimelineCopy> read_timeline(std::span<const uint8_t> memory);

// A record as it travels.
void append_record(Bytes& records, const TimelineEvent& event);
// Leaves out what makes no sense, and what is cut off at the end.
std::vector<TimelineEvent> events_of(BytesView records);

}  // namespace troupe
