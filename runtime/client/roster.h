// What is under way on the loop: a coroutine is in the list while its entry, in its frame, lives.
#pragma once

#include <boost/intrusive/list.hpp>
#include <utility>

namespace troupe::client {

// On the loop. Outlives its entries. Costs no memory of its own.
template <class T>
class Roster {
  using Hook =
      boost::intrusive::list_base_hook<boost::intrusive::link_mode<boost::intrusive::auto_unlink>>;

 public:
  class Entry : public Hook {
   public:
    Entry(Roster& roster, T what) : value(std::move(what)) { roster.entries_.push_back(*this); }
    Entry(const Entry&) = delete;
    Entry& operator=(const Entry&) = delete;
    T value;
  };

  // In the order in which they came. `look` must neither add nor end one.
  template <class Look>
  void for_each(Look look) const {
    for (const Entry& entry : entries_) look(entry.value);
  }

 private:
  boost::intrusive::list<Entry, boost::intrusive::constant_time_size<false>> entries_;
};

}  // namespace troupe::client
