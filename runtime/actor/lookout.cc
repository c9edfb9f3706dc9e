#include "actor/lookout.h"

namespace troupe::actor {

void Lookout::notify(size_t work) {
  if (rings_ == nullptr) {
    changed_.notify_one();
    return;
  }
  if (asleep_.empty() || work <= looking_) return;
  Waiter* const waiter = asleep_.back();
  asleep_.pop_back();
  ++looking_;
  waiter->signal();
}

void Lookout::notify_all() {
  changed_.notify_all();
  for (Waiter* waiter : asleep_) waiter->signal();
  looking_ += asleep_.size();
  asleep_.clear();
}

}  // namespace troupe::actor
