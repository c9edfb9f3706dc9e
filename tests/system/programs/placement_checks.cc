// A driver that checks placement from inside a real cluster of two workers: worker-0 has two fake
// GPUs, a license of 1.5 and zone=a, worker-1 two GPUs and zone=b; each has 2 cpus.
#include <poll.h>
#include <signal.h>
#include <troupe/troupe.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <functional>
#include <iostream>
#include <map>
#include <set>

using namespace std::chrono_literals;
using troupe::Code;
using troupe::Placement;
using troupe::Session;
namespace label = troupe::label;

namespace {

#define REQUIRE(condition)                                     \
  do {                                                         \
    if (!(condition)) {                                        \
      std::cerr << __LINE__ << ": not true: " #condition "\n"; \
      std::exit(1);                                            \
    }                                                          \
  } while (false)

std::string variable(const char* name) {
  const char* value = std::getenv(name);
  return value != nullptr ? value : "";
}

}  // namespace

std::string where() {
  return variable("TROUPE_NODE_ID");
}
TROUPE_TASK(where);
std::string gpus() {
  return variable("CUDA_VISIBLE_DEVICES");
}
TROUPE_TASK(gpus);
int64_t sleep_ms(int64_t ms) {
  ::poll(nullptr, 0, static_cast<int>(ms));
  return ms;
}
TROUPE_TASK(sleep_ms);
// Where a child runs of which nothing is said.
std::string where_child() {
  const auto session = troupe::connect().value();
  return session.submit({.resources = {.cpu = 0.5}}, where).get().value();
}
TROUPE_TASK(where_child);
// Whether a child would find room outside of the group.
bool child_finds_room_outside() {
  const auto session = troupe::connect().value();
  const troupe::TaskOptions outside{.resources = {.cpu = 1.5}, .placement = Placement::anywhere()};
  return session.submit(outside, where).get(20s).has_value();
}
TROUPE_TASK(child_finds_room_outside);

class Member {
 public:
  Member() {}
  std::string gpus() { return variable("CUDA_VISIBLE_DEVICES"); }
  std::string node() { return variable("TROUPE_NODE_ID"); }
  int64_t pid() { return ::getpid(); }
};
TROUPE_ACTOR(Member(), gpus, node, pid);

namespace {

std::string node_text(troupe::NodeId id) {
  return id.to_string();
}

void check_labels(const Session& session) {
  const auto on = [&](std::vector<troupe::LabelSelector> labels) {
    return session.submit({.resources = {.cpu = 0.5}, .placement = {.labels = std::move(labels)}},
                          where);
  };
  const std::string in_a = on({label::equals("zone", "a")}).get(20s).value();
  const std::string in_b = on({label::not_equals("zone", "a")}).get(20s).value();
  REQUIRE(in_a != in_b);
  REQUIRE(on({label::in("zone", {"b", "c"}), label::exists("zone")}).get(20s).value() == in_b);
  REQUIRE(on({label::equals("zone", "nowhere").soft()}).get(20s).has_value());
  const auto never = on({label::absent("zone")});
  REQUIRE(session.wait(std::vector{never}, {.timeout = 500ms})->ready.empty());
  session.cancel(never).value();
  // By node.
  const troupe::TaskOptions here{.resources = {.cpu = 0.5},
                                 .placement = Placement::on(session.node())};
  REQUIRE(session.submit(here, where).get(20s).value() == node_text(session.node()));
  const troupe::TaskOptions gone{.resources = {.cpu = 0.5},
                                 .placement = Placement::near(troupe::NodeId{{1, 1}})};
  REQUIRE(session.submit(gone, where).get(20s).has_value());
}

void check_custom_resources(const Session& session) {
  const troupe::TaskOptions licensed{.resources = {.cpu = 0.1, .custom = {{"license", 0.75}}}};
  const auto begun = std::chrono::steady_clock::now();
  std::vector<troupe::ObjectRef<int64_t>> refs;
  for (int i = 0; i < 4; ++i) refs.push_back(session.submit(licensed, sleep_ms, int64_t{300}));
  REQUIRE(session.get(refs, 30s).has_value());
  // Two at a time, for there are 1.5 of it.
  REQUIRE(std::chrono::steady_clock::now() - begun >= 590ms);
  const troupe::TaskOptions too_many{.resources = {.cpu = 0.1, .custom = {{"license", 2}}}};
  const auto never = session.submit(too_many, where);
  REQUIRE(session.wait(std::vector{never}, {.timeout = 500ms})->ready.empty());
  session.cancel(never).value();
}

void check_groups(const Session& session) {
  const auto group = session
                         .create_placement_group({.bundles = {{.cpu = 1.5}, {.cpu = 1.5}},
                                                  .strategy = troupe::GroupStrategy::strict_spread,
                                                  .name = "pair"})
                         .value();
  const auto placed = group.wait(20s).value();
  REQUIRE(placed.places.size() == 2 && placed.places[0].node != placed.places[1].node);
  REQUIRE(group.ready().value());
  REQUIRE(session.find_placement_group("pair")->id() == group.id());
  REQUIRE(session.create_placement_group({.bundles = {{}}, .name = "pair"}).error().code() ==
          Code::conflict);
  for (uint32_t bundle = 0; bundle < 2; ++bundle) {
    const troupe::TaskOptions inside{.placement = group.bundle(bundle)};
    REQUIRE(session.submit(inside, where).get(20s).value() ==
            node_text(placed.places[bundle].node));
  }
  // Half a core is free beside each bundle: a task of one has room in a bundle only.
  const auto outside = session.submit(where);
  REQUIRE(session.wait(std::vector{outside}, {.timeout = 500ms})->ready.empty());
  const auto larger = session.create_placement_group({.bundles = {{.cpu = 100}}}).value();
  const auto waited = larger.wait(3s);
  REQUIRE(waited.error().code() == Code::deadline_exceeded);
  REQUIRE(waited.error().message().find("infeasible") != std::string::npos);
  REQUIRE(larger.remove());
  REQUIRE(larger.status().error().code() == Code::not_found);

  const troupe::ActorOptions options{.resources = {.cpu = 0.5}, .placement = group.bundle(0)};
  const auto member = session.create<Member>(options).value();
  REQUIRE(member.wait_alive(20s));
  const troupe::TaskOptions inside{.placement = group.bundle(1)};
  const auto running = session.submit(inside, sleep_ms, int64_t{60'000});
  REQUIRE(session.wait(std::vector{running}, {.timeout = 1s})->ready.empty());
  const auto queued = session.submit(inside, sleep_ms, int64_t{1});
  REQUIRE(group.remove());
  REQUIRE(outside.get(20s).has_value());
  for (const auto& ref : {running, queued}) {
    const auto ended = ref.get(20s);
    REQUIRE(ended.error().code() == Code::not_found);
    REQUIRE(ended.error().message().find("was removed") != std::string::npos);
  }
  const auto dead = member.call<&Member::pid>().get(20s);
  REQUIRE(!dead && dead.error().message().find("was removed") != std::string::npos);
}

void check_capture(const Session& session) {
  const auto make = [&](bool capture) {
    return session
        .create_placement_group(
            {.bundles = {{.cpu = 1.5}}, .capture = capture, .labels = {label::equals("zone", "b")}})
        .value();
  };
  const auto group = make(true);
  const std::string node = node_text(group.wait(20s).value().places[0].node);
  const troupe::TaskOptions inside{.placement = group.any_bundle()};
  // Zone a is idle and would be as good, but for the capture.
  for (int i = 0; i < 4; ++i) REQUIRE(session.submit(inside, where_child).get(20s).value() == node);
  REQUIRE(session.submit(inside, child_finds_room_outside).get(30s).value());
  REQUIRE(group.remove());
}

std::set<std::string> split(const std::string& text) {
  std::set<std::string> parts;
  for (size_t at = 0; at <= text.size();) {
    const size_t end = std::min(text.find(',', at), text.size());
    if (end > at) parts.insert(text.substr(at, end - at));
    at = end + 1;
  }
  return parts;
}

void check_gpus(const Session& session) {
  REQUIRE(session.submit(gpus).get(20s).value().empty());
  const auto group =
      session
          .create_placement_group({.bundles = {{.cpu = 0.5, .gpu = 1}, {.cpu = 0.5, .gpu = 2}},
                                   .strategy = troupe::GroupStrategy::strict_spread})
          .value();
  const auto placed = group.wait(20s).value();
  std::vector<troupe::ActorRef<Member>> members;
  const auto add = [&](uint32_t bundle, double amount) {
    const troupe::ActorOptions options{.resources = {.cpu = 0.1, .gpu = amount},
                                       .placement = group.bundle(bundle)};
    members.push_back(session.create<Member>(options).value());
    return split(members.back().call<&Member::gpus>().get(20s).value());
  };
  const auto first = add(1, 1);
  const auto second = add(1, 1);
  REQUIRE(first.size() == 1 && second.size() == 1 && first != second);
  const auto half = add(0, 0.5);
  REQUIRE(half.size() == 1 && half == add(0, 0.5));
  // The next owner of a device never meets the one before.
  const auto before = members[0].call<&Member::pid>().get(20s).value();
  REQUIRE(members[0].kill());
  const troupe::TaskOptions task{.resources = {.cpu = 0.1, .gpu = 1}, .placement = group.bundle(1)};
  REQUIRE(split(session.submit(task, gpus).get(20s).value()) == first);
  REQUIRE(::kill(static_cast<pid_t>(before), 0) != 0);
  REQUIRE(group.remove());
  // All of them are back: two on each node.
  std::vector<troupe::ObjectRef<std::string>> tasks;
  for (int i = 0; i < 2; ++i)
    tasks.push_back(session.submit({.resources = {.cpu = 0.1, .gpu = 2}}, gpus));
  for (const auto& ref : tasks) REQUIRE(split(ref.get(30s).value()).size() == 2);
}

void check_many(const Session& session) {
  std::vector<troupe::PlacementGroupOptions> options(500, {.bundles = {{.cpu = 0.001}}});
  options.push_back({.bundles = {}});
  const auto groups = session.create_placement_groups(options);
  REQUIRE(groups.size() == 501);
  REQUIRE(groups.back().error().code() == Code::invalid);
  std::vector<std::future<troupe::Status>> removed;
  for (size_t i = 0; i < 500; ++i) removed.push_back(groups[i]->remove_async());
  for (auto& one : removed) REQUIRE(one.get());
}

// For the test of the head's restart: leaves a detached group with an actor in it, then finds it.
void check_leave(const Session& session) {
  const auto group = session
                         .create_placement_group({.bundles = {{.cpu = 1}, {.cpu = 1}},
                                                  .strategy = troupe::GroupStrategy::spread,
                                                  .name = "kept",
                                                  .detached = true})
                         .value();
  REQUIRE(group.wait(20s));
  const troupe::ActorOptions options{.resources = {.cpu = 1},
                                     .name = "member",
                                     .detached = true,
                                     .max_restarts = -1,
                                     .placement = group.bundle(0)};
  const auto member = session.create<Member>(options).value();
  REQUIRE(member.wait_alive(20s));
  std::cout << member.call<&Member::pid>().get(20s).value() << "\n";
}
void check_find(const Session& session) {
  const auto group = session.find_placement_group("kept").value();
  const auto member = session.find<Member>("member").value();
  std::cout << member.call<&Member::pid>().get(20s).value() << "\n";
  REQUIRE(group.ready().value());
  // The actor is accounted in its bundle: the other is free, and this one is not.
  const troupe::TaskOptions other{.placement = group.bundle(1)};
  REQUIRE(session.submit(other, where).get(20s).has_value());
  const troupe::TaskOptions full{.placement = group.bundle(0)};
  const auto waits = session.submit(full, where);
  REQUIRE(session.wait(std::vector{waits}, {.timeout = 500ms})->ready.empty());
  REQUIRE(group.remove());
}

}  // namespace

int main(int argc, char** argv) try {
  const std::map<std::string, std::function<void(const Session&)>> checks{
      {"labels", check_labels}, {"custom_resources", check_custom_resources},
      {"groups", check_groups}, {"capture", check_capture},
      {"gpus", check_gpus},     {"many", check_many},
      {"leave", check_leave},   {"find", check_find}};
  const auto found = argc == 2 ? checks.find(argv[1]) : checks.end();
  if (found == checks.end()) {
    std::cerr << "usage: placement_checks NAME\n";
    return 2;
  }
  const auto session = troupe::connect().value();
  found->second(session);
  std::cout << "ok\n";
  return 0;
} catch (const troupe::Error& error) {
  std::cerr << error.to_string() << "\n";
  return 1;
}
