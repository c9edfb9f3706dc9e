#include "base/timeline.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>

namespace troupe {

namespace {

using Words = std::array<uint64_t, timeline_record_bytes / sizeof(uint64_t)>;

constexpr uint64_t magic = 0x31656e696c656d69;  // "imeline1"
constexpr size_t next_at = 8;
constexpr size_t names_at = 16;
constexpr size_t records_at = timeline_head_bytes + timeline_names_max * timeline_name_bytes;
constexpr uint64_t rate_looks = 256;  // Sampled records between two looks at the rate.
// A record so near to being overwritten is left alone.
constexpr uint64_t margin = 64;

// The last word of a record.
constexpr int kind_shift = 16, open_shift = 21, failed_shift = 22, sampled_shift = 24,
              name_shift = 28, thread_shift = 40;
constexpr uint64_t thread_mask = (1 << 22) - 1;  // Linux numbers no higher.
static_assert(timeline_names_max <= 1 << (thread_shift - name_shift));

uint64_t read_word(const uint8_t* at) {
  return __atomic_load_n(reinterpret_cast<const uint64_t*>(at), __ATOMIC_ACQUIRE);
}

// A number in 32 bits: 27 of them, and by how much they are shifted.
uint32_t pack(uint64_t number) {
  constexpr int digits = 27;
  const int shift = std::max(0, static_cast<int>(std::bit_width(number)) - digits);
  if (shift > 31) return UINT32_MAX;
  return static_cast<uint32_t>(shift) << digits | static_cast<uint32_t>(number >> shift);
}
uint64_t unpack(uint32_t packed) {
  constexpr uint32_t mask = (1u << 27) - 1;
  return uint64_t{packed & mask} << (packed >> 27);
}

// Never 0, which says that a record is being written.
uint16_t stamp_of(uint64_t place) {
  return static_cast<uint16_t>(1 + place / timeline_records_max % UINT16_MAX);
}

Words words_of(const TimelineEvent& event, uint16_t stamp) {
  const auto flag = [](bool is_set, int shift) { return uint64_t{is_set} << shift; };
  const auto length = static_cast<uint64_t>(std::max<int64_t>(event.duration.count(), 0));
  return {static_cast<uint64_t>(event.start.time_since_epoch().count()), event.id,
          pack(length) | uint64_t{pack(event.amount)} << 32,
          stamp | static_cast<uint64_t>(event.kind) << kind_shift |
              flag(event.is_open, open_shift) | flag(event.has_failed, failed_shift) |
              uint64_t{event.sampled_log2} << sampled_shift | uint64_t{event.name} << name_shift |
              (event.thread & thread_mask) << thread_shift};
}

uint8_t sampled_of(uint64_t last_word) {
  return static_cast<uint8_t>(last_word >> sampled_shift & 15);
}

// Nothing: it makes no sense.
std::optional<TimelineEvent> event_of(const Words& words) {
  const uint64_t last = words[3];
  TimelineEvent event;
  event.kind = static_cast<TimelineKind>(last >> kind_shift & 31);
  event.is_open = (last >> open_shift & 1) != 0;
  event.has_failed = (last >> failed_shift & 1) != 0;
  event.sampled_log2 = sampled_of(last);
  event.name = static_cast<uint16_t>(last >> name_shift & 4095);
  event.thread = static_cast<uint32_t>(last >> thread_shift & thread_mask);
  event.start = Instant{Duration{static_cast<int64_t>(words[0])}};
  event.id = words[1];
  event.duration = Duration{static_cast<int64_t>(unpack(static_cast<uint32_t>(words[2])))};
  event.amount = unpack(static_cast<uint32_t>(words[2] >> 32));
  // So that sums of the two do not overflow either.
  constexpr Duration longest = std::chrono::hours(24 * 365 * 100);
  const bool makes_sense = event.kind != TimelineKind::none && event.kind <= timeline_kind_last &&
                           event.start.time_since_epoch() >= Duration::zero() &&
                           event.start.time_since_epoch() <= longest && event.duration <= longest &&
                           event.sampled_log2 <= timeline_sampled_most &&
                           event.name < timeline_names_max;
  if (!makes_sense) return std::nullopt;
  return event;
}

void append(Bytes& records, const Words& words) {
  const size_t at = records.size();
  records.resize(at + sizeof words);
  std::memcpy(records.data() + at, words.data(), sizeof words);
}

uint32_t this_thread() {
  thread_local const auto number = static_cast<uint32_t>(::gettid());
  return number;
}

}  // namespace

Timeline::Timeline(std::span<uint8_t> memory, const Clock& clock)
    : clock_(clock),
      memory_(memory.data()),
      next_(*reinterpret_cast<Word*>(memory.data() + next_at)) {
  TROUPE_ASSERT(memory.size() == timeline_bytes, "the size of a timeline");
  static_assert(sizeof(Word) == sizeof(uint64_t) && Word::is_always_lock_free);
  reinterpret_cast<Word*>(memory_ + names_at)->store(1);
  reinterpret_cast<Word*>(memory_)->store(magic);
}

uint16_t Timeline::name(std::string_view text) {
  const std::lock_guard lock{names_mutex_};
  if (const auto known = names_.find(text); known != names_.end()) return known->second;
  const size_t number = names_.size() + 1;
  if (number >= timeline_names_max) return 0;
  constexpr std::string_view cut = "...";
  char* const at =
      reinterpret_cast<char*>(memory_) + timeline_head_bytes + number * timeline_name_bytes;
  if (text.size() < timeline_name_bytes) {
    std::memcpy(at, text.data(), text.size());
  } else {
    const size_t kept = timeline_name_bytes - 1 - cut.size();
    std::memcpy(at, cut.data(), cut.size());
    std::memcpy(at + cut.size(), text.data() + text.size() - kept, kept);
  }
  names_.emplace(text, static_cast<uint16_t>(number));
  reinterpret_cast<Word*>(memory_ + names_at)->store(number + 1, std::memory_order_release);
  return static_cast<uint16_t>(number);
}

uint64_t Timeline::add(TimelineEvent event) {
  event.thread = this_thread();
  const uint64_t place = next_.fetch_add(1, std::memory_order_relaxed);
  write(place, event);
  return place;
}

uint64_t Timeline::add_sampled(TimelineEvent event) {
  event.sampled_log2 = sampled_log2_.load(std::memory_order_relaxed);
  const uint64_t count = sampled_.fetch_add(1, std::memory_order_relaxed) + 1;
  const uint64_t place = add(event);
  if (count % rate_looks == 0) look_at_rate(event.start);
  return place;
}

void Timeline::finish(uint64_t place, TimelineEvent event) {
  const uint64_t next = next_.load(std::memory_order_relaxed);
  event.thread = this_thread();
  if (next - place >= timeline_records_max - margin) {
    place = next_.fetch_add(1, std::memory_order_relaxed);
    event.sampled_log2 = sampled_log2_.load(std::memory_order_relaxed);
  } else {
    event.sampled_log2 = sampled_of(word_at(place, 3).load(std::memory_order_relaxed));
  }
  write(place, event);
}

Timeline::Word& Timeline::word_at(uint64_t place, size_t word) const {
  return reinterpret_cast<Word*>(memory_ + records_at +
                                 place % timeline_records_max * timeline_record_bytes)[word];
}

// A reader that sees any of the new words sees the stamp gone, too. Two threads write to one place
// only if one of them slept for a whole round of the ring: then a record is lost, or mixed.
void Timeline::write(uint64_t place, const TimelineEvent& event) {
  const Words words = words_of(event, stamp_of(place));
  word_at(place, 3).store(0, std::memory_order_relaxed);
  for (size_t i = 0; i < 3; ++i) word_at(place, i).store(words[i], std::memory_order_release);
  word_at(place, 3).store(words[3], std::memory_order_release);
}

void Timeline::look_at_rate(Instant now) {
  constexpr Duration fair = std::chrono::nanoseconds(1'000'000'000 * rate_looks / timeline_rate);
  const int64_t now_ns = now.time_since_epoch().count();
  const int64_t before = looked_at_ns_.exchange(now_ns, std::memory_order_relaxed);
  if (before == 0 || now_ns - before >= fair.count()) return;
  const uint8_t log2 = sampled_log2_.load(std::memory_order_relaxed);
  if (log2 < timeline_sampled_most) set_sampling(static_cast<uint8_t>(log2 + 1));
}

void Timeline::set_sampling(uint8_t log2) {
  const uint8_t before = sampled_log2_.exchange(log2, std::memory_order_relaxed);
  limit_.store(UINT64_MAX >> log2, std::memory_order_relaxed);
  if (before == 0 && log2 != 0 && on_busy_) on_busy_();
}

bool Timeline::relax() {
  // Less than half of what is aimed at: twice as many would do, and then perhaps twice as many
  // again.
  constexpr uint64_t few = timeline_rate / 2 * (relax_period / std::chrono::milliseconds(1)) / 1000;
  const uint64_t sampled = sampled_.load(std::memory_order_relaxed);
  const uint64_t before = relaxed_at_.exchange(sampled, std::memory_order_relaxed);
  uint8_t log2 = sampled_log2_.load(std::memory_order_relaxed);
  for (uint64_t expected = sampled - before; log2 != 0 && expected < few; expected *= 2) --log2;
  if (log2 != sampled_log2_.load(std::memory_order_relaxed)) set_sampling(log2);
  return sampled_log2_.load(std::memory_order_relaxed) == 0;
}

Result<TimelineCopy> read_timeline(std::span<const uint8_t> memory) {
  if (memory.size() != timeline_bytes || read_word(memory.data()) != magic) {
    return error(Code::invalid, "memory of another size, or without a timeline in it");
  }
  TimelineCopy copy;
  const uint64_t next = read_word(memory.data() + next_at);
  const uint64_t first = next - std::min<uint64_t>(next, timeline_records_max);
  copy.lost = first;
  for (uint64_t place = first; place != next; ++place) {
    const uint8_t* at =
        memory.data() + records_at + place % timeline_records_max * timeline_record_bytes;
    Words words;
    words[3] = read_word(at + 24);
    for (size_t i = 0; i < 3; ++i) words[i] = read_word(at + i * 8);
    const bool whole = static_cast<uint16_t>(words[3]) == stamp_of(place) &&
                       read_word(at + 24) == words[3] && event_of(words);
    if (whole) {
      append(copy.records, words);
    } else {
      ++copy.lost;
    }
  }
  // After the records, whose names are all there by now.
  const uint64_t names =
      std::clamp<uint64_t>(read_word(memory.data() + names_at), 1, timeline_names_max);
  copy.names.resize(names);
  for (size_t i = 1; i < names; ++i) {
    char text[timeline_name_bytes];
    std::memcpy(text, memory.data() + timeline_head_bytes + i * timeline_name_bytes, sizeof text);
    copy.names[i].assign(text, ::strnlen(text, sizeof text));
  }
  return copy;
}

void append_record(Bytes& records, const TimelineEvent& event) {
  append(records, words_of(event, 1));
}

std::vector<TimelineEvent> events_of(BytesView records) {
  std::vector<TimelineEvent> events;
  events.reserve(records.size() / timeline_record_bytes);
  for (; records.size() >= timeline_record_bytes;
       records = records.subspan(timeline_record_bytes)) {
    Words words;
    std::memcpy(words.data(), records.data(), sizeof words);
    if (auto event = event_of(words)) events.push_back(*event);
  }
  return events;
}

}  // namespace troupe
