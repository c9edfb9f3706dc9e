// `troupe why`.
#include <fmt/format.h>

#include <algorithm>
#include <boost/json.hpp>
#include <cstdio>

#include "client/client.h"
#include "client/explainer.h"
#include "security/credentials.h"
#include "troupe/commands.h"
#include "troupe/daemon_process.h"
#include "troupe/everything.h"
#include "troupe/rpc.h"
#include "troupe/state_folder.h"

namespace troupe::tools {
namespace json = boost::json;
using client::WaitGraph;
using protocol::WaitsFor;
using transport::Method;

namespace {

using Roots = std::vector<WaitsFor>;
using Graph = std::shared_ptr<WaitGraph>;

constexpr size_t roots_max = 32;
// A worker that stands still takes a connection and does not answer: then the next one is asked.
constexpr Duration attach_patience = std::chrono::seconds(2);

// A client of the cluster for as long as one question takes: it can ask any process.
class Inquiry {
 public:
  // Through the first of these workers that answers. Errors: those of the last.
  Status start(const std::vector<std::string>& worker_sockets) {
    Status outcome = error(Code::unavailable, "no worker runs on this machine");
    for (const std::string& socket : worker_sockets) {
      client_ = std::make_unique<client::Client>(real_.environment(), options(socket));
      outcome = error(Code::unavailable, "the worker behind " + socket + " does not answer");
      run(start_into(outcome), attach_patience);
      if (outcome) return ok();
      stop();
    }
    return outcome;
  }
  ~Inquiry() { stop(); }

  Graph explain(Roots roots) {
    Graph graph;
    run(explain_into(std::move(roots), graph));
    return graph;
  }

 private:
  client::ClientOptions options(const std::string& socket) {
    client::ClientOptions options;
    options.kind = "cli";
    options.worker.unix_path = socket;
    options.use_credentials = [this](const protocol::Attached& attached) -> Status {
      TROUPE_TRY(credentials_,
                 security::Credentials::load(
                     {attached.authority_pem, attached.certificate_pem, attached.key_pem}));
      real_.set_credentials(credentials_.get());
      return ok();
    };
    return options;
  }
  Async<void> start_into(Status& out) { out = co_await client_->start(); }
  Async<void> explain_into(Roots roots, Graph& out) {
    out = co_await client_->explainer().explain(std::move(roots));
  }
  Async<void> stop_client() { co_await client_->stop(); }
  static Async<void> mark(Async<void> work, bool& done) {
    co_await std::move(work);
    done = true;
  }
  // Runs the loop until `work` has ended, or its time.
  void run(Async<void> work, Duration limit = std::chrono::hours(1)) {
    const auto& clock = real_.environment().clock;
    const Instant end = clock.now() + limit;
    bool done = false;
    Scope scope{real_.io().get_executor()};
    spawn(scope, mark(std::move(work), done));
    real_.io().restart();
    while (!done && !was_interrupted() && clock.now() < end) {
      real_.io().run_one_for(std::chrono::milliseconds(100));
    }
    scope.cancel();
    while (scope.size() > 0) real_.io().run_one();
  }
  void stop() {
    if (!client_) return;
    Scope last{real_.io().get_executor()};
    bool done = false;
    spawn(last, mark(stop_client(), done));
    real_.io().restart();
    while (!done || last.size() > 0) real_.io().run_one();
    client_.reset();
  }

  transport::RealEnvironment real_;
  std::unique_ptr<security::Credentials> credentials_;
  std::unique_ptr<client::Client> client_;
};

void add_actor(Roots& roots, const protocol::ActorInfo& actor) {
  roots.push_back({"actor", actor.actor, actor.name, {}});
  // What its calls wait for its process knows.
  if (actor.state == "alive") roots.push_back({"actor", actor.actor, actor.name, actor.address});
}

// What the head lists by this id or name.
Roots roots_at_head(const Everything& all, const std::string& wanted) {
  Roots roots;
  for (const auto& node : all.nodes) {
    if (matches(node.address.node, node.name, wanted)) {
      roots.push_back({"node", node.address.node, node.name, {}});
    }
  }
  // A name outlives its actors: of those, the ones that live are meant.
  const auto is_meant = [&](const protocol::ActorInfo& actor) {
    const bool by_id = matches(actor.actor, {}, wanted);
    return by_id || (actor.name == wanted && !wanted.empty() && actor.state != "dead");
  };
  for (const auto& actor : all.actors) {
    if (is_meant(actor) || (actor.deployment == wanted && actor.state != "dead")) {
      add_actor(roots, actor);
    }
  }
  for (const auto& group : all.groups) {
    if (matches(group.spec.group, group.spec.name, wanted)) {
      roots.push_back({"placement group", group.spec.group, group.spec.name, {}});
    }
  }
  for (const auto& job : all.jobs) {
    if (matches(job.job, job.name, wanted)) roots.push_back({"job", job.job, job.name, {}});
  }
  return roots;
}

// Objects by their id; and what the jobs among the roots wait for.
Result<Roots> roots_among_objects(Rpc& head, const Roots& known, const std::string& wanted) {
  protocol::ListObjects request;
  TROUPE_TRY(const auto list, head.ask<protocol::ObjectList>(Method::list_objects, request));
  Roots roots;
  for (const auto& object : list.items) {
    const bool of_job = std::ranges::any_of(known, [&](const WaitsFor& root) {
      return root.kind == "job" && root.id == object.job && object.state == "pending";
    });
    if (!of_job && !(known.empty() && matches(object.object, {}, wanted))) continue;
    if (!object.owner.process.is_nil()) {
      roots.push_back({"object", object.object, {}, object.owner});
    }
    if (roots.size() == roots_max) break;
  }
  return roots;
}

// Whoever may know an id that nobody lists: an object that only its owner knows, a call, a process,
// a lease.
Roots roots_anywhere(const Everything& all, RawId id) {
  Roots roots;
  roots.push_back({"id", id, {}, {}});
  for (const auto& job : all.jobs) {
    if (job.state == "running") roots.push_back({"object", id, {}, job.driver});
  }
  for (const auto& actor : all.actors) {
    if (actor.state != "alive") continue;
    roots.push_back({"call", id, {}, actor.address});
    roots.push_back({"object", id, {}, actor.address});
  }
  return roots;
}

// Those that somebody knew.
Roots known_among(const WaitGraph& graph) {
  Roots roots;
  for (size_t i = 0; i < graph.roots(); ++i) {
    const auto& node = graph.nodes()[i];
    const bool known = node.answer == WaitGraph::Answer::told && node.said.state != "unknown";
    if (!known) continue;
    roots.push_back(node.subject);
    if (!node.said.kind.empty()) roots.back().kind = node.said.kind;
  }
  return roots;
}

json::object to_json(const WaitGraph& graph, const std::string& wanted) {
  json::array steps;
  for (const auto& line : graph.lines()) {
    if (line.others > 0 || line.again) continue;
    const auto& node = graph.nodes()[line.node];
    const std::string& name = node.said.name.empty() ? node.subject.name : node.said.name;
    steps.push_back(json::object{
        {"depth", line.depth},
        {"kind", node.subject.kind},
        {"id", node.subject.id.to_string()},
        {"name", name},
        {"state", node.answer == WaitGraph::Answer::silent ? "silent" : node.said.state},
        {"why", node.said.why},
        {"for_s", static_cast<double>(node.said.since_us) / 1e6},
        {"deadline_in_s", static_cast<double>(node.said.deadline_us) / 1e6}});
  }
  const auto circle = graph.deadlock();
  return {{"id", wanted},
          {"steps", std::move(steps)},
          {"deadlock", circle.empty() ? "" : graph.describe(circle)},
          {"complete", !graph.is_cut()}};
}

// Those that the head hears of go first: one that stands still would be waited for.
std::vector<std::string> worker_sockets(const Everything& all) {
  std::vector<std::string> sockets;
  for (const char* state : {"alive", "suspect"}) {
    for (const auto& node : all.nodes) {
      if (node.state == state) sockets.push_back(node.address.unix_path);
    }
  }
  return sockets;
}

Result<Graph> find_out(const StateFolder& folder, const std::string& wanted) {
  TROUPE_TRY(auto head, connect_head(folder));
  TROUPE_TRY(const auto all, ask_everything(*head));
  Roots roots = roots_at_head(all, wanted);
  const bool has_job = std::ranges::any_of(roots, [](const auto& r) { return r.kind == "job"; });
  if (roots.empty() || has_job) {
    TROUPE_TRY(auto objects, roots_among_objects(*head, roots, wanted));
    roots.insert(roots.end(), objects.begin(), objects.end());
  }
  Inquiry inquiry;
  TROUPE_CHECK(inquiry.start(worker_sockets(all)));
  const auto id = RawId::parse(wanted);
  if (roots.empty() && id) {
    const Graph graph = inquiry.explain(roots_anywhere(all, *id));
    if (graph) roots = known_among(*graph);
  }
  if (roots.empty()) {
    return error(Code::not_found,
                 fmt::format("nothing that is known here is called '{}': see 'troupe list "
                             "nodes|actors|jobs|placement-groups' and 'troupe objects'. An object "
                             "that nobody waits for, and nobody else was told of, only its owner "
                             "can explain, by session.explain(ref)",
                             wanted));
  }
  if (roots.size() > roots_max) roots.resize(roots_max);
  Graph graph = inquiry.explain(std::move(roots));
  if (!graph) return error(Code::cancelled, "interrupted");
  return graph;
}

}  // namespace

int run_why(const CommonOptions& common, const std::string& id) {
  watch_interrupts();
  const auto graph = find_out(StateFolder{common.state}, id);
  if (!graph) return fail(graph.error());
  if (common.format == Format::table) {
    fmt::print("{}\n", (*graph)->text());
  } else {
    print(to_json(**graph, id), common.format);
  }
  return 0;
}

}  // namespace troupe::tools
