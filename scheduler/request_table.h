// All requests of one kind, by id. They stay where they are.
#pragma once

#include <boost/unordered/unordered_flat_set.hpp>
#include <deque>
#include <vector>

#include "scheduler/queue.h"

namespace troupe::scheduler {

class RequestTable {
 public:
  // The seed protects look-ups against crafted ids; nothing walks the table.
  explicit RequestTable(uint64_t hash_seed) : by_id_(0, Hash{{hash_seed}}) {}

  Request* find(const RawId& id) const {
    const auto found = by_id_.find(id);
    return found == by_id_.end() ? nullptr : *found;
  }
  // The id is not there yet.
  Request* add(const RawId& id) {
    Request* request = nullptr;
    if (vacant_.empty()) {
      request = &requests_.emplace_back();
    } else {
      request = vacant_.back();
      vacant_.pop_back();
    }
    request->raw = id;
    by_id_.insert(request);
    return request;
  }
  void remove(Request* request) {
    by_id_.erase(request->raw);
    *request = Request{};
    vacant_.push_back(request);
  }
  size_t size() const { return by_id_.size(); }

 private:
  struct Hash : SeededIdHash {
    using is_transparent = void;
    using SeededIdHash::operator();
    size_t operator()(const Request* request) const noexcept { return (*this)(request->raw); }
  };
  struct Same {
    using is_transparent = void;
    bool operator()(const Request* a, const Request* b) const { return a == b; }
    bool operator()(const Request* a, const RawId& b) const { return a->raw == b; }
    bool operator()(const RawId& a, const Request* b) const { return a == b->raw; }
  };

  std::deque<Request> requests_;
  std::vector<Request*> vacant_;
  boost::unordered_flat_set<Request*, Hash, Same> by_id_;
};

}  // namespace troupe::scheduler
