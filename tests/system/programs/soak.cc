// soak SECONDS SEED calm|chaos: a driver that makes and ends actors, tasks, objects, groups and
// streams, for so long. In chaos somebody kills what they run on meanwhile: then they may fail, but
// only as a death makes them fail, and never by being wrong or by hanging.
#include <poll.h>
#include <troupe/troupe.h>

#include <atomic>
#include <chrono>
#include <cstdlib>
#include <functional>
#include <iostream>
#include <mutex>
#include <random>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

using namespace std::chrono_literals;
using troupe::Code;
using troupe::Error;
using troupe::Session;
using Numbers = std::vector<int64_t>;

class Pot {
 public:
  int64_t add(int64_t number) { return sum_ += number; }

 private:
  int64_t sum_ = 0;
};
TROUPE_ACTOR(Pot(), add);

Numbers grow(int64_t first, int64_t count) {
  Numbers numbers(static_cast<size_t>(count));
  for (int64_t i = 0; i < count; ++i) numbers[static_cast<size_t>(i)] = first + i;
  return numbers;
}
TROUPE_TASK(grow);

int64_t last(const Numbers& numbers) {
  return numbers.back();
}
TROUPE_TASK(last);

troupe::Generator<Numbers> pieces(int64_t count, int64_t size) {
  for (int64_t i = 0; i < count; ++i) co_yield Numbers(static_cast<size_t>(size), i);
}
TROUPE_TASK(pieces);

namespace {

// Whoever waits longer hangs.
constexpr auto patience = 90s;

using Random = std::minstd_rand;
int64_t draw(Random& random, int64_t least, int64_t most) {
  return std::uniform_int_distribution<int64_t>{least, most}(random);
}

class Soak {
 public:
  Soak(const Session& session, bool calm) : session_(session), calm_(calm) {}

  // Runs `work` again and again until the time is over.
  void start(const char* name, uint32_t seed, void (Soak::*work)(Random&)) {
    threads_.emplace_back([this, name, seed, work] {
      Random random{seed};
      uint64_t turns = 0;
      while (!over_) {
        (this->*work)(random);
        ++turns;
      }
      const std::lock_guard lock{mutex_};
      done_ += std::string(name) + " " + std::to_string(turns) + " ";
    });
  }
  void run_for(std::chrono::seconds time) {
    const auto end = std::chrono::steady_clock::now() + time;
    while (std::chrono::steady_clock::now() < end) ::poll(nullptr, 0, 50);
    over_ = true;
    threads_.clear();
  }
  // 0 if all was well.
  int finish() const {
    std::cout << done_ << "deaths " << deaths_ << " wrong " << wrong_ << "\n";
    return wrong_ == 0 ? 0 : 1;
  }

  void actor(Random& random) {
    const auto pot = session_.create<Pot>({});
    if (!pot) return failed("create an actor", pot.error());
    call(*pot, random);
    if (const auto ended = pot->kill(); !ended) failed("kill an actor", ended.error());
  }
  void light_actors(Random& random) {
    const auto count = static_cast<size_t>(draw(random, 1, 60));
    const auto pots = session_.create_many<Pot>(
        {.max_restarts = -1, .process = troupe::ActorProcess::shared}, count);
    if (!pots) return failed("create light actors", pots.error());
    for (size_t i = 0; i < 5; ++i) {
      const auto sum = (*pots)[i % count].call<&Pot::add>(1).get(patience);
      if (!sum) failed("call a light actor", sum.error());
    }
    if (const auto ended = session_.kill(*pots); !ended) failed("kill actors", ended.error());
  }
  // More than a store holds, so that some of it is spilled and read back.
  void objects(Random& random) {
    std::vector<troupe::ObjectRef<Numbers>> kept;
    for (int i = 0; i < 24; ++i) {
      auto put = session_.put(Numbers(size_t{512} << 10, i));
      if (!put) return failed("put", put.error());
      kept.push_back(std::move(*put));
    }
    for (int i = 0; i < 6; ++i) {
      const int64_t which = draw(random, 0, 23);
      const auto back = kept[static_cast<size_t>(which)].get(patience);
      if (!back) {
        failed("get", back.error());
      } else if (back->back() != which) {
        wrong("an object holds something else");
      }
    }
  }
  void tasks(Random& random) {
    const int64_t count = draw(random, 1, 300'000);
    const troupe::TaskOptions options{.resources = {.cpu = 0.5}, .retries = 3};
    std::vector<troupe::ObjectRef<Numbers>> made;
    std::vector<troupe::ObjectRef<int64_t>> read;
    for (int64_t i = 0; i < 8; ++i) {
      made.push_back(session_.submit(options, grow, i, count));
      read.push_back(session_.submit(options, last, made.back()));
    }
    for (int64_t i = 0; i < 8; ++i) {
      const auto number = read[static_cast<size_t>(i)].get(patience);
      if (!number) {
        failed("a task", number.error());
      } else if (*number != i + count - 1) {
        wrong("a task gave " + std::to_string(*number));
      }
    }
  }
  void groups(Random& random) {
    const auto group = session_.create_placement_group(
        {.bundles = {{.cpu = 0.1}, {.cpu = 0.1}}, .strategy = troupe::GroupStrategy::spread});
    if (!group) return failed("create a group", group.error());
    if (draw(random, 0, 1) == 0) {
      if (const auto placed = group->wait(patience); !placed) failed("group", placed.error());
      const auto pot = session_.create<Pot>({.placement = group->any_bundle()});
      if (!pot) {
        failed("create an actor in a group", pot.error());
      } else {
        call(*pot, random);
      }
    }
    if (const auto ended = group->remove(); !ended) failed("remove a group", ended.error());
  }
  // Some are dropped unread.
  void streams(Random& random) {
    const int64_t count = draw(random, 1, 60);
    const int64_t wanted = draw(random, 1, count);
    auto stream = session_.stream({.resources = {.cpu = 0.5}, .generator_items_max = 8}, pieces,
                                  count, draw(random, 1, 30'000));
    for (int64_t i = 0; i < wanted; ++i) {
      const auto item = stream.next(patience);
      if (!item) return failed("a stream", item.error());
      if (!*item) return wrong("a stream ended early");
      if ((*item)->back() != i) return wrong("an item is another one");
    }
  }

 private:
  void call(const troupe::ActorRef<Pot>& pot, Random& random) {
    int64_t sum = 0;
    for (int i = 0; i < 20; ++i) {
      const int64_t number = draw(random, 1, 9);
      const auto got = pot.call<&Pot::add>(number).get(patience);
      if (!got) return failed("call", got.error());
      sum += number;
      if (*got != sum) return wrong("an actor counts " + std::to_string(*got));
    }
  }
  void failed(const char* doing, const Error& error) {
    const Code code = error.code();
    const bool is_of_death = code == Code::unavailable || code == Code::outcome_unknown ||
                             code == Code::data_loss || code == Code::cancelled;
    if (is_of_death && !calm_) {
      ++deaths_;
      ::poll(nullptr, 0, 5);
    } else {
      wrong(std::string(doing) + ": " + error.to_string());
    }
  }
  void wrong(const std::string& text) {
    const std::lock_guard lock{mutex_};
    if (++wrong_ <= 10) std::cerr << text << "\n";
  }

  const Session& session_;
  const bool calm_;
  std::atomic<bool> over_ = false;
  std::atomic<uint64_t> deaths_ = 0;
  std::mutex mutex_;
  uint64_t wrong_ = 0;
  std::string done_;
  std::vector<std::jthread> threads_;
};

}  // namespace

int main(int argc, char** argv) try {
  if (argc != 4) {
    std::cerr << "usage: soak SECONDS SEED calm|chaos\n";
    return 2;
  }
  const auto session = troupe::connect({.log_to_driver = false}).value();
  const auto seed = static_cast<uint32_t>(std::atoi(argv[2]));
  Soak soak{session, std::string_view{argv[3]} == "calm"};
  soak.start("actors", seed, &Soak::actor);
  soak.start("light_actors", seed + 1, &Soak::light_actors);
  soak.start("objects", seed + 2, &Soak::objects);
  soak.start("tasks", seed + 3, &Soak::tasks);
  soak.start("groups", seed + 4, &Soak::groups);
  soak.start("streams", seed + 5, &Soak::streams);
  soak.run_for(std::chrono::seconds(std::atoi(argv[1])));
  return soak.finish();
} catch (const troupe::Error& error) {
  std::cerr << error.to_string() << "\n";
  return 1;
}
