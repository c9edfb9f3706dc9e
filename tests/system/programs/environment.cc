// A driver that looks at what its job's processes find around them, over two workers with the
// labels node=0 and node=1: `environment NAME ARGUMENTS` exits 0 if NAME holds.
#include <signal.h>
#include <troupe/troupe.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <map>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include "check.h"

namespace {

using namespace std::chrono_literals;
using troupe::Code;

std::string variable(const std::string& name) {
  const char* value = std::getenv(name.c_str());
  return value != nullptr ? value : "(unset)";
}

std::string read_file(const std::string& path) {
  std::ifstream file{path};
  return {std::istreambuf_iterator<char>(file), {}};
}

troupe::Placement on(int node) {
  return {.labels = {troupe::label::equals("node", std::to_string(node))}};
}

}  // namespace

std::string look_up(const std::string& name) {
  return variable(name);
}
TROUPE_TASK(look_up);
std::string read_here(const std::string& path) {
  return read_file(path);
}
TROUPE_TASK(read_here);
std::string write_here(const std::string& path) {
  std::ofstream{path} << "changed";
  return read_file(path);
}
TROUPE_TASK(write_here);
int64_t process_id() {
  return ::getpid();
}
TROUPE_TASK(process_id);
std::string from_child(int node) {
  const auto session = troupe::connect().value();
  return session.submit({.placement = on(node)}, look_up, "TROUPE_NODE_ID").get().value();
}
TROUPE_TASK(from_child);
int64_t say(const std::string& line, int64_t count) {
  for (int64_t i = 0; i < count; ++i) std::cout << line << " " << i << "\n";
  return ::getpid();
}
TROUPE_TASK(say);
int64_t say_same(const std::string& line) {
  std::cerr << line << "\n";
  return ::getpid();
}
TROUPE_TASK(say_same);
int64_t say_and_die(const std::string& line) {
  std::cout << line << std::flush;  // No end of the line.
  ::raise(SIGKILL);
  return 0;
}
TROUPE_TASK(say_and_die);
int64_t say_no_end(const std::string& line) {
  std::cout << line << std::flush;
  return 0;
}
TROUPE_TASK(say_no_end);

class Looker {
 public:
  std::string look(std::string name) { return variable(name); }
  std::string read(std::string path) { return read_file(path); }
  int64_t pid() { return ::getpid(); }
  int64_t seek(std::string name, std::string name_space);
};
TROUPE_ACTOR(Looker(), look, read, pid, seek);
// The process of the Looker of that name; 0: there is none.
int64_t seek_looker(const std::string& name, const std::string& name_space) {
  const auto found = troupe::connect().value().find<Looker>(name, name_space);
  return found ? found->call<&Looker::pid>().get().value() : 0;
}
TROUPE_TASK(seek_looker);
int64_t Looker::seek(std::string name, std::string name_space) {
  return seek_looker(name, name_space);
}
// An actor, a queue and a placement group with names.
int64_t make_named(const std::string& name) {
  const auto session = troupe::connect().value();
  auto actor = session.create<Looker>({.name = name}).value();
  troupe::QueueOptions queue;
  queue.actor.name = name + "'s queue";
  REQUIRE(troupe::Queue<int64_t>::create(session, queue));
  REQUIRE(session.create_placement_group({.bundles = {{.cpu = 0.001}}, .name = name}));
  return actor.call<&Looker::pid>().get().value();
}
TROUPE_TASK(make_named);

namespace {

int variables() {
  troupe::ConnectOptions options;
  options.environment = {{"COLOUR", "blue"}, {"HOME", "/nowhere"}, {"EMPTY", ""}};
  const auto session = troupe::connect(options).value();
  for (int node : {0, 1}) {
    const auto ask = [&](const char* name) {
      return session.submit({.placement = on(node)}, look_up, name).get().value();
    };
    REQUIRE(ask("COLOUR") == "blue");
    REQUIRE(ask("HOME") == "/nowhere");
    REQUIRE(ask("EMPTY").empty());
    auto own = session.create<Looker>({.placement = on(node)}).value();
    REQUIRE(own.call<&Looker::look>("COLOUR").get().value() == "blue");
    auto other =
        session.create<Looker>({.environment = {{"COLOUR", "red"}}, .placement = on(node)});
    REQUIRE(other.value().call<&Looker::look>("COLOUR").get().value() == "red");
    auto light =
        session.create<Looker>({.placement = on(node), .process = troupe::ActorProcess::shared});
    REQUIRE(light.value().call<&Looker::look>("COLOUR").get().value() == "blue");
  }
  // A job beside it, of the same program, has processes of its own.
  const auto beside = troupe::connect().value();
  REQUIRE(beside.submit({.placement = on(0)}, look_up, "COLOUR").get().value() == "(unset)");
  REQUIRE(session.submit({.placement = on(0)}, look_up, "COLOUR").get().value() == "blue");
  return 0;
}

troupe::Session connect_to(const std::string& name_space) {
  troupe::ConnectOptions options;
  options.name_space = name_space;
  return troupe::connect(options).value();
}

// Everybody in `session`'s job means the same by a name.
void check_names(const troupe::Session& session) {
  auto own = session.create<Looker>({.name = "of the driver"}).value();
  const int64_t pid = own.call<&Looker::pid>().get().value();
  REQUIRE(session.submit(seek_looker, "of the driver", "").get().value() == pid);
  for (const auto process : {troupe::ActorProcess::own, troupe::ActorProcess::shared}) {
    auto seeker = session.create<Looker>({.process = process}).value();
    REQUIRE(seeker.call<&Looker::seek>("of the driver", "").get().value() == pid);
  }
  const int64_t made = session.submit(make_named, "of a task").get().value();
  const auto found = session.find<Looker>("of a task");
  REQUIRE(found);
  REQUIRE(found->call<&Looker::pid>().get().value() == made);
  REQUIRE(session.submit(seek_looker, "of a task", "").get().value() == made);
  REQUIRE(troupe::Queue<int64_t>::find(session, "of a task's queue"));
  REQUIRE(session.find_placement_group("of a task"));
}

int namespaces() {
  const auto red = connect_to("red");
  const auto blue = connect_to("blue");
  check_names(red);
  check_names(blue);
  const std::string name = "of a task";
  const int64_t in_red = red.submit(seek_looker, name, "").get().value();
  const int64_t in_blue = blue.submit(seek_looker, name, "").get().value();
  REQUIRE(in_red != in_blue);
  REQUIRE(red.submit(seek_looker, name, "blue").get().value() == in_blue);
  REQUIRE(blue.submit(seek_looker, name, "red").get().value() == in_red);
  REQUIRE(red.submit(seek_looker, name, "default").get().value() == 0);
  REQUIRE(red.find<Looker>(name, "blue"));
  return 0;
}

// Of a submitted job, whose namespace the program was not told.
int submitted_to(const std::string& name_space) {
  const auto session = troupe::connect().value();
  check_names(session);
  REQUIRE(session.find<Looker>("of a task", name_space));
  troupe::ConnectOptions other;
  other.name_space = "another";
  const auto refused = troupe::connect(other);
  REQUIRE(!refused && refused.error().code() == Code::conflict);
  std::cout << refused.error().message() << "\n";
  return 0;
}

int refused() {
  const auto code = [](std::string name, std::string value) {
    troupe::ConnectOptions options;
    options.environment = {{std::move(name), std::move(value)}};
    const auto session = troupe::connect(options);
    if (!session) std::cout << session.error().message() << "\n";
    return session ? Code::ok : session.error().code();
  };
  REQUIRE(code("TROUPE_STATE", "x") == Code::invalid);
  REQUIRE(code("A=B", "x") == Code::invalid);
  REQUIRE(code("A", std::string(1 << 20, 'x')) == Code::invalid);
  troupe::ConnectOptions options;
  options.working_dir = "/no/such/directory";
  REQUIRE(troupe::connect(options).error().code() == Code::not_found);
  return 0;
}

int working_dir(const std::string& folder) {
  troupe::ConnectOptions options;
  options.working_dir = folder;
  const auto session = troupe::connect(options).value();
  std::ofstream{folder + "/data/text"} << "changed afterwards";
  for (int node : {0, 1}) {
    const troupe::TaskOptions there{.placement = on(node)};
    REQUIRE(session.submit(there, read_here, "data/text").get().value() == "as it was");
    auto actor = session.create<Looker>({.placement = on(node)}).value();
    REQUIRE(actor.call<&Looker::read>("data/text").get().value() == "as it was");
    // Whoever may write anywhere could still.
    if (::geteuid() == 0) continue;
    REQUIRE(session.submit(there, write_here, "data/text").get().value() == "as it was");
  }
  return 0;
}

// This program's code is deleted before any process loads it.
int moved(const std::string& module) {
  const auto session = troupe::connect().value();
  std::filesystem::remove(module);
  for (int node : {0, 1}) {
    const auto told = session.submit({.placement = on(node)}, look_up, "TROUPE_MODULE_FILE").get();
    REQUIRE(told.value() == "(unset)");  // Of no concern to the code.
    // A task that the task submits, to the other node.
    const auto child = session.submit({.placement = on(node)}, from_child, 1 - node).get();
    if (!child) std::cerr << child.error().to_string() << "\n";
    REQUIRE(child);
    auto light =
        session.create<Looker>({.placement = on(node), .process = troupe::ActorProcess::shared});
    REQUIRE(light.value().call<&Looker::pid>().get().value() > 0);
  }
  troupe::ActorOptions kept{.name = "kept", .detached = true, .max_restarts = -1};
  REQUIRE(session.create<Looker>(kept));
  return 0;
}

// The driver of the detached actor is gone, and so is its code; it is started anew.
int find_kept() {
  const auto session = troupe::connect().value();
  auto actor = session.find<Looker>("kept").value();
  const int64_t pid = actor.call<&Looker::pid>().get().value();
  ::kill(static_cast<pid_t>(pid), SIGKILL);
  REQUIRE(eventually([&] {
    const auto again = actor.call<&Looker::pid>().get();
    return again && *again != pid;
  }));
  REQUIRE(actor.kill());
  return 0;
}

int changed(const std::string& module) {
  const auto session = troupe::connect().value();
  std::ofstream{module, std::ios::in | std::ios::binary} << "other";  // The same file.
  const auto failed = session.submit(look_up, "HOME").get();
  REQUIRE(!failed);
  std::cout << failed.error().to_string() << "\n";
  REQUIRE(failed.error().code() == Code::data_loss);
  return 0;
}

int chatter() {
  const auto session = troupe::connect().value();
  // In one write: lines of processes come between others.
  const auto tell = [](int64_t pid, const char* who) { std::cerr << std::to_string(pid) + who; };
  tell(session.submit({.placement = on(0)}, say, "from zero", 2).get().value(), " zero\n");
  tell(session.submit({.placement = on(1)}, say, "from one", 2).get().value(), " one\n");
  std::vector<troupe::ObjectRef<int64_t>> same;
  for (int node : {0, 0, 1, 1}) {
    same.push_back(session.submit({.placement = on(node)}, say_same, "all alike"));
    REQUIRE(same.back().get());
  }
  REQUIRE(!session.submit({.placement = on(1)}, say_and_die, "last words").get());
  REQUIRE(session.submit({.placement = on(0)}, say_no_end, "without end").get());
  return 0;
}

int lines_to_callback(int64_t count) {
  std::mutex mutex;
  std::map<std::string, int64_t> got;  // By node.
  int64_t lost = 0;
  std::set<std::string> texts;
  {
    troupe::ConnectOptions options;
    options.on_log = [&](const troupe::LogLine& line) {
      const std::lock_guard lock{mutex};
      lost += static_cast<int64_t>(line.lost);
      if (line.text.starts_with("line ")) ++got[line.node];
      texts.insert(line.text);
    };
    const auto session = troupe::connect(options).value();
    std::vector<troupe::ObjectRef<int64_t>> said;
    for (int node : {0, 1}) {
      said.push_back(session.submit({.placement = on(node)}, say, "line", count));
    }
    for (auto& ref : said) REQUIRE(ref.get());
    // The session's end waits for a second at most, and a slow machine needs longer for so many.
    (void)eventually([&] {
      const std::lock_guard lock{mutex};
      int64_t told = lost;
      for (const auto& [node, lines] : got) told += lines;
      return told >= 2 * count;
    });
  }
  const std::lock_guard lock{mutex};
  REQUIRE(got.size() == 2);
  std::cout << got.begin()->second + got.rbegin()->second << " lines, " << lost << " lost\n";
  REQUIRE(got.begin()->second + got.rbegin()->second + lost == 2 * count);
  REQUIRE(texts.contains("line " + std::to_string(count - 1)));
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  const std::string name = argc > 1 ? argv[1] : "";
  const std::string argument = argc > 2 ? argv[2] : "";
  if (name == "variables") return variables();
  if (name == "namespaces") return namespaces();
  if (name == "submitted_to") return submitted_to(argument);
  if (name == "refused") return refused();
  if (name == "working_dir") return working_dir(argument);
  if (name == "moved") return moved(argument);
  if (name == "find_kept") return find_kept();
  if (name == "changed") return changed(argument);
  if (name == "chatter") return chatter();
  if (name == "lines") return lines_to_callback(std::stoll(argument));
  if (name == "look") {
    const auto session = troupe::connect().value();
    for (int node : {0, 1}) {
      std::cout << session.submit({.placement = on(node)}, look_up, argument).get().value() << " "
                << session.submit({.placement = on(node)}, read_here, "data/text").get().value()
                << "\n";
    }
    return 0;
  }
  std::cerr << "no check is called " << name << "\n";
  return 2;
}
