// A host of plugins inside one process: each actor is an object, each rank of a group a thread.
#pragma once

#include <algorithm>
#include <condition_variable>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "base/bytes.h"
#include "troupe/plugin_class.h"

// What the opaque handles are here.
struct troupe_context {
  std::string id;
  troupe_actor_info info{};
  bool stopping = false;
};
struct troupe_call {
  std::vector<std::string> items;
  bool streams = true;
  bool cancelled = false;
  bool finished = false;
  int32_t code = TROUPE_OK;
  std::string reply;  // Or the failure's message.
  int32_t emit_answer = TROUPE_OK;
};

namespace troupe::testing {

// Meets all members of one generation of a group; sums in the order of ranks.
class Meeting {
 public:
  explicit Meeting(uint32_t world) : world_(world), contributions_(world) {}

  // Blocks until all have come; then `result` is the sum. False: a member left.
  bool sum(uint32_t rank, float* data, size_t count) {
    return meet(rank, {data, data + count}, [&](const auto& all) {
      for (size_t i = 0; i < count; ++i) {
        data[i] = 0;
        for (const auto& one : all) data[i] += one[i];
      }
    });
  }
  bool broadcast(uint32_t rank, uint32_t root, void* data, size_t size_bytes) {
    std::vector<float> words((size_bytes + 3) / 4);
    std::memcpy(words.data(), data, size_bytes);
    return meet(rank, std::move(words),
                [&](const auto& all) { std::memcpy(data, all[root].data(), size_bytes); });
  }
  void leave() {
    const std::lock_guard lock{mutex_};
    left_ = true;
    changed_.notify_all();
  }

 private:
  template <class Read>
  bool meet(uint32_t rank, std::vector<float> mine, const Read& read) {
    std::unique_lock lock{mutex_};
    changed_.wait(lock, [&] { return left_ || reading_ == 0; });
    if (left_ && reading_ == 0) return false;
    contributions_[rank] = std::move(mine);
    const uint64_t round = round_;
    if (++arrived_ == world_) {
      ++round_;
      arrived_ = 0;
      reading_ = world_;
      changed_.notify_all();
    }
    changed_.wait(lock, [&] { return left_ || round_ != round; });
    if (round_ == round) return false;
    read(contributions_);
    if (--reading_ == 0) changed_.notify_all();
    return true;
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  const uint32_t world_;
  std::vector<std::vector<float>> contributions_;
  uint64_t round_ = 0;
  uint32_t arrived_ = 0, reading_ = 0;
  bool left_ = false;
};

}  // namespace troupe::testing

struct troupe_group {
  std::shared_ptr<troupe::testing::Meeting> meeting;
  uint32_t rank = 0;
};

namespace troupe::testing {

struct Meetings {
  std::mutex mutex;
  std::map<std::string, std::shared_ptr<Meeting>> by_name;
};
inline Meetings meetings;

inline int32_t gone(troupe_text* message) {
  return plugin::detail::put(error(Code::unavailable, "a member is gone"), message);
}

inline const troupe_host* fake_host() {
  static const troupe_host host = [] {
    troupe_host made{};
    made.size = sizeof made;
    made.abi_major = TROUPE_ABI_MAJOR;
    made.log = [](troupe_context*, int32_t, const char*, const char*) {};
    made.metric_set = [](troupe_context*, const char*, double) {};
    made.actor_info = [](troupe_context* context) -> const troupe_actor_info* {
      return &context->info;
    };
    made.call_reply = [](troupe_call* call, troupe_bytes value) {
      call->finished = true;
      call->reply = as_text({value.data, value.size});
    };
    made.call_fail = [](troupe_call* call, int32_t code, const char* message) {
      call->finished = true;
      call->code = code;
      call->reply = message;
    };
    made.call_emit = [](troupe_call* call, troupe_bytes item) -> int32_t {
      if (call->emit_answer != TROUPE_OK) return call->emit_answer;
      call->items.emplace_back(as_text({item.data, item.size}));
      return TROUPE_OK;
    };
    made.call_cancelled = [](const troupe_call* call) -> int32_t { return call->cancelled; };
    made.call_streams = [](const troupe_call* call) -> int32_t { return call->streams; };
    made.group_join = [](troupe_context*, const troupe_group_spec* spec, troupe_group** group,
                         troupe_text*) -> int32_t {
      const std::lock_guard lock{meetings.mutex};
      auto& meeting =
          meetings.by_name[std::string(spec->name) + "/" + std::to_string(spec->generation)];
      if (!meeting) meeting = std::make_shared<Meeting>(spec->world);
      *group = new troupe_group{meeting, spec->rank};
      return TROUPE_OK;
    };
    made.group_all_reduce_f32 = [](troupe_group* group, float* data, size_t count,
                                   troupe_text* message) -> int32_t {
      return group->meeting->sum(group->rank, data, count) ? TROUPE_OK : gone(message);
    };
    made.group_broadcast = [](troupe_group* group, uint32_t root, void* data, size_t size_bytes,
                              troupe_text* message) -> int32_t {
      return group->meeting->broadcast(group->rank, root, data, size_bytes) ? TROUPE_OK
                                                                            : gone(message);
    };
    made.group_leave = [](troupe_group* group) {
      group->meeting->leave();
      delete group;
    };
    made.stopping = [](troupe_context* context) -> int32_t { return context->stopping; };
    return made;
  }();
  return &host;
}

}  // namespace troupe::testing
