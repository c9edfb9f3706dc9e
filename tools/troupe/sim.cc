// `troupe sim`: a recorded trace replayed through the scheduler.
#include <boost/json.hpp>
#include <cmath>
#include <fstream>
#include <sstream>

#include "scheduler/replay/replay.h"
#include "troupe/commands.h"
#include "troupe/output.h"

namespace troupe::tools {

namespace {

Result<std::string> read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) return error(Code::not_found, "cannot read the trace " + path);
  std::stringstream text;
  text << file.rdbuf();
  if (file.bad()) return error(Code::data_loss, "cannot read all of the trace " + path);
  return std::move(text).str();
}

int64_t whole(double value) {
  return std::llround(value);
}
double thousandths(double value) {
  return std::round(value * 1000) / 1000;
}

boost::json::object row_of(const std::string& policy, const scheduler::ReplayResult& result) {
  return {{"policy", policy},
          {"jobs", result.jobs},
          {"infeasible", result.infeasible},
          {"jct_avg_s", whole(result.jct_avg_s)},
          {"jct_p50_s", whole(result.jct_p50_s)},
          {"jct_p90_s", whole(result.jct_p90_s)},
          {"jct_p99_s", whole(result.jct_p99_s)},
          {"jct_max_s", whole(result.jct_max_s)},
          {"first_wait_avg_s", whole(result.first_wait_avg_s)},
          {"makespan_s", whole(result.makespan_s)},
          {"utilisation", thousandths(result.utilisation)},
          {"jain", thousandths(result.jain)},
          {"slowdown_worst", whole(result.slowdown_worst)},
          {"preemptions", result.preemptions},
          {"lost_gpu_s", whole(result.lost_gpu_s)}};
}

}  // namespace

int run_sim(const CommonOptions& common, const SimOptions& options) {
  const auto text = read_file(options.trace);
  if (!text) return fail(text.error());
  const auto trace = scheduler::read_trace(*text);
  if (!trace) return fail(trace.error());
  boost::json::array rows;
  for (const std::string& name : options.policies) {
    auto policy = scheduler::make_policy(name);
    if (!policy) return fail(policy.error());
    scheduler::ReplayOptions replay;
    replay.policy = std::move(*policy);
    replay.nodes = options.nodes;
    replay.gpus_per_node = options.gpus;
    replay.tells_run_times = !options.blind;
    replay.restart_cost = std::chrono::nanoseconds(std::llround(options.restart_cost_s * 1e9));
    rows.push_back(row_of(name, scheduler::replay(*trace, std::move(replay))));
  }
  print(rows, common.format);
  return 0;
}

}  // namespace troupe::tools
