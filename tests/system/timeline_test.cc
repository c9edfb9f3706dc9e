// `troupe timeline` over a real cluster of two workers.
#include <gtest/gtest.h>
#include <signal.h>

#include <boost/json.hpp>
#include <fstream>
#include <map>
#include <set>
#include <sstream>

#include "tests/system/cluster.h"

namespace troupe::test {
namespace {

namespace json = boost::json;
using Events = std::vector<json::object>;

std::string text(const json::object& object, std::string_view key) {
  const auto* value = object.if_contains(key);
  return value != nullptr && value->is_string() ? std::string(value->as_string()) : "";
}
std::string argument(const json::object& event, std::string_view key) {
  return text(event.at("args").as_object(), key);
}
double number(const json::object& object, std::string_view key) {
  return object.at(key).to_number<double>();
}

struct Trace {
  explicit Trace(const std::string& written) {
    json::error_code failed;
    const json::value whole = json::parse(written, failed);
    EXPECT_FALSE(failed) << failed.message() << "\n" << written.substr(0, 2000);
    if (failed) return;
    for (const json::value& event : whole.at("traceEvents").as_array()) {
      events.push_back(event.as_object());
    }
  }
  Events of(const std::string& phase, const std::string& category, const std::string& name) const {
    Events found;
    for (const json::object& event : events) {
      const bool is_it = text(event, "ph") == phase && text(event, "cat") == category &&
                         (name.empty() || text(event, "name") == name);
      if (is_it) found.push_back(event);
    }
    return found;
  }
  std::string process_of(const json::object& event) const {
    for (const json::object& other : events) {
      if (text(other, "name") == "process_name" && other.at("pid") == event.at("pid")) {
        return argument(other, "name");
      }
    }
    return {};
  }
  bool names_process_of(const std::string& node) const {
    return std::ranges::any_of(events, [&](const json::object& event) {
      return text(event, "name") == "process_name" &&
             argument(event, "name").find(node) != std::string::npos;
    });
  }
  Events events;
};

class TimelineSystem : public testing::Test {
 protected:
  void up(const std::vector<std::string>& more = {}) {
    std::vector<std::string> arguments{
        "--workers", "2",       "--cpus",       "2",       "--store-mib", "64", "--gateway-port",
        "-1",        "--label", "worker-0:n=0", "--label", "worker-1:n=1"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    const Outcome started = cluster.up(arguments);
    ASSERT_EQ(started.status, 0) << started.err;
  }
  void run_program(const std::string& name) {
    const Outcome outcome = cluster.program("traced", {name});
    ASSERT_EQ(outcome.status, 0) << outcome.err << outcome.out;
  }
  Trace trace(std::vector<std::string> more = {}) {
    more.insert(more.begin(), {"timeline", "-o", "-"});
    const Outcome outcome = cluster.troupe(more);
    EXPECT_EQ(outcome.status, 0) << outcome.err;
    EXPECT_EQ(outcome.err, "");
    return Trace{outcome.out};
  }
  Cluster cluster;
};

TEST_F(TimelineSystem, ShowsWhatHappenedWhen) {
  ASSERT_NO_FATAL_FAILURE(up());
  ASSERT_NO_FATAL_FAILURE(run_program("all"));
  const Trace trace = this->trace();

  // Each submission is joined to its run, which began after it; and what waited shows that.
  std::map<std::string, json::object> submitted;
  for (const auto& event : trace.of("X", "submit", "submit work")) {
    submitted[argument(event, "id")] = event;
  }
  EXPECT_EQ(submitted.size(), 20u);
  const auto runs = trace.of("X", "run", "work");
  EXPECT_EQ(runs.size(), 20u);
  for (const auto& run : runs) {
    const auto found = submitted.find(argument(run, "id"));
    ASSERT_NE(found, submitted.end());
    EXPECT_LT(number(found->second, "ts"), number(run, "ts"));
    EXPECT_GE(number(run, "dur"), 5000) << "it sleeps so long";
    EXPECT_NE(trace.process_of(run).find("actor"), std::string::npos);
    EXPECT_NE(trace.process_of(found->second).find("driver"), std::string::npos);
  }
  std::set<std::string> begins, ends;
  for (const auto& flow : trace.of("s", "call", "call")) begins.insert(text(flow, "id"));
  for (const auto& flow : trace.of("f", "call", "call")) ends.insert(text(flow, "id"));
  EXPECT_GE(begins.size(), 24u);
  EXPECT_EQ(begins, ends);
  EXPECT_FALSE(trace.of("b", "queued", "queued work").empty());
  EXPECT_EQ(trace.of("b", "queued", "").size(), trace.of("e", "queued", "").size());
  EXPECT_FALSE(trace.of("X", "wait", "get").empty());

  const auto failed = trace.of("X", "run", "fail_at_once");
  ASSERT_EQ(failed.size(), 1u);
  EXPECT_TRUE(failed[0].at("args").as_object().contains("failed"));

  // The last thing that the killed process did.
  const auto crash = trace.of("X", "run", "crash");
  ASSERT_EQ(crash.size(), 1u);
  EXPECT_EQ(argument(crash[0], "unfinished"), "its process ended");
  EXPECT_TRUE(trace.process_of(crash[0]).ends_with("(ended)")) << trace.process_of(crash[0]);
  EXPECT_EQ(trace.of("X", "start", "start MakeCrasher").size(), 1u);
  EXPECT_EQ(trace.of("X", "start", "restart MakeCrasher").size(), 1u);
  EXPECT_EQ(trace.of("X", "run", "add").size(), 2u);

  const auto stored = trace.of("X", "object", "store");
  ASSERT_FALSE(stored.empty());
  EXPECT_EQ(number(stored[0].at("args").as_object(), "bytes"), (1 << 20) * 8 + 8);
  const auto pulls = trace.of("X", "transfer", "");
  ASSERT_EQ(pulls.size(), 1u);
  EXPECT_NEAR(number(pulls[0].at("args").as_object(), "bytes"), (8 << 20) + 8, 8);
  EXPECT_NE(trace.process_of(pulls[0]).find("worker-0"), std::string::npos);
  EXPECT_FALSE(trace.of("X", "start", "start process of tasks").empty());
}

TEST_F(TimelineSystem, ShowsOneJobAloneAndWritesFiles) {
  ASSERT_NO_FATAL_FAILURE(up());
  ASSERT_NO_FATAL_FAILURE(run_program("all"));
  ASSERT_EQ(cluster.program("hello_task").status, 0);
  std::string job;
  const auto jobs = json::parse(cluster.troupe({"list", "jobs", "-o", "json"}).out);
  for (const auto& one : jobs.as_array()) {
    if (one.at("entrypoint").as_string().find("traced") != std::string::npos) {
      job = one.at("id").as_string();
    }
  }
  const Trace all = trace();
  EXPECT_EQ(all.of("X", "run", "greet").size(), 1u);
  const Trace one = trace({"--job", job});
  EXPECT_TRUE(one.of("X", "run", "greet").empty());
  EXPECT_EQ(one.of("X", "run", "work").size(), 20u);

  const auto path = cluster.folder() / "trace.json";
  const Outcome written = cluster.troupe({"timeline", "--output", path});
  EXPECT_EQ(written.status, 0) << written.err;
  EXPECT_NE(written.out.find("perfetto"), std::string::npos) << written.out;
  std::ostringstream file;
  file << std::ifstream{path}.rdbuf();
  EXPECT_EQ(Trace{file.str()}.of("X", "run", "greet").size(), 1u);
  EXPECT_FALSE(std::filesystem::exists(path.string() + ".partial"));

  EXPECT_EQ(cluster.troupe({"timeline", "-o", "-", "--job", std::string(32, 'a')}).status, 3);
  EXPECT_EQ(cluster.troupe({"timeline", "--job", "nonsense"}).status, 1);
  const Outcome nowhere = cluster.troupe({"timeline", "-o", cluster.folder() / "none" / "trace"});
  EXPECT_EQ(nowhere.status, 1);
  EXPECT_NE(nowhere.err.find("No such file"), std::string::npos) << nowhere.err;
}

TEST_F(TimelineSystem, OfABusyProcessShowsOneCallOfMany) {
  ASSERT_NO_FATAL_FAILURE(up());
  ASSERT_NO_FATAL_FAILURE(run_program("busy"));
  const Trace trace = this->trace();
  const auto runs = trace.of("X", "run", "add");
  EXPECT_GT(runs.size(), 500u);
  EXPECT_LT(runs.size(), 100'000u);
  const auto sampled = [](const json::object& event) {
    return argument(event, "sampled").starts_with("1 of ");
  };
  EXPECT_TRUE(std::ranges::any_of(runs, sampled));
  // Caller and callee chose the same calls.
  std::set<std::string> submitted;
  for (const auto& event : trace.of("X", "submit", "")) submitted.insert(argument(event, "id"));
  size_t joined = 0;
  for (const auto& run : runs) joined += submitted.count(argument(run, "id"));
  EXPECT_GT(joined, runs.size() / 10);
}

TEST_F(TimelineSystem, ANodeThatDoesNotAnswerIsNamedAndLeftOut) {
  ASSERT_NO_FATAL_FAILURE(up());
  ASSERT_NO_FATAL_FAILURE(run_program("all"));
  const int pid = std::stoi(cluster.describe("worker-1", "pid"));
  ASSERT_EQ(::kill(pid, SIGSTOP), 0);
  const Outcome outcome = cluster.troupe({"timeline", "-o", "-"});
  EXPECT_EQ(outcome.status, 0) << outcome.err;
  EXPECT_NE(outcome.err.find("without node worker-1"), std::string::npos) << outcome.err;
  const Trace trace{outcome.out};
  EXPECT_TRUE(trace.names_process_of("worker-0"));
  EXPECT_FALSE(trace.names_process_of("worker-1"));
  // With none left there is nothing to show.
  const int other = std::stoi(cluster.describe("worker-0", "pid"));
  ASSERT_EQ(::kill(other, SIGSTOP), 0);
  const Outcome nothing = cluster.troupe({"timeline", "-o", cluster.folder() / "none.json"});
  EXPECT_EQ(nothing.status, 5) << nothing.err;
  EXPECT_FALSE(std::filesystem::exists(cluster.folder() / "none.json"));
  ::kill(pid, SIGCONT);
  ::kill(other, SIGCONT);
}

TEST_F(TimelineSystem, IsTurnedOff) {
  ::setenv("TROUPE_TIMELINE", "0", 1);
  up();
  const Outcome hello = cluster.program("hello_task");
  ::unsetenv("TROUPE_TIMELINE");
  EXPECT_EQ(hello.status, 0) << hello.err;
  const Outcome nothing = cluster.troupe({"timeline", "-o", "-"});
  EXPECT_EQ(nothing.status, 3);
  EXPECT_NE(nothing.err.find("TROUPE_TIMELINE=0"), std::string::npos) << nothing.err;
}

}  // namespace
}  // namespace troupe::test
