// Commits a second by N concurrent committers: with group commit, and one sync a commit.
// Usage: bench_metadata [DIRECTORY], on the disk to be measured; by default beside the program. The
// store is a folder of its own there, removed at the end.
#include <fmt/format.h>
#include <stdlib.h>

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/thread_pool.hpp>
#include <chrono>
#include <filesystem>
#include <string>
#include <string_view>

#include "metadata/group_commit.h"
#include "metadata/rocks_store.h"

namespace asio = boost::asio;
using namespace troupe;
using SteadyClock = std::chrono::steady_clock;

namespace {

constexpr auto run_for = std::chrono::seconds{2};

Batch one_row(int who, int round) {
  Batch batch;
  batch.put(Table::actors, std::to_string(who), std::to_string(round) + std::string(200, 'x'));
  return batch;
}

void row(std::string_view name, double value, std::string_view unit) {
  fmt::print("{{\"name\":\"metadata/{}\",\"value\":{:.4g},\"unit\":\"{}\"}}\n", name, value, unit);
}

double seconds_since(SteadyClock::time_point start) {
  return std::chrono::duration<double>(SteadyClock::now() - start).count();
}

Status measure_naive(Store& store) {
  const auto start = SteadyClock::now();
  int done = 0;
  for (; SteadyClock::now() - start < run_for; ++done) {
    TROUPE_CHECK(store.commit(one_row(done % 256, done), 1));
  }
  row("one_sync_each", done / seconds_since(start), "commit/s");
  return ok();
}

Async<void> commit_until(GroupCommit& commits, int who, SteadyClock::time_point end, int& done,
                         Status& outcome) {
  for (int round = 0; SteadyClock::now() < end; ++round) {
    Batch batch = one_row(who, round);
    const Status committed = co_await commits.commit(std::move(batch));
    if (!committed) {
      outcome = committed;
      co_return;
    }
    ++done;
  }
}

Status measure_group(Store& store, int committers) {
  asio::io_context loop;
  asio::thread_pool pool{1};
  GroupCommit commits{loop.get_executor(), store, pool.get_executor(), {.epoch = 1}};
  const auto start = SteadyClock::now();
  int done = 0;
  Status outcome = ok();
  for (int who = 0; who < committers; ++who) {
    asio::co_spawn(loop, commit_until(commits, who, start + run_for, done, outcome),
                   asio::detached);
  }
  loop.run();
  const double took = seconds_since(start);
  pool.join();
  TROUPE_CHECK(outcome);
  row(fmt::format("group_commit.{}", committers), done / took, "commit/s");
  row(fmt::format("group_commit.{}.syncs", committers), static_cast<double>(commits.syncs()) / took,
      "sync/s");
  return ok();
}

Status measure(const std::string& directory) {
  SystemRandom random;
  const RocksOptions options{.create = true, .cluster_id = ClusterId::random(random)};
  TROUPE_TRY(const auto store, open_rocksdb(directory, options));
  TROUPE_CHECK(measure_naive(*store));
  for (const int committers : {1, 16, 256}) TROUPE_CHECK(measure_group(*store, committers));
  return ok();
}

}  // namespace

int main(int count, char** arguments) {
  namespace fs = std::filesystem;
  if (count > 2) {
    fmt::print(stderr, "usage: bench_metadata [DIRECTORY]\n");
    return 2;
  }
  const fs::path parent =
      count == 2 ? fs::path(arguments[1]) : fs::read_symlink("/proc/self/exe").parent_path();
  std::string folder = parent / "bench_metadata_XXXXXX";
  if (::mkdtemp(folder.data()) == nullptr) {
    fmt::print(stderr, "cannot make {}\n", folder);
    return 1;
  }
  const Status measured = measure(folder);
  fs::remove_all(folder);
  if (!measured) fmt::print(stderr, "{}\n", measured.error().to_string());
  return measured ? 0 : 1;
}
