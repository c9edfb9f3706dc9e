// How fast calls are sent again to a mailbox that was full: a few at a time, more as long as they
// find room. So thousands of callers that wait cost little, and whoever makes room is used well.
#pragma once

#include <algorithm>
#include <utility>

#include "base/clock.h"

namespace troupe::client {

// Of one actor's calls. Time is the caller's.
class MailboxPace {
 public:
  // A call found the mailbox full.
  void refused(Instant now) {
    if (is_stale(now)) *this = {};
    refused_ = std::min(refused_ + 1, round_ - round_left_);
    round_ -= std::exchange(round_left_, 0);  // The others would find no room either.
    if (limited_) return;
    limited_ = true;
    next_round_ = now + pause_;
  }
  // Whether a call may be sent now: it counts. If not, ask again at next_round().
  bool may_send(Instant now) {
    if (is_stale(now)) *this = {};
    if (!limited_) return true;
    if (round_left_ == 0) {
      if (now < next_round_) return false;
      begin_round(now);
    }
    --round_left_;
    return true;
  }
  // Whether it was full not long ago.
  bool holds_back(Instant now) const { return limited_ && !is_stale(now); }
  Instant next_round() const { return next_round_; }

  static constexpr Duration pause_first = std::chrono::milliseconds(1);
  static constexpr Duration pause_most = std::chrono::milliseconds(50);
  static constexpr uint32_t round_most = 1024;

 private:
  // Nothing was refused or held back for so long that the past says nothing any more.
  bool is_stale(Instant now) const { return limited_ && now > next_round_ + pause_most * 4; }
  void begin_round(Instant now) {
    const uint32_t taken = round_ - refused_;
    if (round_ > 0 && taken == 0) {
      pause_ = std::min(pause_ * 2, pause_most);
    } else {
      pause_ = std::max(pause_ / 2, pause_first);
    }
    // Twice as many as found room, or so many if not all did.
    round_ = std::clamp(refused_ == 0 ? taken * 2 : taken, 1u, round_most);
    refused_ = 0;
    round_left_ = round_;
    next_round_ = now + pause_;
  }

  bool limited_ = false;
  uint32_t round_ = 0;       // How many calls it has,
  uint32_t round_left_ = 0;  // of them, those that were not sent yet,
  uint32_t refused_ = 0;     // and those that were sent in vain.
  Duration pause_ = pause_first;
  Instant next_round_{};
};

}  // namespace troupe::client
