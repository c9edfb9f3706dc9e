// Several actors of one class that share work: each call goes to the one with the least to do.
//
//   const auto pool = ActorPool<Parser>::create(session, {.max_restarts = 3}, 8).value();
//   auto ref = pool.submit<&Parser::parse>(text);
//   auto parsed = pool.map<&Parser::parse>(texts);               // In the order of the texts,
//   while (auto one = parsed.next().value()) use(*one);          // a few at a time.
//
// A pool that lives in a coroutine method is used by submit() and co_await alone: next() blocks.
#pragma once

#include <deque>
#include <ranges>

#include "troupe/session.h"

namespace troupe {

struct PoolOptions {
  // How many unfinished calls are sent to one actor; the others wait in the pool. 1: none waits
  // behind a long one. More hide the way there and back, or use an actor that runs several at once.
  uint32_t calls_per_actor = 1;
};

struct MapOptions {
  // How many elements are read ahead of the results that were taken: they are submitted, or have
  // their results. 0: twice as many as the pool's actors take at once.
  size_t ahead_max = 0;
  CallOptions call = {};
};

struct PoolStatus {
  size_t actors = 0;      // Those that died for good are none.
  size_t reached = 0;     // Of them: can be called now. The others start, or restart.
  size_t idle = 0;        // Of these: have no unfinished call of this pool.
  size_t unfinished = 0;  // Calls that were sent to actors.
  size_t queued = 0;      // Calls that wait in the pool.
};

namespace detail {

// Thread-safe. When it goes, calls that wait in it fail with cancelled, and the actors that it owns
// are killed; it waits for nothing.
class PoolCore {
 public:
  static std::shared_ptr<PoolCore> make(std::shared_ptr<SessionImpl> session,
                                        const PoolOptions& options);
  virtual ~PoolCore() = default;

  virtual bool add(ActorId actor) = 0;
  // It is killed with the pool, unless it is taken out.
  virtual void own(ActorId actor) = 0;
  virtual std::optional<ActorId> take_idle() = 0;
  virtual std::shared_ptr<RefHandle> submit(std::string_view method, uint64_t signature,
                                            std::vector<ArgumentValue> arguments,
                                            const CallOptions& options, int max_call_retries) = 0;
  virtual PoolStatus status() const = 0;
  virtual std::vector<ActorId> actors() const = 0;
  virtual const std::shared_ptr<SessionImpl>& session() const = 0;
};

// Which of several objects became ready, in that order. For one thread at a time.
class Completions {
 public:
  static std::shared_ptr<Completions> make(std::shared_ptr<SessionImpl> session);
  virtual ~Completions() = default;
  virtual void add(const RefHandle& ref, uint32_t number) = 0;
  // Blocks; nothing at the deadline.
  virtual std::optional<uint32_t> next(std::chrono::nanoseconds timeout) = 0;
};

}  // namespace detail

template <class A, class T, class View>
class PoolMap;

// Copies are the same pool; it goes with the last one, and with the last PoolMap: then calls that
// wait in it fail with cancelled, those that were sent go on, and the actors that it made itself
// are killed. That waits for nothing. Thread-safe.
template <class A>
class ActorPool {
 public:
  // Of actors that somebody else owns.
  ActorPool(const Session& session, const std::vector<ActorRef<A>>& actors,
            const PoolOptions& options = {})
      : core_(detail::PoolCore::make(session.impl(), options)), options_(options) {
    for (const auto& actor : actors) push(actor);
    if (!actors.empty()) max_call_retries_ = actors.front().max_call_retries();
  }
  // Of `count` actors of its own; see Session::create_many, also for errors.
  template <class... Args>
  static Result<ActorPool> create(const Session& session, const ActorOptions& actor_options,
                                  size_t count, const Args&... arguments) {
    return create(session, PoolOptions{}, actor_options, count, arguments...);
  }
  template <class... Args>
  static Result<ActorPool> create(const Session& session, const PoolOptions& options,
                                  const ActorOptions& actor_options, size_t count,
                                  const Args&... arguments) {
    TROUPE_TRY(const auto actors, session.create_many<A>(actor_options, count, arguments...));
    ActorPool pool{session, actors, options};
    for (const auto& actor : actors) pool.core_->own(actor.id());
    return pool;
  }

  // pool.submit<&Parser::parse>(text): as ActorRef::call, of whichever actor has the fewest
  // unfinished calls; waits in the pool, in the order of submission, while all have enough. Returns
  // at once. What surely did not run when its actor died goes to another one; what may have run
  // fails with outcome_unknown, unless it may be retried: then it, too, goes to any. An actor that
  // restarts is used again once it is back. Errors, besides: unavailable (no actor is left: why the
  // last one died), cancelled (the pool went).
  template <auto method, class... Args>
    requires(!detail::starts_with_options<Args...>)
  auto submit(Args&&... arguments) const {
    return submit<method>(CallOptions{}, std::forward<Args>(arguments)...);
  }
  template <auto method, class... Args>
  auto submit(const CallOptions& options, Args&&... arguments) const {
    using Traits = detail::FunctionTraits<decltype(method)>;
    static_assert(!detail::is_generator<typename Traits::Return>,
                  "a generator is called by ActorRef::stream");
    return ObjectRef<typename Traits::Value>{
        core_->submit(ActorRef<A>::template method_name<method>(), Traits::signature(),
                      ActorRef<A>::template encode<method>(std::forward<Args>(arguments)...),
                      options, max_call_retries_)};
  }

  // The method's results for the elements of a range, of which each is the argument, or a tuple of
  // the arguments. The range is read as results are taken, on the thread that takes them; one that
  // is an lvalue must outlive the map, any other is moved into it.
  template <auto method, std::ranges::viewable_range Range>
  auto map(Range&& range, const MapOptions& options = {}) const {
    return make_map<method>(std::forward<Range>(range), options, false);
  }
  // The same in the order in which the results are there.
  template <auto method, std::ranges::viewable_range Range>
  auto map_unordered(Range&& range, const MapOptions& options = {}) const {
    return make_map<method>(std::forward<Range>(range), options, true);
  }

  // One more actor, which somebody else owns. False: it is in the pool already.
  bool push(const ActorRef<A>& actor) const { return core_->add(actor.id()); }
  // Takes an actor out that has no unfinished call; nothing if none is idle. It is the caller's
  // now, also if the pool made it.
  std::optional<ActorRef<A>> pop_idle() const {
    const auto actor = core_->take_idle();
    if (!actor) return std::nullopt;
    return ActorRef<A>{core_->session(), *actor, max_call_retries_};
  }
  PoolStatus status() const { return core_->status(); }
  std::vector<ActorRef<A>> actors() const {
    std::vector<ActorRef<A>> refs;
    for (const ActorId id : core_->actors()) {
      refs.emplace_back(core_->session(), id, max_call_retries_);
    }
    return refs;
  }

 private:
  template <auto method, class Range>
  auto make_map(Range&& range, const MapOptions& options, bool unordered) const {
    using Traits = detail::FunctionTraits<decltype(method)>;
    using View = std::views::all_t<Range>;
    using Element = std::ranges::range_reference_t<View>;
    using T = typename Traits::Value;
    static_assert(!std::is_void_v<T>, "the method gives nothing: submit() its calls");
    const auto submit_one = [](const ActorPool& pool, const CallOptions& call, Element element) {
      if constexpr (Traits::arity == 1) {
        return pool.template submit<method>(call, std::forward<Element>(element));
      } else {
        return std::apply(
            [&](auto&&... parts) {
              return pool.template submit<method>(call, std::forward<decltype(parts)>(parts)...);
            },
            std::forward<Element>(element));
      }
    };
    MapOptions bounded = options;
    if (bounded.ahead_max == 0) {
      bounded.ahead_max =
          2 * std::max<size_t>(options_.calls_per_actor, 1) * std::max<size_t>(status().actors, 1);
    }
    return PoolMap<A, T, View>{*this, std::views::all(std::forward<Range>(range)), submit_one,
                               std::move(bounded), unordered};
  }

  std::shared_ptr<detail::PoolCore> core_;
  PoolOptions options_;
  int max_call_retries_ = 0;

  template <class, class, class>
  friend class PoolMap;
};

// Results of ActorPool::map. For one thread at a time. Dropping it cancels what is under way.
template <class A, class T, class View>
class PoolMap {
 public:
  using Submit = ObjectRef<T> (*)(const ActorPool<A>& pool, const CallOptions& call,
                                  std::ranges::range_reference_t<View> element);
  PoolMap(ActorPool<A> pool, View range, Submit submit, MapOptions options, bool unordered)
      : pool_(std::move(pool)),
        range_(std::make_unique<View>(std::move(range))),
        next_(std::ranges::begin(*range_)),
        submit_(submit),
        options_(std::move(options)) {
    if (unordered) completions_ = detail::Completions::make(pool_.core_->session());
  }
  PoolMap(PoolMap&&) = default;
  PoolMap& operator=(PoolMap&&) = delete;
  ~PoolMap() {
    if (!pool_.core_) return;  // Moved.
    const Session session{pool_.core_->session()};
    for (const Call& call : calls_) {
      if (call.ref.is_valid()) (void)session.cancel(call.ref);
    }
  }

  // Blocks for the next result; nullopt after the last. A call that failed gives its error here,
  // and the map goes on behind it. Errors, besides: deadline_exceeded (it can be asked again).
  Result<std::optional<T>> next(std::chrono::nanoseconds timeout = no_timeout) {
    while (under_way_ < options_.ahead_max && next_ != std::ranges::end(*range_)) begin_one();
    if (under_way_ == 0) return std::optional<T>{};
    return completions_ ? next_ready(timeout) : next_in_order(timeout);
  }
  // Which element, from 0, the last result or error belongs to.
  uint64_t index() const { return index_; }

 private:
  struct Call {
    ObjectRef<T> ref;
    uint64_t index = 0;
  };

  void begin_one() {
    Call call{submit_(pool_, options_.call, *next_), begun_++};
    ++next_;
    ++under_way_;
    if (!completions_) {
      calls_.push_back(std::move(call));
      return;
    }
    uint32_t place = static_cast<uint32_t>(calls_.size());
    if (free_.empty()) {
      calls_.emplace_back();
    } else {
      place = free_.back();
      free_.pop_back();
    }
    completions_->add(*call.ref.handle(), place);
    calls_[place] = std::move(call);
  }
  Result<std::optional<T>> next_in_order(std::chrono::nanoseconds timeout) {
    auto value = calls_.front().ref.get(timeout);
    // Its own failure may be deadline_exceeded, too.
    if (!value && !calls_.front().ref.handle()->is_ready()) return std::move(value).error();
    index_ = calls_.front().index;
    calls_.pop_front();
    --under_way_;
    return to_item(std::move(value));
  }
  Result<std::optional<T>> next_ready(std::chrono::nanoseconds timeout) {
    const auto place = completions_->next(timeout);
    if (!place) return error(Code::deadline_exceeded, "no result of the map is ready yet");
    const Call call = std::exchange(calls_[*place], {});
    free_.push_back(*place);
    index_ = call.index;
    --under_way_;
    return to_item(call.ref.get());
  }
  static Result<std::optional<T>> to_item(Result<T> value) {
    if (!value) return std::move(value).error();
    return std::optional<T>{std::move(*value)};
  }

  ActorPool<A> pool_;
  std::unique_ptr<View> range_;  // Where it is, for the iterator.
  std::ranges::iterator_t<View> next_;
  Submit submit_;
  MapOptions options_;
  std::shared_ptr<detail::Completions> completions_;  // Null: in order.
  std::deque<Call> calls_;                            // In order, or by their places.
  std::vector<uint32_t> free_;                        // Places.
  size_t under_way_ = 0;
  uint64_t begun_ = 0;
  uint64_t index_ = 0;
};

}  // namespace troupe
