// Drives actors whose state is kept, and kills what the test names. Exit status 0: all is as
// promised.
#include <signal.h>
#include <troupe/troupe.h>

#include <fstream>
#include <functional>
#include <map>
#include <stdexcept>

#include "check.h"

using namespace std::chrono_literals;

// How the next checkpoint or start goes wrong.
enum class Trouble : uint8_t { none, save_throws, dies_in_save, load_throws };

class Tally {
 public:
  explicit Tally(int start) : value_(start) {}
  int add(int amount) { return value_ += amount; }
  int read() const { return value_; }
  int pid() const { return ::getpid(); }
  // Of this process.
  int saves() const { return saves_; }
  int loads() const { return loads_; }
  void prepare(Trouble trouble) { trouble_ = trouble; }
  void grow(size_t bytes) { ballast_.assign(bytes, 'x'); }
  void wish() const { troupe::checkpoint_soon().value(); }

  void save(troupe::CheckpointWriter& out) const {
    out.write(value_, trouble_, ballast_);
    std::ofstream{out.folder() / "note"} << "value " << value_;
    if (trouble_ == Trouble::save_throws) throw std::runtime_error("no pen");
    if (trouble_ == Trouble::dies_in_save) ::raise(SIGKILL);
    ++saves_;
  }
  void load(troupe::CheckpointReader& in) {
    in.read(value_, trouble_, ballast_);
    std::string word;
    int noted = 0;
    std::ifstream{in.folder() / "note"} >> word >> noted;
    if (noted != value_ || !in.at_end()) throw std::runtime_error("the note is another");
    if (trouble_ == Trouble::load_throws) throw std::runtime_error("no glasses");
    ++loads_;
  }

 private:
  int value_;
  Trouble trouble_ = Trouble::none;
  std::string ballast_;
  mutable int saves_ = 0;
  int loads_ = 0;
};
TROUPE_ACTOR(Tally(int), add, read, pid, saves, loads, prepare, grow, wish);

class Forgetful {
 public:
  Forgetful() = default;
  int read() const { return 1; }
};
TROUPE_ACTOR(Forgetful(), read);

namespace {

using Ref = troupe::ActorRef<Tally>;

int read(const Ref& tally) {
  return tally.call<&Tally::read>().get(deadline).value();
}
int loads(const Ref& tally) {
  return tally.call<&Tally::loads>().get(deadline).value();
}
// Its process ends, and it lives again.
void kill_process(const Ref& tally) {
  const auto before = tally.status().value();
  REQUIRE(::kill(static_cast<int>(before.pid), SIGKILL) == 0);
  REQUIRE(eventually([&] {
    const auto now = tally.status().value();
    return now.state == "alive" && now.incarnation > before.incarnation;
  }));
}

void on_demand(const troupe::Session& session, troupe::ActorProcess process) {
  const auto tally = session.create<Tally>({.max_restarts = -1, .process = process}, 100).value();
  // All that was called before is in it.
  for (int i = 0; i < 1000; ++i) tally.call<&Tally::add>(1);
  const auto first = tally.checkpoint(deadline).value();
  REQUIRE(first.number == 1 && first.incarnation == 1 && first.size_bytes > 0);
  tally.call<&Tally::add>(7).get(deadline).value();
  kill_process(tally);
  REQUIRE(read(tally) == 1100);
  REQUIRE(loads(tally) == 1);
  tally.call<&Tally::add>(1).get(deadline).value();
  const auto second = tally.checkpoint(deadline).value();
  REQUIRE(second.number == 2 && second.incarnation == 2);
  kill_process(tally);
  kill_process(tally);
  REQUIRE(read(tally) == 1101);
  // Without a checkpoint it begins anew.
  const auto fresh = session.create<Tally>({.max_restarts = -1}, 5).value();
  fresh.call<&Tally::add>(1).get(deadline).value();
  kill_process(fresh);
  REQUIRE(read(fresh) == 5 && loads(fresh) == 0);
}

void by_interval(const troupe::Session& session) {
  const auto tally =
      session.create<Tally>({.max_restarts = -1, .checkpoint_interval = 50ms}, 0).value();
  tally.call<&Tally::add>(3).get(deadline).value();
  const auto saves = [&] { return tally.call<&Tally::saves>().get(deadline).value(); };
  // The second begins when the first is durable.
  REQUIRE(eventually([&] { return saves() >= 2; }));
  kill_process(tally);
  REQUIRE(read(tally) == 3 && loads(tally) == 1);
  // While nothing runs there is nothing to keep: but for what the last question was.
  REQUIRE(eventually([&] { return saves() >= 1; }));
  const int before = saves();
  ::poll(nullptr, 0, 500);
  REQUIRE(saves() <= before + 1);
}

void by_itself(const troupe::Session& session) {
  const auto tally = session.create<Tally>({.max_restarts = -1}, 0).value();
  tally.call<&Tally::add>(3);
  tally.call<&Tally::wish>().get(deadline).value();
  // A second one waits behind it.
  REQUIRE(tally.checkpoint(deadline).value().number >= 1);
  kill_process(tally);
  REQUIRE(read(tally) == 3);
  REQUIRE(troupe::checkpoint_soon().error().code() == troupe::Code::invalid);
}

void trouble(const troupe::Session& session) {
  const auto tally = session.create<Tally>({.max_restarts = -1}, 0).value();
  tally.call<&Tally::add>(1);
  REQUIRE(tally.checkpoint(deadline).value().number == 1);
  tally.call<&Tally::add>(1);
  tally.call<&Tally::prepare>(Trouble::save_throws).get(deadline).value();
  const auto thrown = tally.checkpoint(deadline);
  REQUIRE(thrown.error().message().find("no pen") != std::string::npos);
  kill_process(tally);
  REQUIRE(read(tally) == 1);
  // Killed in the midst of save.
  const auto incarnation = tally.status().value().incarnation;
  tally.call<&Tally::add>(1);
  tally.call<&Tally::prepare>(Trouble::dies_in_save).get(deadline).value();
  REQUIRE(tally.checkpoint(deadline).error().code() == troupe::Code::outcome_unknown);
  REQUIRE(eventually([&] {
    const auto now = tally.status().value();
    return now.state == "alive" && now.incarnation > incarnation;
  }));
  REQUIRE(read(tally) == 1);
  // Larger than the head takes (the test says 1 MiB).
  tally.call<&Tally::grow>(size_t{2} << 20).get(deadline).value();
  const auto large = tally.checkpoint(deadline);
  REQUIRE(large.error().code() == troupe::Code::invalid);
  REQUIRE(large.error().message().find("1048576") != std::string::npos);
  tally.call<&Tally::grow>(size_t{1000}).get(deadline).value();
  REQUIRE(tally.checkpoint(deadline).value().number == 2);

  const auto never = session.create<Forgetful>({.checkpoint_interval = 1s});
  REQUIRE(never.error().code() == troupe::Code::invalid);
  const auto forgetful = session.create<Forgetful>({}).value();
  const auto refused = forgetful.checkpoint(deadline);
  REQUIRE(refused.error().code() == troupe::Code::unimplemented);
  REQUIRE(refused.error().message().find("no save and load") != std::string::npos);
  const auto threaded = session.create<Tally>({.max_concurrency = 2}, 0).value();
  REQUIRE(threaded.checkpoint(deadline).error().code() == troupe::Code::unimplemented);
  const auto regular =
      session.create<Tally>({.max_concurrency = 2, .checkpoint_interval = 1s}, 0).value();
  const auto dead = regular.wait_alive(deadline);
  REQUIRE(!dead && dead.error().message().find("several threads") != std::string::npos);
}

// A checkpoint that cannot be loaded, and what is then said.
void bad_load(const troupe::Session& session) {
  const auto tally =
      session.create<Tally>({.name = "unlucky", .detached = true, .max_restarts = 2}, 0).value();
  tally.call<&Tally::prepare>(Trouble::load_throws).get(deadline).value();
  REQUIRE(tally.checkpoint(deadline));
  REQUIRE(::kill(static_cast<int>(tally.status().value().pid), SIGKILL) == 0);
  REQUIRE(eventually([&] { return tally.status().value().state == "dead"; }));
  const std::string why = tally.status().value().reason;
  std::cout << why << "\n";
  REQUIRE(why.find("restore from checkpoint 1") != std::string::npos);
  REQUIRE(why.find("no glasses") != std::string::npos);
  REQUIRE(why.find("after 2 restarts") != std::string::npos);
}

// The test spoils what the head keeps, once it is there, and makes the file "spoilt".
void spoilt(const troupe::Session& session, const std::string& folder) {
  const auto tally = session.create<Tally>({.max_restarts = 1}, 0).value();
  REQUIRE(tally.checkpoint(deadline));
  std::ofstream{folder + "/kept"} << "now";
  REQUIRE(eventually([&] { return std::filesystem::exists(folder + "/spoilt"); }));
  REQUIRE(::kill(static_cast<int>(tally.status().value().pid), SIGKILL) == 0);
  REQUIRE(eventually([&] { return tally.status().value().state == "dead"; }));
  std::cout << tally.status().value().reason << "\n";
}

// One on another node than this program's.
Ref create_elsewhere(const troupe::Session& session) {
  for (;;) {
    auto tally = session.create<Tally>({.max_restarts = -1, .spread = true}, 0).value();
    tally.wait_alive(deadline).value();
    if (tally.status().value().node != session.node().to_string()) return tally;
  }
}

// The test kills what the file "kill" names, and makes the file "killed".
void killed(const troupe::Session& session, const std::string& folder, bool is_head) {
  const auto tally = create_elsewhere(session);
  tally.call<&Tally::add>(4);
  REQUIRE(tally.checkpoint(deadline));
  const auto before = tally.status().value();
  std::ofstream{folder + "/victim"} << (is_head ? "head" : before.node);
  std::filesystem::rename(folder + "/victim", folder + "/kill");
  if (is_head) {
    // While there is none, it is waited for.
    tally.call<&Tally::add>(1);
    const auto kept = tally.checkpoint(deadline);
    REQUIRE(kept && kept->number >= 2);
    REQUIRE(eventually([&] { return std::filesystem::exists(folder + "/killed"); }));
    kill_process(tally);
    REQUIRE(read(tally) == 5);
    return;
  }
  REQUIRE(eventually([&] {
    const auto now = tally.status().value();
    return now.state == "alive" && now.incarnation > before.incarnation;
  }));
  const auto after = tally.status().value();
  REQUIRE(after.node != before.node);
  REQUIRE(read(tally) == 4);
}

// The test ends the head that leads, with all that its machine keeps, and makes the file "killed".
void head_lost(const troupe::Session& session, const std::string& folder) {
  const auto tally = session.create<Tally>({.max_restarts = -1}, 0).value();
  tally.call<&Tally::add>(1);
  REQUIRE(tally.checkpoint(deadline));
  tally.call<&Tally::add>(3);
  REQUIRE(tally.checkpoint(deadline).value().number == 2);
  std::ofstream{folder + "/kept"} << "now";
  REQUIRE(eventually([&] { return std::filesystem::exists(folder + "/killed"); }));
  kill_process(tally);
  REQUIRE(read(tally) == 4 && loads(tally) == 1);
  REQUIRE(tally.checkpoint(deadline).value().number == 3);
}

// Its node is left.
void drained(const troupe::Session& session, const std::string& folder) {
  const troupe::ActorOptions own{.max_restarts = -1, .checkpoint_interval = 1h};
  const troupe::ActorOptions shared{.max_restarts = -1, .process = troupe::ActorProcess::shared};
  const auto tally = session.create<Tally>(own, 0).value();
  const auto before = tally.status().value();
  std::vector<Ref> light;
  for (int i = 0; i < 4; ++i) light.push_back(session.create<Tally>(shared, i).value());
  for (const Ref& one : light) one.call<&Tally::add>(6).get(deadline).value();
  std::ofstream{folder + "/victim"} << before.node;
  std::filesystem::rename(folder + "/victim", folder + "/drain");
  // Whatever was answered before it moved is there afterwards, checkpoint or not.
  int answered = 0, unknown = 0;
  REQUIRE(eventually([&] {
    ++(tally.call<&Tally::add>(1).get(deadline) ? answered : unknown);
    const auto now = tally.status().value();
    return now.state == "alive" && now.incarnation > before.incarnation;
  }));
  REQUIRE(tally.status().value().node != before.node);
  const int sum = read(tally);
  REQUIRE(sum >= answered && sum <= answered + unknown);
  for (int i = 0; i < 4; ++i) {
    REQUIRE(read(light[static_cast<size_t>(i)]) == 6 + i);
    REQUIRE(light[static_cast<size_t>(i)].status().value().node != before.node);
  }
}

// Waits until the test has described it.
void described(const troupe::Session& session, const std::string& folder) {
  const auto tally = session.create<Tally>({.name = "described", .max_restarts = 1}, 0).value();
  REQUIRE(tally.checkpoint(deadline));
  REQUIRE(tally.checkpoint(deadline));
  std::ofstream{folder + "/described"} << "now";
  REQUIRE(eventually([&] { return std::filesystem::exists(folder + "/seen"); }));
}

// A plugin's class, by the functions of its table alone.
void plugin(const troupe::Session& session, const std::string& module) {
  const auto actor = session.create_plugin_actor(module, "shelf", {}, {.max_restarts = -1}).value();
  const auto put = session.ask_plugin_actor(actor, "put", {troupe::Bytes{'a', 'b'}}, deadline);
  REQUIRE(put);
  REQUIRE(session.checkpoint(actor, deadline).value().number == 1);
  const auto get = [&] {
    const auto got = session.ask_plugin_actor(actor, "get", {}, deadline);
    return got ? std::string(got->begin(), got->end()) : "error";
  };
  REQUIRE(get() == "ab");
  (void)session.ask_plugin_actor(actor, "die", {}, deadline);
  REQUIRE(eventually([&] { return get() == "ab"; }));
}

}  // namespace

int main(int argc, char** argv) try {
  const std::string what = argc > 1 ? argv[1] : "";
  const std::string where = argc > 2 ? argv[2] : "";
  const troupe::Session session = troupe::connect().value();
  const std::map<std::string, std::function<void()>> checks{
      {"on_demand", [&] { on_demand(session, troupe::ActorProcess::own); }},
      {"light", [&] { on_demand(session, troupe::ActorProcess::shared); }},
      {"by_interval", [&] { by_interval(session); }},
      {"by_itself", [&] { by_itself(session); }},
      {"trouble", [&] { trouble(session); }},
      {"bad_load", [&] { bad_load(session); }},
      {"spoilt", [&] { spoilt(session, where); }},
      {"node_killed", [&] { killed(session, where, false); }},
      {"head_killed", [&] { killed(session, where, true); }},
      {"head_lost", [&] { head_lost(session, where); }},
      {"drained", [&] { drained(session, where); }},
      {"described", [&] { described(session, where); }},
      {"plugin", [&] { plugin(session, where); }},
  };
  checks.at(what)();
  std::cout << "ok\n";
  return 0;
} catch (const std::exception& error) {
  std::cerr << error.what() << "\n";
  return 1;
}
