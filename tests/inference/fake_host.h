// A host inside the test: it keeps what an actor says.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "troupe/plugin.h"

struct troupe_call {
  bool streams = true;
  bool cancelled = false;
  size_t room = SIZE_MAX;  // Items that it takes before it is full.
  std::vector<std::string> items;
  bool finished = false;
  int32_t code = TROUPE_OK;
  std::string reply;  // Or the message of a failure.
};

struct troupe_context {
  std::map<std::string, double> metrics;
};

namespace troupe::inference {

inline void end_call(troupe_call* call, int32_t code, std::string text) {
  if (call->finished) std::abort();  // A call is finished exactly once.
  call->finished = true;
  call->code = code;
  call->reply = std::move(text);
}

inline const troupe_host& fake_host() {
  static const troupe_host host = [] {
    troupe_host made{};
    made.size = sizeof made;
    made.abi_major = TROUPE_ABI_MAJOR;
    made.metric_set = [](troupe_context* context, const char* name, double value) {
      context->metrics[name] = value;
    };
    made.call_reply = [](troupe_call* call, troupe_bytes value) {
      end_call(call, TROUPE_OK, {reinterpret_cast<const char*>(value.data), value.size});
    };
    made.call_fail = [](troupe_call* call, int32_t code, const char* message) {
      end_call(call, code, message);
    };
    made.call_emit = [](troupe_call* call, troupe_bytes item) -> int32_t {
      if (call->cancelled) return TROUPE_CANCELLED;
      if (!call->streams) return TROUPE_INVALID;
      if (call->room == 0) return TROUPE_EXHAUSTED;
      --call->room;
      call->items.emplace_back(reinterpret_cast<const char*>(item.data), item.size);
      return TROUPE_OK;
    };
    made.call_cancelled = [](const troupe_call* call) -> int32_t { return call->cancelled; };
    made.call_streams = [](const troupe_call* call) -> int32_t { return call->streams; };
    return made;
  }();
  return host;
}

// An actor of the first class of the module that this program was linked with.
class FakeActor {
 public:
  explicit FakeActor(const std::string& config) {
    const troupe_plugin* plugin = nullptr;
    if (troupe_plugin_query(&fake_host(), &plugin) != TROUPE_OK) std::abort();
    type_ = plugin->classes[0];
    char text[2048];
    troupe_text message{text, sizeof text, 0};
    const troupe_bytes argument = bytes(config);
    code = type_->create(&context, 0, &argument, 1, &instance_, &message);
    error.assign(text, message.size);
  }
  FakeActor(const FakeActor&) = delete;
  ~FakeActor() {
    if (instance_ != nullptr) type_->destroy(instance_);
  }

  std::unique_ptr<troupe_call> call(const std::string& method, const std::string& argument,
                                    troupe_call settings = {}) {
    auto made = std::make_unique<troupe_call>(std::move(settings));
    const troupe_bytes view = bytes(argument);
    type_->call(instance_, made.get(), method.c_str(), 0, &view, 1);
    return made;
  }
  int32_t step() {
    const troupe_step_budget budget{sizeof budget, 1000};
    troupe_text message{nullptr, 0, 0};
    return type_->step(instance_, &budget, &message);
  }
  // Until nothing is left to do; false if that does not come.
  bool run() {
    for (int i = 0; i < 200000; ++i) {
      const int32_t more = step();
      if (more != TROUPE_STEP_AGAIN) return more == TROUPE_STEP_IDLE;
    }
    return false;
  }
  int32_t pause() { return type_->pause(instance_, nullptr); }
  int32_t resume() { return type_->resume(instance_, nullptr); }

  troupe_context context;
  int32_t code = TROUPE_OK;  // Of the creation.
  std::string error;

 private:
  static troupe_bytes bytes(const std::string& text) {
    return {reinterpret_cast<const uint8_t*>(text.data()), text.size()};
  }

  const troupe_actor_class* type_ = nullptr;
  void* instance_ = nullptr;
};

}  // namespace troupe::inference
