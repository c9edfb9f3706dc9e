// How many placement groups a second can be created and removed again, each durably: one after the
// other, and many at a time, over a real cluster.
#include <fcntl.h>
#include <fmt/format.h>
#include <stdlib.h>
#include <troupe/troupe.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <future>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace {

using Clock = std::chrono::steady_clock;
// Disks and machines that are shared change from second to second: so short windows, in turns.
constexpr auto window = std::chrono::milliseconds(600);
constexpr int rounds = 5;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

void row(std::string_view name, double value, std::string_view unit) {
  fmt::print("{{\"name\":\"placement/{}\",\"value\":{:.4g},\"unit\":\"{}\"}}\n", name, value, unit);
}

// Small appends to a file of their own, each synced.
double fdatasync_rate(const std::string& folder) {
  const std::string path = folder + "/sync";
  const int file = ::open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
  if (file < 0) return 0;
  const std::string record(512, 'x');
  const auto start = Clock::now();
  uint64_t count = 0;
  while (Clock::now() - start < window / 2) {
    if (::write(file, record.data(), record.size()) < 0 || ::fdatasync(file) != 0) break;
    ++count;
  }
  const double rate = static_cast<double>(count) / seconds_since(start);
  ::close(file);
  return rate;
}

troupe::PlacementGroupOptions one_bundle() {
  return {.bundles = {{.cpu = 0.001}}};
}

double sequential(const troupe::Session& session) {
  const auto start = Clock::now();
  uint64_t pairs = 0;
  while (Clock::now() - start < window) {
    session.create_placement_group(one_bundle()).value().remove().value();
    ++pairs;
  }
  return static_cast<double>(pairs) / seconds_since(start);
}

// Each lane creates a group, then removes it, then creates the next.
struct Lane {
  std::future<troupe::Result<troupe::PlacementGroup>> created;
  std::future<troupe::Status> removed;
};

double outstanding(const troupe::Session& session, size_t lanes_count) {
  std::vector<Lane> lanes(lanes_count);
  for (Lane& lane : lanes) lane.created = session.create_placement_group_async(one_bundle());
  const auto start = Clock::now();
  uint64_t pairs = 0;
  while (Clock::now() - start < window) {
    for (Lane& lane : lanes) {
      if (lane.created.valid()) {
        lane.removed = lane.created.get().value().remove_async();
      } else {
        lane.removed.get().value();
        ++pairs;
        lane.created = session.create_placement_group_async(one_bundle());
      }
    }
  }
  const double rate = static_cast<double>(pairs) / seconds_since(start);
  for (Lane& lane : lanes) {
    if (lane.created.valid()) lane.removed = lane.created.get().value().remove_async();
    lane.removed.get().value();
  }
  return rate;
}

double median(std::vector<double> values) {
  std::ranges::sort(values);
  return values[values.size() / 2];
}

void measure(const std::string& folder) {
  const auto session = troupe::connect().value();
  const std::vector<size_t> lanes{100, 500, 2000};
  std::vector<double> syncs, one, ratio;
  std::vector<std::vector<double>> many(lanes.size());
  for (int round = 0; round < rounds; ++round) {
    syncs.push_back(fdatasync_rate(folder));
    one.push_back(sequential(session));
    ratio.push_back(one.back() / (syncs.back() / 2));
    for (size_t i = 0; i < lanes.size(); ++i) many[i].push_back(outstanding(session, lanes[i]));
  }
  row("fdatasync", median(syncs), "per second");
  row("sequential", median(one), "pairs/s");
  row("sequential_over_half_fdatasync", median(ratio), "ratio");
  for (size_t i = 0; i < lanes.size(); ++i) {
    row(fmt::format("outstanding_{}", lanes[i]), median(many[i]), "pairs/s");
    row(fmt::format("outstanding_{}.max", lanes[i]), *std::ranges::max_element(many[i]), "pairs/s");
  }
}

}  // namespace

int main() try {
  std::string folder = std::filesystem::temp_directory_path() / "troupe-bench-XXXXXX";
  if (::mkdtemp(folder.data()) == nullptr) return 1;
  ::setenv("TROUPE_STATE", (folder + "/state").c_str(), 1);
  const std::string tool = TROUPE_TOOL;
  int status = 1;
  if (std::system((tool + " up --workers 2 --gateway-port -1 > /dev/null").c_str()) == 0) {
    try {
      measure(folder);
      status = 0;
    } catch (const troupe::Error& error) {
      fmt::print(stderr, "{}\n", error.to_string());
    }
    if (std::system((tool + " down > /dev/null").c_str()) != 0) status = 1;
  }
  std::error_code ignored;
  std::filesystem::remove_all(folder, ignored);
  return status;
} catch (const std::exception& error) {
  fmt::print(stderr, "{}\n", error.what());
  return 1;
}
