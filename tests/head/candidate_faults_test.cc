// The same heads under faults drawn by a seed: whoever leads has all that was promised until then,
// files as well as rows, what clients see of names is linearizable, and once the faults stop all
// heads agree.
// TROUPE_SEEDS: how many (default 40).
#include <fmt/format.h>

#include <cstdlib>

#include "packages/archive.h"
#include "packages/file.h"
#include "security/digest.h"
#include "tests/head/candidate_fixture.h"
#include "tests/head/name_history.h"

namespace troupe::head {
namespace {

constexpr size_t promises_max = 600;  // The head forgets jobs that ended long ago.

size_t seeds_wanted() {
  const char* text = std::getenv("TROUPE_SEEDS");
  return text != nullptr ? static_cast<size_t>(std::atoi(text)) : 40;
}

class CandidateFaults : public CandidateTest {
 public:
  // Heads keep files below this folder; empty: they keep none.
  explicit CandidateFaults(uint64_t seed, std::filesystem::path files = {}) : CandidateTest(seed) {
    folder = std::move(files);
    service.on_stream(
        Method::get_package,
        [this](transport::Message message, transport::CallContext, transport::OutgoingStream& out) {
          return give(std::move(message), out);
        });
  }
  void TestBody() override {}

  // What went wrong first; empty: nothing.
  std::string run(Duration faults_for) {
    SetUp();
    if (simulation.random().below(2) == 0) coordinator_patience = 150ms;
    model.on_change([this](const LeadRecord& record) { note(record); });
    for (size_t i = 0; i < heads; ++i) start(i);
    for (int i = 0; i < 3; ++i) spawn(scope, ask_for_promises());
    for (size_t i = 0; i < 4; ++i) spawn(scope, use_names(i));
    if (!folder.empty()) spawn(scope, ask_for_files());
    simulation.on_step([this] { look(); });
    const Instant end = simulation.clock().now() + faults_for;
    while (simulation.clock().now() < end && wrong_.empty()) {
      disturb();
      if (!folder.empty()) disturb_files();
      simulation.run_for(std::chrono::milliseconds(10 + simulation.random().below(700)));
      bring_back();
    }
    calm();
    const bool settled = simulation.run_until(
        [&] { return leader() && in_sync().size() == heads && all_hashes_agree_now(); }, 30s);
    if (wrong_.empty() && !settled) wrong_ = "not settled after 30 s: " + describe();
    if (wrong_.empty() && !all_kept()) wrong_ = "a promise is lost at the end";
    for (size_t i = 0; i < heads && wrong_.empty(); ++i) {
      if (!all_files_kept(i)) wrong_ = name_of(i) + " lacks a file at the end";
    }
    asks_ = false;
    for (const NameHistory& history : names_) {
      operations_ += history.size();
      if (wrong_.empty() && !history.is_linearizable()) {
        wrong_ = "a name's history is not linearizable:\n" + history.to_string();
      }
    }
    simulation.on_step({});
    TearDown();
    return wrong_;
  }
  size_t promises() const { return promised.size(); }
  size_t files() const { return files_; }
  size_t operations() const { return operations_; }
  uint64_t terms() const { return term_; }

 private:
  void note(const LeadRecord& record) {
    if (record.term < term_) wrong_ = "a term goes back";
    if (record.term == term_ && record.leader != leader_) wrong_ = "two heads lead in one term";
    term_ = record.term;
    leader_ = record.leader;
  }
  // After each instant.
  void look() {
    const auto leads = leader();
    if (!leads || !wrong_.empty()) return;
    const uint64_t term = machines[*leads]->candidate->replicator()->term();
    if (std::exchange(looked_at_, term) == term) return;
    if (!all_kept()) {
      wrong_ = "at " + std::to_string(simulation.clock().now().time_since_epoch() / 1ms) +
               " ms: " + name_of(*leads) + " leads and lacks a promise";
    } else if (!all_files_kept(*leads)) {
      wrong_ = name_of(*leads) + " leads and lacks a file in term " + std::to_string(term);
    }
  }
  std::string describe() const {
    std::string text;
    for (size_t i = 0; i < heads; ++i) {
      const Machine& machine = *machines[i];
      text += name_of(i) + (machine.candidate == nullptr ? " is down" : " is up") +
              (machine.ended ? ", " + machine.ended->to_string() : "") + "; ";
    }
    for (const std::string& name : in_sync()) text += name + " ";
    return text + "in sync";
  }
  bool all_hashes_agree_now() {
    return simulation.clock().now() > calm_since_ + 3s && all_hashes_agree();
  }

  void disturb() {
    Random& random = simulation.random();
    const size_t i = random.below(heads);
    const size_t other = (i + 1 + random.below(heads - 1)) % heads;
    Machine& machine = *machines[i];
    const std::string here = "machine-" + name_of(i);
    const std::string there = "machine-" + name_of(other);
    switch (random.below(15)) {
      case 0:
      case 1:
        if (machine.candidate) kill(i);
        break;
      case 2:
        if (machine.candidate && !machine.host->is_paused()) machine.host->pause();
        break;
      case 3:
      case 4:
        for (const auto& one : machines) {
          if (one->host != nullptr && one->host->is_paused()) one->host->resume();
        }
        break;
      case 5:
        simulation.network().partition(here, there);
        break;
      case 6:
        simulation.network().cut(here, there, sim::Fault::partition_one_way);
        break;
      case 7:
        simulation.network().partition("driver", here);
        break;
      case 8:
        if (machine.candidate) machine.coordinator->cut(true, true);
        break;
      case 9:
        if (machine.candidate) machine.coordinator->cut(false, true);
        break;
      case 10:
        if (machine.candidate) machine.coordinator->set_latency(coordinator_patience * 2);
        break;
      case 11:
        if (const auto leads = leader()) {
          Machine& leading = *machines[*leads];
          spawn(*leading.scope, hand_over(leading.candidate.get()));
        }
        break;
      case 12:
        machine.store.fail_next_commit(error(Code::outcome_unknown, "the disk failed"));
        break;
      default:
        simulation.network().heal();
        for (const auto& one : machines) {
          if (!one->candidate) continue;
          one->coordinator->cut(false, false);
          one->coordinator->set_latency(2ms);
        }
    }
  }
  void disturb_files() {
    Machine& machine = *machines[simulation.random().below(heads)];
    const uint64_t kind = simulation.random().below(4);
    if (kind == 0) machine.store.set_free(0);
    if (kind == 1) {
      for (const auto& one : machines) one->store.set_free(UINT64_MAX);
    }
  }
  // As the keeper does.
  void bring_back() {
    for (size_t i = 0; i < heads; ++i) {
      Machine& machine = *machines[i];
      if (machine.host != nullptr && machine.host->is_paused()) continue;
      if (machine.candidate && machine.ended) kill(i);
      if (machine.candidate || simulation.random().below(3) == 0) continue;
      machine.store.crash();
      start(i);
    }
  }
  void calm() {
    simulation.network().heal();
    for (size_t i = 0; i < heads; ++i) {
      Machine& machine = *machines[i];
      if (machine.host->is_paused()) machine.host->resume();
      if (machine.candidate) kill(i);
      machine.store.crash();
      machine.store.set_free(UINT64_MAX);
      start(i);
    }
    calm_since_ = simulation.clock().now();
  }

  // Ends with its scope if the head does not live that long.
  static Async<void> hand_over(Candidate* candidate) {
    protocol::TransferLead to_any;
    (void)co_await candidate->replicator()->hand_over(std::move(to_any));
  }

  Async<void> ask_for_promises() {
    size_t at = 0;
    while (asks_ && promised.size() < promises_max) {
      auto outcome = std::make_shared<std::optional<Result<JobId>>>();
      co_await begin_job(at, JobId::random(simulation.random()), 2s, outcome);
      if (*outcome && **outcome) {
        promised.insert(***outcome);
      } else {
        at = (at + 1) % heads;
      }
      co_await sleep_for(client->clock(),
                         std::chrono::milliseconds(20 + simulation.random().below(200)));
    }
  }

  // Asks for actors that outlive their drivers, and so for the drivers' packages; and ends some.
  Async<void> ask_for_files() {
    size_t at = 0;
    while (asks_) {
      const Instant deadline = simulation.clock().now() + 8s;
      auto peer = co_await connect(at % heads, deadline);
      Status done = ok();
      if (!peer) {
        done = std::move(peer).error();
      } else {
        done = co_await ask_for_file(*peer, deadline);
        (*peer)->close();
      }
      if (!done) ++at;
      co_await sleep_for(client->clock(),
                         std::chrono::milliseconds(100 + simulation.random().below(1000)));
    }
  }
  Async<Status> ask_for_file(std::shared_ptr<Peer> peer, Instant deadline) {
    if (!kept_.empty() && simulation.random().below(4) == 0) {
      auto ends = kept_.begin();
      std::advance(ends, static_cast<std::ptrdiff_t>(simulation.random().below(kept_.size())));
      protocol::KillActor request{ends->first, {}};
      kept_.erase(ends);
      auto killed = co_await transport::call<Empty>(peer, Method::kill_actor, std::move(request),
                                                    deadline - simulation.clock().now());
      if (!killed) co_return std::move(killed).error();
      co_return ok();
    }
    const size_t size = simulation.random().below(8) == 0 ? 3 * packages::chunk_bytes : 100;
    std::string bytes = fmt::format("{}", contents_.size());
    bytes.resize(size, 'x');
    const std::string hash = security::to_hex(security::sha256(as_bytes(bytes)));
    protocol::BeginJob job;
    job.job = JobId::random(simulation.random());
    job.environment.packages = {{hash, "module", "/bin/module.so", bytes.size()}};
    contents_[hash] = std::move(bytes);
    protocol::ActorSpec spec;
    spec.actor = ActorId::random(simulation.random());
    spec.job = job.job;
    spec.module = "module";
    spec.class_name = "Counter";
    spec.detached = true;
    const ActorId actor = spec.actor;
    auto begun = co_await transport::call<Empty>(peer, Method::begin_job, std::move(job),
                                                 deadline - simulation.clock().now());
    if (!begun) co_return std::move(begun).error();
    auto created = co_await transport::call<protocol::ActorInfo>(
        peer, Method::create_actor, std::move(spec), deadline - simulation.clock().now());
    if (!created) co_return std::move(created).error();
    kept_[actor] = hash;
    ++files_;
    co_return ok();
  }
  Async<Status> give(transport::Message message, transport::OutgoingStream& out) {
    TROUPE_CO_TRY(const auto request, protocol::decode<protocol::GetPackage>(message.body));
    const std::string bytes = contents_.at(request.hash);
    for (size_t at = 0; at < bytes.size(); at += packages::chunk_bytes) {
      protocol::PackageChunk chunk;
      chunk.data = to_bytes(bytes.substr(at, packages::chunk_bytes));
      chunk.offset_bytes = at;
      chunk.total_bytes = bytes.size();
      TROUPE_CO_CHECK(co_await out.send(protocol::encode(chunk)));
    }
    co_return ok();
  }
  bool all_files_kept(size_t i) const {
    return std::ranges::all_of(kept_, [&](const auto& entry) {
      std::error_code failed;
      const std::string& hash = entry.second;
      return std::filesystem::file_size(packages_of(i) / hash, failed) == contents_.at(hash).size();
    });
  }

  // Creates, looks up and removes placement groups of a few names, at whichever head answers.
  Async<void> use_names(size_t at) {
    while (asks_) {
      const size_t name = simulation.random().below(names_.size());
      if (names_[name].size() < NameHistory::operations_max) {
        const bool answered = co_await use_name(at % heads, name);
        if (!answered) ++at;
      }
      co_await sleep_for(client->clock(),
                         std::chrono::milliseconds(100 + simulation.random().below(700)));
    }
  }
  // False: this head does not say.
  Async<bool> use_name(size_t at, size_t name) {
    using Kind = NameHistory::Kind;
    const Instant deadline = simulation.clock().now() + 2s;
    auto peer = co_await connect(at, deadline);
    if (!peer) co_return false;
    struct Close {
      Peer& peer;
      ~Close() { peer.close(); }
    } close{**peer};
    const auto kind = static_cast<Kind>(simulation.random().below(3));
    protocol::PlacementGroupSpecs made;
    protocol::RemovePlacementGroups gone;
    uint64_t value = 0;
    if (kind == Kind::create) {
      auto job = co_await begin_job_over(*peer, JobId::random(simulation.random()), deadline);
      if (!job) co_return false;
      made.items.push_back(named_group(name, *job));
      value = groups_.size() + 1;
      groups_[made.items[0].group] = {value, name};
    } else if (kind == Kind::remove) {
      if (groups_.empty()) co_return true;
      auto one = groups_.begin();
      std::advance(one, static_cast<std::ptrdiff_t>(simulation.random().below(groups_.size())));
      gone.groups.push_back(one->first);
      value = one->second.value;
      name = one->second.name;
    }
    NameHistory& history = names_[name];
    if (history.size() == NameHistory::operations_max) co_return true;
    const size_t number = history.begin({kind, value, simulation.clock().now()});
    const Duration budget = deadline - simulation.clock().now();
    Code code = Code::ok;
    if (kind == Kind::read) {
      protocol::GetPlacementGroup request;
      request.name = text_of(name);
      auto seen = co_await transport::call<protocol::PlacementGroupInfo>(
          *peer, Method::get_placement_group, std::move(request), budget);
      if (seen) history.at(number).value = groups_.at(seen->spec.group).value;
      if (!seen) code = seen.error().code();
    } else if (kind == Kind::create) {
      auto results = co_await transport::call<protocol::PlacementGroupResults>(
          *peer, Method::create_placement_groups, std::move(made), budget);
      code = results ? code_from_number(results->items.at(0).code) : results.error().code();
      history.at(number).refused = code == Code::conflict;
    } else {
      auto removed = co_await transport::call<Empty>(*peer, Method::remove_placement_groups,
                                                     std::move(gone), budget);
      if (!removed) code = removed.error().code();
    }
    const bool known = code == Code::ok || code == Code::not_found ||
                       (kind == Kind::create && code == Code::conflict);
    if (known) history.at(number).answered = simulation.clock().now();
    co_return known;
  }
  static std::string text_of(size_t name) { return "name-" + std::to_string(name); }
  protocol::PlacementGroupSpec named_group(size_t name, JobId job) {
    protocol::PlacementGroupSpec spec;
    spec.group = PlacementGroupId::random(simulation.random());
    spec.job = job;
    spec.name = text_of(name);
    spec.detached = true;
    spec.bundles.emplace_back().demand = {{"cpu", 1000}};
    return spec;
  }

  std::string wrong_;
  std::map<std::string, std::string> contents_;  // Of packages, by hash.
  std::map<ActorId, std::string> kept_;          // Packages of actors that were promised.
  size_t files_ = 0;
  std::array<NameHistory, 4> names_;
  struct Named {
    uint64_t value = 0;
    size_t name = 0;
  };
  std::map<PlacementGroupId, Named> groups_;
  size_t operations_ = 0;
  std::string leader_;
  uint64_t term_ = 0;
  uint64_t looked_at_ = 0;
  Instant calm_since_;
  bool asks_ = true;
};

TEST(CandidateSeeds, WhoeverLeadsHasAllThatWasPromised) {
  size_t promises = 0;
  uint64_t terms = 0;
  size_t operations = 0;
  const size_t seeds = seeds_wanted();
  for (uint64_t seed = 1; seed <= seeds; ++seed) {
    CandidateFaults heads_of_seed{seed};
    const std::string wrong = heads_of_seed.run(60s);
    EXPECT_EQ(wrong, "") << "seed " << seed;
    promises += heads_of_seed.promises();
    terms += heads_of_seed.terms();
    operations += heads_of_seed.operations();
  }
  // It was no idle run.
  EXPECT_GT(promises, seeds * 50);
  EXPECT_GT(terms, seeds * 5);
  EXPECT_GT(operations, seeds * 50);
  RecordProperty("promises", std::to_string(promises));
  RecordProperty("operations", std::to_string(operations));
  RecordProperty("terms", std::to_string(terms));
}

TEST(CandidateSeeds, WhoeverLeadsHasTheFilesThatWerePromised) {
  std::string pattern = "/tmp/troupe-heads-XXXXXX";
  ASSERT_NE(::mkdtemp(pattern.data()), nullptr);
  const std::filesystem::path folder = pattern;
  size_t files = 0;
  uint64_t terms = 0;
  const size_t seeds = (seeds_wanted() + 1) / 2;  // They sync files.
  for (uint64_t seed = 1001; seed <= 1000 + seeds; ++seed) {
    CandidateFaults heads_of_seed{seed, folder / std::to_string(seed)};
    const std::string wrong = heads_of_seed.run(60s);
    EXPECT_EQ(wrong, "") << "seed " << seed;
    files += heads_of_seed.files();
    terms += heads_of_seed.terms();
    packages::remove_unpacked(folder / std::to_string(seed));
  }
  packages::remove_unpacked(folder);
  EXPECT_GT(files, seeds * 5);
  EXPECT_GT(terms, seeds * 5);
  RecordProperty("files", std::to_string(files));
}

}  // namespace
}  // namespace troupe::head
