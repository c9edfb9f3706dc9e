#include "troupe/explain.h"

#include "client/explainer.h"
#include "client/object_directory.h"
#include "session_impl.h"

namespace troupe::detail {

namespace {

Async<Result<std::shared_ptr<client::WaitGraph>>> walk(client::Client& client,
                                                       client::ObjectName name) {
  std::vector<protocol::WaitsFor> roots{{"object", name.id, {}, std::move(name.owner)}};
  co_return co_await client.explainer().explain(std::move(roots));
}

Explanation::Step to_step(const client::WaitGraph::Node& node, size_t depth) {
  Explanation::Step step;
  step.depth = depth;
  step.kind = node.subject.kind;
  step.id = node.subject.id.to_string();
  step.name = node.said.name.empty() ? node.subject.name : node.said.name;
  step.state = node.said.state;
  step.why = node.said.why;
  step.since = std::chrono::microseconds(node.said.since_us);
  step.deadline_in = std::chrono::microseconds(node.said.deadline_us);
  return step;
}

}  // namespace

Result<Explanation> explain(const RefHandle& ref) {
  SessionImpl& session = *ref.session();
  client::Client& client = session.client();
  client::ObjectName name{ref.id(), ref.owner()};
  if (ref.object()) name = client.objects().publish(ref.object());
  TROUPE_TRY(const auto graph, session.run<std::shared_ptr<client::WaitGraph>>(
                                   [&] { return walk(client, std::move(name)); }));
  Explanation told;
  for (const auto& line : graph->lines()) {
    const bool is_new = line.others == 0 && !line.again;
    if (is_new) told.steps.push_back(to_step(graph->nodes()[line.node], line.depth));
  }
  const auto circle = graph->deadlock();
  if (!circle.empty()) told.deadlock = graph->describe(circle);
  told.text = graph->text();
  return told;
}

}  // namespace troupe::detail
