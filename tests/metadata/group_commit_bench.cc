// Commits a second by N concurrent committers: with group commit, and one sync a commit.
// Usage: group_commit_bench DIRECTORY (a fresh one, on the disk to be measured).
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/thread_pool.hpp>
#include <chrono>
#include <cstdio>
#include <string>

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

double seconds_since(SteadyClock::time_point start) {
  return std::chrono::duration<double>(SteadyClock::now() - start).count();
}

void measure_naive(Store& store) {
  const auto start = SteadyClock::now();
  int done = 0;
  for (; SteadyClock::now() - start < run_for; ++done) {
    if (!store.commit(one_row(done % 256, done), 1)) return;
  }
  std::printf("one sync a commit:            %8.0f commits/s\n", done / seconds_since(start));
}

Async<void> commit_until(GroupCommit& commits, int who, SteadyClock::time_point end, int& done) {
  for (int round = 0; SteadyClock::now() < end; ++round) {
    Batch batch = one_row(who, round);
    if (!co_await commits.commit(std::move(batch))) co_return;
    ++done;
  }
}

void measure_group(Store& store, int committers) {
  asio::io_context loop;
  asio::thread_pool pool{1};
  GroupCommit commits{loop.get_executor(), store, pool.get_executor(), {.epoch = 1}};
  const auto start = SteadyClock::now();
  int done = 0;
  for (int who = 0; who < committers; ++who) {
    asio::co_spawn(loop, commit_until(commits, who, start + run_for, done), asio::detached);
  }
  loop.run();
  std::printf("group commit, %4d committers: %8.0f commits/s, %6.0f syncs/s\n", committers,
              done / seconds_since(start),
              static_cast<double>(commits.syncs()) / seconds_since(start));
  pool.join();
}

}  // namespace

int main(int count, char** arguments) {
  if (count != 2) return 2;
  SystemRandom random;
  const RocksOptions options{.create = true, .cluster_id = ClusterId::random(random)};
  const auto store = open_rocksdb(arguments[1], options);
  if (!store) {
    std::fprintf(stderr, "%s\n", store.error().to_string().c_str());
    return 1;
  }
  measure_naive(**store);
  for (const int committers : {1, 16, 256}) measure_group(**store, committers);
}
