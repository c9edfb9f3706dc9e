#include "client/borrows.h"

#include <boost/asio/post.hpp>
#include <utility>

#include "base/log.h"
#include "client/connections.h"

namespace troupe::client {

using protocol::Empty;

namespace {
constexpr Duration notice_budget = std::chrono::seconds(30);
// Without refs for one to two of these, the owner is told.
constexpr Duration linger = std::chrono::milliseconds(10);

Async<void> tell_owner(std::shared_ptr<Peer> owner, Method method, protocol::ObjectIds objects) {
  auto told =
      co_await transport::call<Empty>(std::move(owner), method, std::move(objects), notice_budget);
  if (!told) log::debug("owner_not_told", {{"why", told.error().message()}});
}

}  // namespace

Borrows::Borrows(transport::Environment environment, Scope& scope, Connections& connections,
                 std::function<void(ObjectId)> on_gone)
    : environment_(environment),
      scope_(scope),
      connections_(connections),
      on_gone_(std::move(on_gone)),
      told_(environment.loop) {}

Borrows::~Borrows() {
  if (timer_ != 0) environment_.clock.cancel(timer_);
}

Borrows::Link& Borrows::link_of(ProcessId process, const Owner& owner) {
  auto& link = links_[process];
  if (!link) {
    link = std::make_unique<Link>();
    link->owner = owner;
  }
  return *link;
}

void Borrows::add(ObjectId object, const Owner& owner) {
  const std::lock_guard lock{mutex_};
  Entry& entry = entries_[object];
  if (entry.link == nullptr) entry.link = &link_of(owner->process, owner);
  add_to(entry, object);
}

void Borrows::add(const ObjectName& object) {
  const std::lock_guard lock{mutex_};
  Entry& entry = entries_[object.id];
  if (entry.link == nullptr) {
    const auto known = links_.find(object.owner.process);
    entry.link = known != links_.end()
                     ? known->second.get()
                     : &link_of(object.owner.process,
                                std::make_shared<const protocol::ProcessAddress>(object.owner));
  }
  add_to(entry, object.id);
}

void Borrows::add_to(Entry& entry, ObjectId object) {
  ++entry.references;
  entry.idle = false;
  if (entry.told || entry.awaiting) return;
  entry.awaiting = true;
  unsettled_.fetch_add(1);
  Link& link = *entry.link;
  ++adds_;
  if (link.added.empty()) link.first_added = adds_;
  link.added.push_back(object);
  start(link);
}

void Borrows::drop(ObjectId object) {
  const std::lock_guard lock{mutex_};
  const auto found = entries_.find(object);
  if (found == entries_.end() || --found->second.references > 0) return;
  if (std::exchange(found->second.in_dropped, true)) return;
  found->second.link->dropped.push_back(object);
  if (std::exchange(armed_, true)) return;
  boost::asio::post(environment_.loop, [this, alive = std::weak_ptr{alive_}] {
    if (alive.lock()) arm();
  });
}

bool Borrows::holds(ObjectId object) const {
  const std::lock_guard lock{mutex_};
  return entries_.contains(object);
}

// With the lock held.
void Borrows::start(Link& link) {
  if (std::exchange(link.telling, true)) return;
  boost::asio::post(environment_.loop, [this, &link, alive = std::weak_ptr{alive_}] {
    if (alive.lock()) spawn(scope_, tell(link));
  });
}

Async<void> Borrows::tell(Link& link) {
  for (;;) {
    protocol::ObjectIds added;
    protocol::ObjectIds removed;
    uint64_t settled = 0;  // Of those that were dropped before they were told.
    bool over = false;
    {
      const std::lock_guard lock{mutex_};
      for (const ObjectId id : std::exchange(link.added, {})) {
        Entry& entry = entries_.at(id);
        if (entry.references > 0) {
          entry.told = true;
          added.objects.push_back(id);
        } else {
          entry.awaiting = false;
          ++settled;
        }
      }
      link.in_flight = std::exchange(link.first_added, 0);
      removed.objects.swap(link.to_remove);
      over = added.objects.empty() && removed.objects.empty();
      if (over) {
        link.in_flight = 0;
        link.telling = false;
      }
    }
    unsettled_.fetch_sub(settled);
    if (over) break;
    const std::vector<ObjectId> told = added.objects;
    auto peer =
        co_await connections_.peer_of(*link.owner, environment_.clock.now() + notice_budget);
    // A ref to an object whose owner is gone fails when it is read.
    if (peer && !told.empty()) {
      co_await tell_owner(*peer, Method::add_borrow, std::move(added));
    }
    if (peer && !removed.objects.empty()) {
      co_await tell_owner(*peer, Method::remove_borrow, std::move(removed));
    }
    {
      const std::lock_guard lock{mutex_};
      for (const ObjectId id : told) entries_.at(id).awaiting = false;
      link.in_flight = 0;
    }
    unsettled_.fetch_sub(told.size());
    told_.pulse();
  }
  told_.pulse();
}

bool Borrows::unsettled_until(uint64_t number) const {
  const std::lock_guard lock{mutex_};
  for (const auto& [process, link] : links_) {
    if (link->first_added != 0 && link->first_added <= number) return true;
    if (link->in_flight != 0 && link->in_flight <= number) return true;
  }
  return false;
}

Async<void> Borrows::settle() {
  uint64_t last = 0;
  {
    const std::lock_guard lock{mutex_};
    last = adds_;
  }
  while (unsettled_until(last)) co_await told_.wait();
}

void Borrows::arm() {
  timer_ = environment_.clock.call_at(environment_.clock.now() + linger, [this] {
    timer_ = 0;
    look_at_dropped();
  });
}

void Borrows::look_at_dropped() {
  std::vector<ObjectId> gone;
  bool again = false;
  {
    const std::lock_guard lock{mutex_};
    for (auto& [process, link] : links_) {
      std::vector<ObjectId> kept;
      for (const ObjectId id : std::exchange(link->dropped, {})) {
        const auto found = entries_.find(id);
        Entry& entry = found->second;
        if (entry.references > 0) {
          entry.in_dropped = false;
        } else if (!std::exchange(entry.idle, true) || entry.awaiting) {
          kept.push_back(id);
        } else {
          if (entry.told) link->to_remove.push_back(id);
          entries_.erase(found);
          gone.push_back(id);
        }
      }
      link->dropped = std::move(kept);
      again = again || !link->dropped.empty();
      if (!link->to_remove.empty()) start(*link);
    }
    armed_ = again;
  }
  if (again) arm();
  for (const ObjectId id : gone) on_gone_(id);
}

}  // namespace troupe::client
