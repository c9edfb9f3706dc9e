#include "troupe/queue.h"

#include <fmt/format.h>

#include <algorithm>
#include <deque>
#include <list>

#include "troupe/signal.h"

namespace troupe::detail {
namespace {

constexpr const char* queue_class = "troupe.queue";
// Calls that wait hold no thread; nobody should wait outside for those that do.
constexpr uint32_t calls_max = 1 << 20;

// What holds a queue. Elements are bytes here, so one class serves every type.
class QueueActor {
 public:
  QueueActor(uint64_t type, uint64_t elements_max) : type_(type), elements_max_(elements_max) {}

  Coroutine<Result<uint64_t>> put(uint64_t type, std::vector<Packed> elements, int64_t timeout_ns) {
    if (auto fits = check(type); !fits) co_return std::move(fits).error();
    if (closed_) co_return error(Code::conflict, "the queue is closed");
    Putter putter;
    for (Packed& element : elements) putter.left.push_back(std::move(element));
    elements.clear();
    // Getters that wait make room for more.
    do take_from(putter);
    while (serve() && !putter.left.empty());
    if (!putter.left.empty() && timeout_ns > 0) {
      putter.suspension = Suspension::make();
      const auto place = putters_.insert(putters_.end(), &putter);
      const SuspensionWait wait{putter.suspension, std::chrono::nanoseconds(timeout_ns)};
      const Status woken = co_await wait;
      if (!woken) putters_.erase(place);  // Who was woken is in there no more.
      if (!woken && woken.error().code() == Code::cancelled) co_return woken.error();
    }
    if (putter.taken == 0 && !putter.left.empty()) co_return not_put(timeout_ns);
    co_return putter.taken;
  }

  Coroutine<Result<Batch>> get(uint64_t type, uint64_t count_max, int64_t timeout_ns) {
    if (auto fits = check(type); !fits) co_return std::move(fits).error();
    Getter getter;
    getter.count_max = std::max<uint64_t>(count_max, 1);
    give_to(getter);
    serve();
    if (getter.given.empty() && !closed_) {
      if (timeout_ns <= 0) co_return error(Code::exhausted, "the queue is empty");
      getter.suspension = Suspension::make();
      const auto place = getters_.insert(getters_.end(), &getter);
      const SuspensionWait wait{getter.suspension, std::chrono::nanoseconds(timeout_ns)};
      const Status woken = co_await wait;
      if (!woken) {
        getters_.erase(place);
        if (woken.error().code() == Code::cancelled) co_return woken.error();
        co_return error(Code::deadline_exceeded, "the queue stayed empty");
      }
      if (should_stop() && !getter.given.empty()) {
        // Nobody would read the answer.
        take_back(std::move(getter.given));
        co_return error(Code::cancelled, "the getter gave up");
      }
    }
    co_return Batch{std::move(getter.given)};
  }

  Result<QueueStatus> status(uint64_t type) {
    if (auto fits = check(type); !fits) return std::move(fits).error();
    return QueueStatus{elements_.size(), elements_max_, getters_.size(), putters_.size(), closed_};
  }

  void close() {
    closed_ = true;
    wake_all(putters_);
    // While one waits there are no elements.
    wake_all(getters_);
  }

 private:
  // Calls that wait, in the order of their arrival, are in the coroutines' frames.
  struct Putter {
    std::deque<Packed> left;
    uint64_t taken = 0;
    std::shared_ptr<Suspension> suspension;
  };
  struct Getter {
    uint64_t count_max = 1;
    std::vector<Packed> given;
    std::shared_ptr<Suspension> suspension;
  };

  Status check(uint64_t type) const {
    if (type == type_) return ok();
    return error(Code::invalid,
                 "the queue's elements are of another type than its caller's: build both from the "
                 "same source");
  }
  bool is_full() const { return elements_max_ != 0 && elements_.size() >= elements_max_; }

  void take_from(Putter& putter) {
    for (; !putter.left.empty() && !is_full(); ++putter.taken) {
      elements_.push_back(std::move(putter.left.front()));
      putter.left.pop_front();
    }
  }
  void give_to(Getter& getter) {
    while (!elements_.empty() && getter.given.size() < getter.count_max) {
      getter.given.push_back(std::move(elements_.front()));
      elements_.pop_front();
    }
  }
  // What waits and can go on now does. Whether there was a getter.
  bool serve() {
    for (bool any = false;; any = true) {
      serve_putters();
      const auto getter = elements_.empty() ? getters_.end() : first_woken(getters_);
      if (getter == getters_.end()) return any;
      give_to(**getter);
      getters_.erase(getter);
    }
  }
  void serve_putters() {
    for (auto place = putters_.begin(); place != putters_.end() && !is_full();) {
      Putter& putter = **place;
      const auto next = std::next(place);
      // One that is late, or was cancelled, takes itself out once it goes on.
      if (!putter.suspension->is_over()) {
        take_from(putter);
        if (putter.left.empty() && putter.suspension->wake()) putters_.erase(place);
      }
      place = next;
    }
  }
  // The first that is not late or cancelled: it is woken.
  template <class Waiting>
  static std::list<Waiting*>::iterator first_woken(std::list<Waiting*>& waiting) {
    return std::ranges::find_if(waiting, [](Waiting* one) { return one->suspension->wake(); });
  }
  template <class Waiting>
  static void wake_all(std::list<Waiting*>& waiting) {
    std::erase_if(waiting, [](Waiting* one) { return one->suspension->wake(); });
  }
  void take_back(std::vector<Packed> given) {
    elements_.insert(elements_.begin(), std::make_move_iterator(given.begin()),
                     std::make_move_iterator(given.end()));
    serve();
  }
  Error not_put(int64_t timeout_ns) const {
    if (closed_) return error(Code::conflict, "the queue is closed");
    return error(timeout_ns > 0 ? Code::deadline_exceeded : Code::exhausted,
                 fmt::format("the queue is full: it has its {} elements", elements_max_));
  }

  const uint64_t type_;
  const uint64_t elements_max_;  // 0: no bound.
  bool closed_ = false;
  std::deque<Packed> elements_;
  std::list<Putter*> putters_;
  std::list<Getter*> getters_;
};

using Make = QueueActor(uint64_t, uint64_t);

// In every process that has the SDK, so in every host: see TROUPE_SDK_MODULE.
const ClassRegistration<Make> registration{queue_class,
                                           {{"put", &call_method<&QueueActor::put>, true},
                                            {"get", &call_method<&QueueActor::get>, true},
                                            {"status", &call_method<&QueueActor::status>, false},
                                            {"close", &call_method<&QueueActor::close>, false}}};

template <auto method, class... Args>
auto call_queue(const QueueHandle& queue, std::string_view name, const Args&... arguments) {
  using Traits = FunctionTraits<decltype(method)>;
  using Ref = ObjectRef<typename Traits::Value>;
  if (!queue.session) return Ref{};
  auto values = encode_arguments<typename Traits::Arguments>(std::index_sequence_for<Args...>{},
                                                             arguments...);
  return Ref{submit_call(queue.session, queue.target, name, Traits::signature(), std::move(values),
                         CallOptions{}, 0)};
}

// Says whether it is a queue of that type.
Result<QueueHandle> checked(QueueHandle queue) {
  const auto status = queue_status(queue);
  if (status) return queue;
  if (status.error().code() != Code::not_found) return status.error();
  return error(Code::invalid, "the actor of that name is no queue");
}

}  // namespace

QueueHandle queue_handle(const std::shared_ptr<SessionImpl>& session, ActorId actor,
                         uint64_t type) {
  return {session, actor, type, target_of(session, actor)};
}

Result<QueueHandle> create_queue(const std::shared_ptr<SessionImpl>& session, uint64_t type,
                                 const QueueOptions& options) {
  ActorOptions actor = options.actor;
  actor.max_concurrency = calls_max;
  auto values = encode_arguments<FunctionTraits<Make>::Arguments>(std::make_index_sequence<2>{},
                                                                  type, options.elements_max);
  TROUPE_TRY(const ActorId id,
             create_actor(session, TROUPE_SDK_MODULE, queue_class,
                          FunctionTraits<Make>::signature(), std::move(values), actor));
  auto queue = queue_handle(session, id, type);
  const bool may_be_another = actor.get_if_exists && !actor.name.empty();
  return may_be_another ? checked(std::move(queue)) : Result<QueueHandle>{std::move(queue)};
}

Result<QueueHandle> find_queue(const std::shared_ptr<SessionImpl>& session, uint64_t type,
                               std::string_view name, std::string_view name_space) {
  TROUPE_TRY(const ActorId id, find_actor(session, name, name_space));
  return checked(queue_handle(session, id, type));
}

ObjectRef<uint64_t> queue_put(const QueueHandle& queue, std::vector<Packed> elements,
                              std::chrono::nanoseconds timeout) {
  return call_queue<&QueueActor::put>(queue, "put", queue.type, elements, timeout.count());
}
ObjectRef<Batch> queue_get(const QueueHandle& queue, uint64_t count_max,
                           std::chrono::nanoseconds timeout) {
  return call_queue<&QueueActor::get>(queue, "get", queue.type, count_max, timeout.count());
}
Result<QueueStatus> queue_status(const QueueHandle& queue) {
  return call_queue<&QueueActor::status>(queue, "status", queue.type).get();
}
Status queue_close(const QueueHandle& queue) {
  return call_queue<&QueueActor::close>(queue, "close").get();
}

}  // namespace troupe::detail
