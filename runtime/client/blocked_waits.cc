#include "client/blocked_waits.h"

#include <fmt/format.h>

#include <algorithm>
#include <boost/asio/post.hpp>
#include <charconv>
#include <string_view>

#include "base/log.h"
#include "client/explainer.h"

namespace troupe::client {

namespace {

constexpr Duration look_period = std::chrono::milliseconds(500);
constexpr Duration looked_at_after = std::chrono::seconds(1);
constexpr size_t looks_max = 16;  // At once: a process may have many waits that take long.
// What was seen is a deadlock only if all of it is seen once more.
constexpr Duration seen_again_after = std::chrono::milliseconds(300);
constexpr Duration log_after_default = std::chrono::seconds(10);
constexpr int64_t log_after_max_s = 1'000'000;

uint64_t to_us(Duration duration) {
  return static_cast<uint64_t>(std::max<int64_t>(duration / std::chrono::microseconds(1), 0));
}

}  // namespace

Duration blocked_log_after(const char* text) {
  if (text == nullptr) return log_after_default;
  const std::string_view given{text};
  int64_t seconds = 0;
  const auto [end, failed] = std::from_chars(given.data(), given.data() + given.size(), seconds);
  const bool good = failed == std::errc{} && end == given.data() + given.size();
  if (!good || seconds < 0 || seconds > log_after_max_s) return log_after_default;
  return std::chrono::seconds(seconds);
}

protocol::WaitsFor as_subject(const ObjectName& object) {
  return {"object", object.id, {}, object.owner};
}

BlockedWaits::BlockedWaits(Client& client, Duration log_after)
    : client_(client), log_after_(log_after) {}

void BlockedWaits::add(BlockedWait& wait) {
  const Instant now = client_.environment().clock.now();
  wait.since_ = now;
  wait.looked_at_next_ = now + looked_at_after;
  wait.logged_next_ = log_after_ > Duration::zero() ? now + log_after_ : Instant::max();
  {
    const std::lock_guard lock{mutex_};
    wait.number_ = ++last_;
    waits_.push_back(wait);
    if (std::exchange(tending_, true)) return;
  }
  boost::asio::post(client_.environment().loop, [this] { spawn(client_.scope(), tend()); });
}

void BlockedWaits::remove(BlockedWait& wait) {
  const std::lock_guard lock{mutex_};
  if (wait.is_linked()) waits_.erase(waits_.iterator_to(wait));
}

Async<void> BlockedWaits::tend() {
  for (;;) {
    co_await sleep_for(client_.environment().clock, look_period);
    for (Due& due : take_due()) {
      ++examined_;
      spawn(client_.scope(), examine(std::move(due)));
    }
    const std::lock_guard lock{mutex_};
    if (!waits_.empty()) continue;
    tending_ = false;
    co_return;
  }
}

std::vector<BlockedWaits::Due> BlockedWaits::take_due() {
  const Instant now = client_.environment().clock.now();
  std::vector<Due> due;
  if (examined_ >= looks_max) return due;
  const std::lock_guard lock{mutex_};
  std::vector<BlockedWait*> old;
  for (BlockedWait& wait : waits_) {
    if (now >= std::min(wait.looked_at_next_, wait.logged_next_)) old.push_back(&wait);
  }
  if (old.empty()) return due;
  const std::vector<TaskId> calls = client_.calls_of(old);
  for (size_t i = 0; i < old.size() && examined_ + due.size() < looks_max; ++i) {
    BlockedWait& wait = *old[i];
    const bool logs = now >= wait.logged_next_;
    const Duration age = now - wait.since_;
    // Twice as long each time.
    wait.looked_at_next_ = now + age;
    if (logs) wait.logged_next_ = now + age;
    if (calls[i].is_nil() && !logs) continue;  // What no call waits for closes no circle.
    due.push_back({wait.number_, calls[i], wait.facts(), age, logs});
  }
  return due;
}

std::vector<protocol::WaitsFor> BlockedWaits::roots_of(const Due& due) const {
  if (!due.call.is_nil()) return {{"call", due.call, {}, client_.address()}};
  return due.facts.subjects;
}

Async<void> BlockedWaits::examine(Due due) {
  struct Over {
    size_t& examined;
    ~Over() { --examined; }
  } over{examined_};
  std::vector<protocol::WaitsFor> roots = roots_of(due);
  const auto graph = co_await client_.explainer().explain(roots);
  const bool is_deadlock = co_await end_deadlock(std::move(roots), graph, due.number);
  if (is_deadlock || !due.logs) co_return;
  const bool has_deadline = due.facts.deadline - client_.environment().clock.now() < default_budget;
  log::warning(
      "wait_blocked",
      {{"how", due.facts.how},
       {"for", seconds_text(to_us(due.age))},
       {"deadline_in",
        has_deadline ? seconds_text(to_us(due.facts.deadline - client_.environment().clock.now()))
                     : std::string{"none"}},
       {"why", graph->text()}});
}

Async<bool> BlockedWaits::end_deadlock(std::vector<protocol::WaitsFor> roots,
                                       std::shared_ptr<WaitGraph> graph, uint64_t number) {
  if (roots.empty() || roots.front().kind != "call") co_return false;
  const auto circle = graph->deadlock(0);
  if (circle.empty()) co_return false;
  co_await sleep_for(client_.environment().clock, seen_again_after);
  const auto again = co_await client_.explainer().explain(std::move(roots));
  if (!is_unbroken(*graph, circle, *again)) co_return false;
  const std::string text = graph->describe(circle);
  const bool is_victim = circle.front() == 0;
  log::warning("deadlock", {{"circle", text},
                            {"call", graph->nodes()[0].said.name},
                            {"fails", is_victim ? "this wait" : "another of its waits"}});
  if (is_victim) {
    fail(number,
         error(Code::conflict,
               fmt::format("deadlock: {}: none of them could go on, so this wait failed. Do not "
                           "wait within one of these methods, make it a coroutine, or give its "
                           "actor more threads (max_concurrency)",
                           text)));
  }
  co_return true;
}

void BlockedWaits::fail(uint64_t number, const Error& why) {
  const std::lock_guard lock{mutex_};
  const auto found = std::ranges::find(waits_, number, &BlockedWait::number_);
  if (found == waits_.end()) return;  // It is over.
  BlockedWait& wait = *found;
  waits_.erase(found);
  wait.fail(why);
}

}  // namespace troupe::client
