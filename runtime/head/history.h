// Where a copy of the head's tables ends, and the batches that led there.
#pragma once

#include <compare>
#include <cstdint>
#include <deque>
#include <memory>

#include "base/bytes.h"
#include "base/status.h"
#include "metadata/store.h"
#include "protocol/messages.h"

namespace troupe::head {

// Every batch that heads copy from each other has one; the term is that of the head which made it.
// Copies that end at the same place are the same.
struct Place {
  uint64_t term = 0;
  uint64_t sequence = 0;  // One more a batch; 0: there is no place, and nothing to go on from.
  auto operator<=>(const Place&) const = default;
};

// The place is a row of the tables, so that it changes with them.
Mutation place_row(const Place& place);
// Errors: those of Store::get, data_loss (it is no place). Blocks.
Result<Place> read_place(Store& store);
// The same of a snapshot.
Result<Place> read_place(Snapshot& snapshot);
// Whether the tables are a part of a copy that has not ended: they are of no use. Blocks.
Result<bool> is_half_copied(Store& store);
Mutation half_copied_row(bool is_half);
// Makes of one head's copy the tables of a head that begins anew.
Batch without_place();

// Whether a row of meta is a part of a whole copy: those of the store are each its own, and the
// place is written when all is there.
bool is_copied(std::string_view key);

std::vector<protocol::RowChange> to_changes(const Batch& batch);
// Errors: invalid (a table that this build does not have).
Result<Batch> to_batch(std::vector<protocol::RowChange> changes);

// The last batches, each as the message that copies it, up to a number of bytes. Who is behind by
// less is given those; who is behind by more, or went another way, is given everything.
class History {
 public:
  using Message = std::shared_ptr<const Bytes>;
  static constexpr size_t bytes_max_default = size_t{64} << 20;

  explicit History(const Place& begin, size_t bytes_max = bytes_max_default);

  void add(const Place& place, Message message);
  // The place of the last batch, or where it began.
  const Place& end() const { return end_; }
  // Whether copies that end there lead here, by batches that are still known.
  bool knows(const Place& place) const;
  // What follows the batch of this sequence; null: nothing yet. The batch must be known.
  Message after(uint64_t sequence) const;

 private:
  struct Entry {
    Place place;
    Message message;
  };
  size_t bytes_max_;
  Place begin_;  // The place before the first entry.
  Place end_;
  std::deque<Entry> entries_;
  size_t bytes_ = 0;
};

}  // namespace troupe::head
