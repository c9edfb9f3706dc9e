#include "head/history.h"

#include <fmt/format.h>

#include <charconv>

namespace troupe::head {

namespace {

constexpr char place_key[] = "replication/place";
constexpr char half_key[] = "replication/half_copied";

Result<Place> parse_place(const std::string& text) {
  Place place;
  const char* const end = text.data() + text.size();
  const auto term = std::from_chars(text.data(), end, place.term);
  if (term.ec == std::errc{} && term.ptr != end && *term.ptr == ':') {
    const auto sequence = std::from_chars(term.ptr + 1, end, place.sequence);
    if (sequence.ec == std::errc{} && sequence.ptr == end) return place;
  }
  return error(Code::data_loss, fmt::format("the row {} of meta is no place: {}", place_key, text));
}

}  // namespace

Mutation place_row(const Place& place) {
  return {Table::meta, place_key, fmt::format("{}:{}", place.term, place.sequence)};
}

Result<Place> read_place(Store& store) {
  TROUPE_TRY(const auto text, store.get(Table::meta, place_key));
  if (!text) return Place{};
  return parse_place(*text);
}

Result<Place> read_place(Snapshot& snapshot) {
  TROUPE_TRY(const Rows rows, snapshot.scan(Table::meta, place_key, Page{{}, 1}));
  if (rows.empty()) return Place{};
  return parse_place(rows.front().second);
}

Result<bool> is_half_copied(Store& store) {
  TROUPE_TRY(const auto row, store.get(Table::meta, half_key));
  return row.has_value();
}

Mutation half_copied_row(bool is_half) {
  return {Table::meta, half_key, is_half ? std::optional<std::string>{"1"} : std::nullopt};
}

Batch without_place() {
  Batch batch;
  batch.erase(Table::meta, place_key).erase(Table::meta, half_key);
  return batch;
}

bool is_copied(std::string_view key) {
  return !key.starts_with(store_prefix) && key != place_key;
}

std::vector<protocol::RowChange> to_changes(const Batch& batch) {
  std::vector<protocol::RowChange> changes;
  changes.reserve(batch.size());
  for (const Mutation& mutation : batch.mutations()) {
    protocol::RowChange change;
    change.table = static_cast<uint32_t>(mutation.table);
    change.key = mutation.key;
    change.is_erased = !mutation.value;
    if (mutation.value) change.value = *mutation.value;
    changes.push_back(std::move(change));
  }
  return changes;
}

Result<Batch> to_batch(std::vector<protocol::RowChange> changes) {
  Batch batch;
  for (protocol::RowChange& change : changes) {
    if (change.table >= tables.size()) {
      return error(Code::invalid,
                   fmt::format("the head that leads has a table {} that this build does not know: "
                               "upgrade this head",
                               change.table));
    }
    const auto table = static_cast<Table>(change.table);
    if (change.is_erased) {
      batch.erase(table, std::move(change.key));
    } else {
      batch.put(table, std::move(change.key), std::move(change.value));
    }
  }
  return batch;
}

History::History(const Place& begin, size_t bytes_max)
    : bytes_max_(bytes_max), begin_(begin), end_(begin) {}

void History::add(const Place& place, Message message) {
  bytes_ += message->size();
  entries_.push_back({place, std::move(message)});
  end_ = place;
  while (bytes_ > bytes_max_ && entries_.size() > 1) {
    bytes_ -= entries_.front().message->size();
    begin_ = entries_.front().place;
    entries_.pop_front();
  }
}

bool History::knows(const Place& place) const {
  if (place.sequence == 0) return false;
  if (place == begin_) return true;
  if (place.sequence <= begin_.sequence || place.sequence > end_.sequence) return false;
  return entries_[place.sequence - begin_.sequence - 1].place == place;
}

History::Message History::after(uint64_t sequence) const {
  if (sequence < begin_.sequence || sequence >= end_.sequence) return nullptr;
  return entries_[sequence - begin_.sequence].message;
}

}  // namespace troupe::head
