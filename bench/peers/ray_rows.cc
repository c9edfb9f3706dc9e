// The rows of bench/core that Ray's C++ API can run, against a Ray that runs already (RAY_ADDRESS).
// ray_rows.py starts it. Built twice: as a program, and as the library that Ray's workers load.
#include <fmt/format.h>
#include <ray/api.h>

#include <chrono>
#include <cstdlib>
#include <string>
#include <vector>

#include "../core/harness.h"

using Refs = std::vector<ray::ObjectRef<std::string>>;

std::string small_value() {
  return "ok";
}
std::string run_small_tasks(int count) {
  Refs refs;
  for (int i = 0; i < count; ++i) refs.push_back(ray::Task(small_value).Remote());
  ray::Get(refs);
  return "ok";
}
std::string put_small_ones(int count) {
  for (int i = 0; i < count; ++i) ray::Put(0);
  return "ok";
}
RAY_REMOTE(small_value, run_small_tasks, put_small_ones);

class Server {
 public:
  static Server* make() { return new Server; }
  std::string small_value() { return "ok"; }
  std::string run_small_tasks(int count) { return ::run_small_tasks(count); }
};
RAY_REMOTE(Server::make, &Server::small_value, &Server::run_small_tasks);

namespace {

using bench::Harness;

// An actor that names no resources holds none while it runs.
ray::ActorHandle<Server> make_server() {
  auto server = ray::Actor(Server::make).Remote();
  ray::Get(server.Task(&Server::small_value).Remote());
  return server;
}

void task_rows(Harness& harness) {
  harness.row("single_client_tasks_sync", [&] {
    harness.measure({.name = "single_client_tasks_sync", .is_one_call = true},
                    [] { ray::Get(ray::Task(small_value).Remote()); });
  });
  harness.row("single_client_tasks_async", [&] {
    harness.measure({.name = "single_client_tasks_async", .multiplier = 1000},
                    [] { run_small_tasks(1000); });
  });
  harness.row("multi_client_tasks_async", [&] {
    std::vector<ray::ActorHandle<Server>> clients;
    for (int i = 0; i < 4; ++i) clients.push_back(make_server());
    harness.measure({.name = "multi_client_tasks_async", .multiplier = 40'000}, [&] {
      Refs refs;
      for (auto& client : clients) {
        refs.push_back(client.Task(&Server::run_small_tasks).Remote(10'000));
      }
      ray::Get(refs);
    });
    for (auto& client : clients) client.Kill();
  });
  harness.row("single_client_wait_1k_refs", [&] {
    harness.measure({.name = "single_client_wait_1k_refs", .unit = "rounds/s", .calls = 1000}, [] {
      Refs pending;
      for (int i = 0; i < 1000; ++i) pending.push_back(ray::Task(small_value).Remote());
      while (!pending.empty()) {
        auto waited = ray::Wait(pending, 1, 60'000);
        pending.assign(waited.unready.begin(), waited.unready.end());
      }
    });
  });
}

void actor_rows(Harness& harness) {
  harness.row("1_1_actor_calls_sync", [&] {
    auto server = make_server();
    harness.measure({.name = "1_1_actor_calls_sync", .is_one_call = true},
                    [&] { ray::Get(server.Task(&Server::small_value).Remote()); });
    server.Kill();
  });
  harness.row("1_1_actor_calls_async", [&] {
    auto server = make_server();
    harness.measure({.name = "1_1_actor_calls_async", .multiplier = 1000}, [&] {
      Refs refs;
      for (int i = 0; i < 1000; ++i) refs.push_back(server.Task(&Server::small_value).Remote());
      ray::Get(refs);
    });
    server.Kill();
  });
}

void object_rows(Harness& harness) {
  harness.row("single_client_get_calls", [&] {
    auto ref = ray::Put(0);
    harness.measure({.name = "single_client_get_calls", .is_one_call = true},
                    [&] { ray::Get(ref); });
  });
  harness.row("single_client_put_calls", [&] {
    harness.measure({.name = "single_client_put_calls", .is_one_call = true}, [] { ray::Put(0); });
  });
  harness.row("multi_client_put_calls", [&] {
    harness.measure({.name = "multi_client_put_calls", .multiplier = 1000}, [] {
      Refs refs;
      for (int i = 0; i < 10; ++i) refs.push_back(ray::Task(put_small_ones).Remote(100));
      ray::Get(refs);
    });
  });
  harness.row("single_client_put_gigabytes", [&] {
    // As text: its serialiser writes numbers one by one.
    const std::string array(size_t{800} * 1024 * 1024, '\0');
    harness.measure(
        {.name = "single_client_put_gigabytes", .unit = "GB/s", .multiplier = 0.8, .calls = 1},
        [&] { ray::Put(array); });
  });
}

}  // namespace

int main(int argc, char** argv) {
  const auto options = bench::read_options(argc, argv);
  if (!options) return 2;
  const char* mark = std::getenv("RAY_ROWS_MARK");
  const char* library = std::getenv("RAY_ROWS_LIBRARY");
  if (mark == nullptr || library == nullptr) {
    fmt::print(stderr, "ray_rows.py starts this\n");
    return 2;
  }
  const bench::Processes processes{std::string("RAY_ROWS_MARK=") + mark};
  Harness harness{*options, processes};
  ray::RayConfig config;
  config.code_search_path = {library};
  ray::Init(config);
  task_rows(harness);
  actor_rows(harness);
  object_rows(harness);
  ray::Shutdown();
  return harness.all_good() ? 0 : 1;
}
