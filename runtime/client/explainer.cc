#include "client/explainer.h"

#include <fmt/format.h>

#include <algorithm>

namespace troupe::client {

using protocol::Explanation;
using protocol::Explanations;
using protocol::WaitsFor;

struct Explainer::Walk {
  std::shared_ptr<WaitGraph> graph = std::make_shared<WaitGraph>();
  std::vector<size_t> next;  // To be asked about.
  size_t questions = 0;
  Instant deadline;
};

// Of one kind, to one process.
struct Explainer::Question {
  std::string kind;
  protocol::ProcessAddress to;  // Nil: the head.
  std::vector<size_t> places;
};

namespace {

std::string place_text(const protocol::ProcessAddress& at) {
  std::string text = "process " + at.process.to_string();
  if (!at.node.is_nil()) text += " on node " + at.node.to_string();
  return text;
}

}  // namespace

Explainer::Explainer(transport::Environment environment, Scope& scope, Witnesses& witnesses,
                     ExplainLimits limits)
    : environment_(environment), scope_(scope), witnesses_(witnesses), limits_(limits) {}

std::vector<Explainer::Question> Explainer::questions_of(Walk& walk,
                                                         const std::vector<size_t>& places) const {
  std::vector<Question> questions;
  for (const size_t place : places) {
    const WaitsFor& subject = walk.graph->nodes()[place].subject;
    const bool is_head = subject.at.process.is_nil();
    const auto same = std::ranges::find_if(questions, [&](const Question& question) {
      return !is_head && question.kind == subject.kind && subject.kind != "actor" &&
             question.to.process == subject.at.process &&
             question.places.size() < limits_.asked_max;
    });
    if (same != questions.end()) {
      same->places.push_back(place);
    } else if (walk.questions < limits_.questions_max) {
      ++walk.questions;
      questions.push_back({subject.kind, subject.at, {place}});
    } else {
      walk.graph->cut();
    }
  }
  return questions;
}

Async<std::shared_ptr<WaitGraph>> Explainer::explain(std::vector<WaitsFor> roots) {
  const auto walk = std::make_shared<Walk>();
  walk->deadline = environment_.clock.now() + limits_.budget;
  std::vector<size_t> now;
  for (const WaitsFor& root : roots) {
    const size_t place = walk->graph->add(root);
    if (place == now.size()) now.push_back(place);
    if (now.size() == limits_.nodes_max) break;
  }
  walk->graph->set_roots(now.size());
  for (size_t depth = 0; !now.empty(); ++depth) {
    if (depth == limits_.depth_max || environment_.clock.now() >= walk->deadline) {
      walk->graph->cut();
      break;
    }
    const auto over = std::make_shared<Event>(environment_.loop);
    std::shared_ptr<void> round{nullptr, [over](void*) { over->set(); }};
    for (Question& question : questions_of(*walk, now)) {
      spawn(scope_, ask(walk, std::move(question), round));
    }
    round.reset();
    co_await over->wait();
    now = std::exchange(walk->next, {});
  }
  co_return walk->graph;
}

Async<void> Explainer::ask(std::shared_ptr<Walk> walk, Question question,
                           std::shared_ptr<void> round) {
  const Instant deadline =
      std::min(walk->deadline, environment_.clock.now() + limits_.answer_budget);
  auto answer = co_await answer_to(question, *walk->graph, deadline);
  take(*walk, question, std::move(answer));
  round.reset();
}

Async<Result<Explanations>> Explainer::answer_to(Question question, const WaitGraph& graph,
                                                 Instant deadline) {
  const WaitsFor& first = graph.nodes()[question.places.front()].subject;
  if (question.to.process.is_nil()) {
    auto told = co_await witnesses_.head(first.id, deadline);
    if (!told) co_return std::move(told).error();
    Explanations one;
    one.items.push_back(std::move(*told));
    co_return one;
  }
  if (question.kind == "object") {
    std::vector<ObjectId> objects;
    for (const size_t place : question.places) {
      objects.push_back(ObjectId{graph.nodes()[place].subject.id});
    }
    co_return co_await witnesses_.objects(question.to, std::move(objects), deadline);
  }
  protocol::ExplainCalls asked;
  if (question.kind == "actor") {
    asked.actor = ActorId{first.id};
  } else {
    for (const size_t place : question.places) {
      asked.tasks.push_back(TaskId{graph.nodes()[place].subject.id});
    }
  }
  co_return co_await witnesses_.calls(question.to, std::move(asked), deadline);
}

void Explainer::take(Walk& walk, const Question& question, Result<Explanations> answer) {
  WaitGraph& graph = *walk.graph;
  const auto ask_about = [&](size_t place) {
    const auto& node = graph.nodes()[place];
    if (node.answer != WaitGraph::Answer::none) return;
    if (std::ranges::find(walk.next, place) != walk.next.end()) return;
    walk.next.push_back(place);
  };
  const bool is_head = question.to.process.is_nil();
  if (answer && answer->items.size() < question.places.size()) {
    answer = error(Code::internal, "it answered for fewer things than it was asked about");
  }
  if (!answer) {
    const std::string who = is_head ? "the head" : place_text(question.to);
    // What is known, if only that it is gone, is an answer; a stranger's silence is not.
    const bool is_unknown = is_head && answer.error().code() == Code::not_found;
    for (const size_t place : question.places) {
      graph.silent(
          place, is_unknown ? answer.error().message()
                            : fmt::format("{} does not answer: {}", who, answer.error().message()));
      if (is_head) continue;
      const size_t process = graph.add({"process", question.to.process, {}, {}});
      graph.link(place, process);
      ask_about(process);
    }
    return;
  }
  for (size_t i = 0; i < question.places.size(); ++i) {
    auto& waits_for = answer->items[i].waits_for;
    if (graph.nodes().size() + waits_for.size() > limits_.nodes_max) {
      waits_for.clear();  // All or none: one of those left out could be the one that goes on.
      graph.cut();
    }
    for (const size_t next : graph.tell(question.places[i], std::move(answer->items[i]))) {
      ask_about(next);
    }
  }
}

}  // namespace troupe::client
