// Single large things, timed once each, and what a cluster costs that does nothing.
#include <poll.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <numeric>

#include "rows.h"

namespace bench {

// Holds its cpu until the file is gone.
void run_while_exists(const std::string& path) {
  while (std::filesystem::exists(path)) ::poll(nullptr, 0, 2);
}
TROUPE_TASK(run_while_exists);

// As many results, each an object of its own.
std::vector<int64_t> many_results(int64_t count) {
  std::vector<int64_t> values(static_cast<size_t>(count));
  std::iota(values.begin(), values.end(), 0);
  return values;
}
TROUPE_TASK(many_results);

using Shorts = std::vector<int16_t>;

int64_t sum_all(const std::vector<troupe::ObjectRef<Shorts>>& refs) {
  int64_t total = 0;
  const auto session = troupe::connect().value();
  for (const auto& values : session.view(refs, patience).value()) {
    total = std::accumulate(values.begin(), values.end(), total);
  }
  return total;
}
TROUPE_TASK(sum_all);

namespace {

constexpr int64_t object_count = 10'000;
constexpr size_t object_length = 10'000;

// All cpus are held while the tasks queue up, so that none runs before the last is there.
void drain_a_million(Harness& harness, const troupe::Session& session) {
  constexpr int64_t count = 1'000'000;
  const std::string path = std::string(std::getenv("TROUPE_STATE")) + "/hold";
  std::ofstream{path} << "held\n";
  std::vector<troupe::ObjectRef<void>> holders;
  for (unsigned i = 0; i < std::thread::hardware_concurrency(); ++i) {
    holders.push_back(session.submit(run_while_exists, path));
  }
  const uint64_t memory_before = resident_bytes();
  std::vector<troupe::ObjectRef<std::string>> refs;
  refs.reserve(count);
  const double submit_s = seconds_of([&] {
    for (int64_t i = 0; i < count; ++i) refs.push_back(session.submit(small_value));
  });
  const auto memory = static_cast<double>(resident_bytes() - memory_before);
  std::filesystem::remove(path);
  const double drain_s = seconds_of([&] { get_all(session, refs); });
  harness.print(
      "queued_million_drain_s", submit_s + drain_s, "s",
      {{"submit_s", submit_s}, {"drain_s", drain_s}, {"bytes_each_while_queued", memory / count}});
}

// A call's arguments are as many as its function has parameters, so the 10,000 come as one list of
// refs whose values the task reads. Ray's are lists of 10,000 small integers, 20 kB each on the
// wire.
void many_arguments(Harness& harness, const troupe::Session& session) {
  const Shorts values(object_length, 1);
  int64_t total = 0;
  std::vector<troupe::ObjectRef<Shorts>> refs;
  const double put_s = seconds_of([&] {
    for (int64_t i = 0; i < object_count; ++i) refs.push_back(session.put(values).value());
  });
  const double read_s =
      seconds_of([&] { total = session.submit(sum_all, refs).get(patience).value(); });
  if (total != object_count * static_cast<int64_t>(object_length)) {
    throw std::runtime_error("the sum is wrong");
  }
  harness.print("args_10k_s", put_s + read_s, "s", {{"put_s", put_s}, {"read_s", read_s}});
}

void get_many(Harness& harness, const troupe::Session& session) {
  using Numbers = std::vector<int64_t>;
  Numbers values(object_length);
  std::iota(values.begin(), values.end(), 0);
  std::vector<troupe::ObjectRef<Numbers>> refs;
  const double put_s = seconds_of([&] {
    for (int64_t i = 0; i < object_count; ++i) refs.push_back(session.put(values).value());
  });
  std::vector<troupe::View<Numbers>> got;
  const double get_s = seconds_of([&] { got = session.view(refs, patience).value(); });
  for (const auto& one : got) {
    if (!std::ranges::equal(one, values)) throw std::runtime_error("a value is wrong");
  }
  got.clear();
  const double copied_s = seconds_of([&] { (void)session.get(refs, patience).value(); });
  harness.print("get_10k_objects_s", get_s, "s", {{"put_s", put_s}, {"copied_s", copied_s}});
}

void returns_of_a_task(Harness& harness, const troupe::Session& session) {
  constexpr uint32_t count = 3000;
  (void)session.submit_many({.returns = 1}, many_results, 1).at(0).get(patience).value();
  std::vector<int64_t> got;
  const double took = seconds_of([&] {
    got =
        session.get(session.submit_many({.returns = count}, many_results, count), patience).value();
  });
  if (got.size() != count || got.back() != count - 1) throw std::runtime_error("a value is wrong");
  harness.print("returns_3k", took, "s");
}

void idle_worker(Harness& harness) {
  const pid_t worker = harness.processes().find("worker");
  if (worker == 0) throw std::runtime_error("no worker runs");
  const double wanted_s = std::max(2.0, harness.options().window_seconds * 2.5);
  const Activity before = activity_of(worker);
  const double took =
      seconds_of([&] { std::this_thread::sleep_for(std::chrono::duration<double>(wanted_s)); });
  const Activity after = activity_of(worker);
  harness.print("idle_worker_cpu_percent", (after.cpu_seconds - before.cpu_seconds) / took * 100,
                "percent",
                {{"wake_ups_per_s", static_cast<double>(after.sleeps - before.sleeps) / took}});
}

}  // namespace

void scale_rows(Harness& harness, const troupe::Session& session) {
  harness.row("idle_worker_cpu_percent", [&] { idle_worker(harness); });
  harness.row("args_10k_s", [&] { many_arguments(harness, session); });
  harness.row("get_10k_objects_s", [&] { get_many(harness, session); });
  harness.row("returns_3k", [&] { returns_of_a_task(harness, session); });
  harness.row("queued_million_drain_s", [&] { drain_a_million(harness, session); });
}

}  // namespace bench
