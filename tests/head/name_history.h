// Whether what several clients saw of one name could have happened one after the other, each
// operation at some instant between its request and its answer (Wing and Gong, "Testing and
// Verifying Concurrent Objects", 1993; with Lowe's memory of what was tried, 2017).
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "base/clock.h"

namespace troupe::head {

class NameHistory {
 public:
  static constexpr size_t operations_max = 63;
  enum class Kind : uint8_t { create, read, remove };
  // What a create or remove is about, and what a read saw; 0: nothing has the name.
  struct Operation {
    Kind kind;
    uint64_t value = 0;
    Instant asked;
    // Never: it is not known whether it was done, or ever will be.
    Instant answered = Instant::max();
    bool refused = false;  // Of a create: another had the name.
  };

  // Its number; what is not ended may have been done, or be done later.
  size_t begin(Operation operation) {
    operations_.push_back(operation);
    return operations_.size() - 1;
  }
  Operation& at(size_t number) { return operations_[number]; }
  size_t size() const { return operations_.size(); }
  bool is_linearizable() const {
    std::set<std::pair<uint64_t, uint64_t>> tried;
    return can_go_on(0, 0, tried);
  }
  std::string to_string() const {
    std::string text;
    for (const Operation& one : operations_) {
      static constexpr const char* names[] = {"create", "read", "remove"};
      const auto us = [](Instant when) {
        return when == Instant::max()
                   ? std::string("never")
                   : std::to_string(when.time_since_epoch() / std::chrono::microseconds(1));
      };
      text += us(one.asked) + " to " + us(one.answered) + ": " +
              names[static_cast<size_t>(one.kind)] + " " + std::to_string(one.value) +
              (one.refused ? " refused" : "") + "\n";
    }
    return text;
  }

 private:
  static bool is_known(const Operation& operation) { return operation.answered != Instant::max(); }
  // What the name stands for after it; nothing: it could not have been seen so.
  static std::optional<uint64_t> after(const Operation& operation, uint64_t holder) {
    switch (operation.kind) {
      case Kind::create:
        if (operation.refused) {
          return holder != 0 && holder != operation.value ? std::optional{holder} : std::nullopt;
        }
        if (holder == 0 || holder == operation.value) return operation.value;
        return is_known(operation) ? std::nullopt : std::optional{holder};
      case Kind::read:
        return holder == operation.value ? std::optional{holder} : std::nullopt;
      case Kind::remove:
        return holder == operation.value ? 0 : holder;
    }
    return std::nullopt;
  }
  bool can_go_on(uint64_t done, uint64_t holder,
                 std::set<std::pair<uint64_t, uint64_t>>& tried) const {
    if (!tried.insert({done, holder}).second) return false;
    Instant first_answer = Instant::max();
    for (size_t i = 0; i < operations_.size(); ++i) {
      if ((done >> i & 1) == 0) first_answer = std::min(first_answer, operations_[i].answered);
    }
    if (first_answer == Instant::max()) return true;  // Of the rest nobody knows.
    for (size_t i = 0; i < operations_.size(); ++i) {
      if ((done >> i & 1) != 0 || operations_[i].asked > first_answer) continue;
      const auto next = after(operations_[i], holder);
      if (next && can_go_on(done | uint64_t{1} << i, *next, tried)) return true;
    }
    return false;
  }

  std::vector<Operation> operations_;
};

}  // namespace troupe::head
