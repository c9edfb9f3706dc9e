// Tasks, of one client and of several.
#include "rows.h"

namespace bench {

std::string small_value() {
  return "ok";
}
TROUPE_TASK(small_value);

void run_small_tasks(const troupe::Session& session, int64_t count) {
  std::vector<troupe::ObjectRef<std::string>> refs;
  refs.reserve(static_cast<size_t>(count));
  for (int64_t i = 0; i < count; ++i) refs.push_back(session.submit(small_value));
  get_all(session, refs);
}

// A client of its own process.
class TaskClient {
 public:
  TaskClient() : session_(troupe::connect().value()) {}
  std::string run(int64_t count) {
    run_small_tasks(session_, count);
    return "ok";
  }

 private:
  troupe::Session session_;
};
TROUPE_ACTOR(TaskClient(), run);

namespace {

void several_clients(Harness& harness, const troupe::Session& session) {
  constexpr int64_t client_count = 4;
  constexpr int64_t task_count = 10'000;
  Actors<TaskClient> clients;
  for (int64_t i = 0; i < client_count; ++i) {
    clients.refs.push_back(session.create<TaskClient>({}).value());
  }
  clients.wait_alive();
  harness.measure({.name = "multi_client_tasks_async", .multiplier = client_count * task_count},
                  [&] {
                    std::vector<troupe::ObjectRef<std::string>> refs;
                    for (const auto& client : clients.refs) {
                      refs.push_back(client.call<&TaskClient::run>(task_count));
                    }
                    get_all(session, refs);
                  });
}

// As many waits as tasks; each gives one ref that is ready, and the next waits for the others.
void wait_one_by_one(const troupe::Session& session, size_t count) {
  std::vector<troupe::ObjectRef<std::string>> pending;
  for (size_t i = 0; i < count; ++i) pending.push_back(session.submit(small_value));
  while (!pending.empty()) {
    const auto waited = session.wait(pending, {.count = 1, .timeout = patience}).value();
    pending.erase(pending.begin() + static_cast<std::ptrdiff_t>(waited.ready.at(0)));
  }
}

}  // namespace

void task_rows(Harness& harness, const troupe::Session& session) {
  harness.row("single_client_tasks_sync", [&] {
    harness.measure({.name = "single_client_tasks_sync", .is_one_call = true},
                    [&] { (void)session.submit(small_value).get(patience).value(); });
  });
  harness.row("single_client_tasks_async", [&] {
    harness.measure({.name = "single_client_tasks_async", .multiplier = 1000},
                    [&] { run_small_tasks(session, 1000); });
  });
  harness.row("single_client_tasks_and_get_batch", [&] {
    harness.measure(
        {.name = "single_client_tasks_and_get_batch", .unit = "batches/s", .calls = 1000},
        [&] { run_small_tasks(session, 1000); });
  });
  harness.row("multi_client_tasks_async", [&] { several_clients(harness, session); });
  harness.row("single_client_wait_1k_refs", [&] {
    harness.measure({.name = "single_client_wait_1k_refs", .unit = "rounds/s", .calls = 1000},
                    [&] { wait_one_by_one(session, 1000); });
  });
}

}  // namespace bench
