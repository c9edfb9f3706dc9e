#include "training/driver/train_job.h"

#include <fmt/format.h>

#include <boost/json.hpp>
#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>

#include "training/driver/run_summary.h"

namespace troupe::training {
namespace {

namespace json = boost::json;
using namespace std::chrono_literals;

constexpr std::string_view summary_start = R"({"summary":)";
constexpr auto start_timeout = 2min;
constexpr auto short_call_timeout = 10s;

// What the threads that read the ranks' streams hand to the caller's. Thread-safe.
class Arrivals {
 public:
  struct Arrival {
    size_t rank = 0;
    Result<std::optional<detail::Item>> item;  // nullopt: the stream's good end.
  };

  void push(Arrival arrival) {
    const std::lock_guard lock{mutex_};
    arrivals_.push_back(std::move(arrival));
    changed_.notify_one();
  }
  std::optional<Arrival> pop(std::chrono::milliseconds timeout) {
    std::unique_lock lock{mutex_};
    if (!changed_.wait_for(lock, timeout, [this] { return !arrivals_.empty(); })) return {};
    Arrival first = std::move(arrivals_.front());
    arrivals_.pop_front();
    return first;
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Arrival> arrivals_;
};

void read_stream(Arrivals& arrivals, size_t rank, detail::ItemStream& stream) {
  for (bool more = true; more;) {
    auto item = stream.next();
    more = item && *item;
    arrivals.push({rank, std::move(item)});
  }
}

class Members {
 public:
  Members(const Session& session, const TrainJobOptions& options, const TrainJobEvents& events,
          const std::atomic<bool>& interrupted)
      : session_(session), options_(options), events_(events), interrupted_(interrupted) {}

  Status create() {
    for (uint32_t rank = 0; rank < options_.config.world; ++rank) {
      TrainerConfig config = options_.config;
      config.rank = rank;
      ActorOptions actor;
      actor.resources.cpu = config.threads;
      actor.spread = true;
      actor.max_restarts = options_.restarts;
      TROUPE_TRY(const ActorId id, session_.create_plugin_actor(
                                       "training", "trainer", {to_bytes(config.to_json())}, actor));
      actors_.push_back(id);
    }
    return ok();
  }

  Status wait_alive() {
    for (size_t rank = 0; rank < actors_.size(); ++rank) {
      auto alive = session_.wait_alive(actors_[rank], start_timeout);
      if (!alive) return std::move(alive).error().context(fmt::format("start worker {}", rank));
    }
    return ok();
  }

  // One generation: all ranks train until all their streams have ended.
  Result<std::string> train(uint64_t generation, int64_t from_step) {
    json::array members;
    for (const ActorId& id : actors_) members.emplace_back(id.to_string());
    const std::string argument = json::serialize(
        json::object{{"members", members}, {"generation", generation}, {"from_step", from_step}});
    std::vector<std::unique_ptr<detail::ItemStream>> streams;
    for (const ActorId& id : actors_) {
      TROUPE_TRY(auto stream, session_.stream_plugin_actor(id, "train", {to_bytes(argument)}));
      streams.push_back(std::move(stream));
    }
    Arrivals arrivals;
    std::vector<std::jthread> readers;  // Before the streams they read: joined first.
    for (size_t rank = 0; rank < streams.size(); ++rank) {
      readers.emplace_back([&, rank] { read_stream(arrivals, rank, *streams[rank]); });
    }
    return collect(arrivals);
  }

 private:
  Result<std::string> collect(Arrivals& arrivals) {
    std::string summary;
    std::optional<Error> failure;
    bool stopping = false;
    for (size_t running = actors_.size(); running > 0;) {
      if (interrupted_ && !stopping) {
        stopping = true;
        events_.on_notice("stopping after this step; the checkpoint is being written");
        ask_to_stop();
      }
      auto arrival = arrivals.pop(100ms);
      if (!arrival) continue;
      if (!arrival->item) {
        --running;
        note_failure(arrival->rank, std::move(arrival->item).error(), failure);
      } else if (!*arrival->item) {
        --running;
      } else if (arrival->rank == 0) {
        const std::string_view item = as_text((*arrival->item)->bytes);
        if (item.starts_with(summary_start)) {
          summary = item.substr(summary_start.size(), item.size() - summary_start.size() - 1);
        } else {
          events_.on_item(item);
        }
      }
    }
    if (failure) return *failure;
    if (summary.empty()) return ask_for_summary();
    return summary;
  }

  // A stream that is full drops items, the last one too.
  Result<std::string> ask_for_summary() {
    auto status = session_.ask_plugin_actor(actors_.front(), "status", {}, short_call_timeout);
    if (!status) return std::move(status).error().context("ask worker 0 how the run ended");
    return summary_in_status(as_text(*status));
  }

  // Tells the cause rather than what followed from it: a member that dies makes the others fail as
  // unavailable.
  void note_failure(size_t rank, Error why, std::optional<Error>& failure) {
    Error named = std::move(why).context(fmt::format("worker {}", rank));
    if (!failure || (failure->code() == Code::unavailable && named.code() != Code::unavailable)) {
      failure = std::move(named);
    }
  }

  void ask_to_stop() {
    // One is enough: the wish travels with the gradients. The others are for when it is dead.
    for (const ActorId& id : actors_) {
      if (session_.ask_plugin_actor(id, "stop", {}, short_call_timeout)) return;
    }
  }

  const Session& session_;
  const TrainJobOptions& options_;
  const TrainJobEvents& events_;
  const std::atomic<bool>& interrupted_;
  std::vector<ActorId> actors_;
};

// Whether the run may go on from the checkpoint: a process or its group is gone, not the run wrong.
bool is_death(Code code) {
  return code == Code::unavailable || code == Code::outcome_unknown ||
         code == Code::deadline_exceeded || code == Code::cancelled;
}

}  // namespace

Result<std::string> run_train_job(const Session& session, const TrainJobOptions& options,
                                  const TrainJobEvents& events,
                                  const std::atomic<bool>& interrupted) {
  Members members{session, options, events, interrupted};
  TROUPE_CHECK(members.create());
  TROUPE_CHECK(members.wait_alive());
  int64_t from_step = options.resume ? -1 : 0;
  for (uint64_t generation = 1;; ++generation) {
    auto summary = members.train(generation, from_step);
    const bool last = generation > static_cast<uint64_t>(std::max(options.restarts, 0));
    if (summary || last || interrupted || !is_death(summary.error().code())) return summary;
    events.on_notice(fmt::format("{}; going on from the last checkpoint (restart {} of {})",
                                 summary.error().message(), generation, options.restarts));
    TROUPE_CHECK(members.wait_alive());
    events.on_restart();
    from_step = -1;
  }
}

}  // namespace troupe::training
