// Why something waits: asks whoever knows, step by step, until nothing more waits.
#pragma once

#include <memory>

#include "client/wait_graph.h"
#include "transport/environment.h"

namespace troupe::client {

// Who can be asked. On the loop; each answers by the deadline.
class Witnesses {
 public:
  virtual ~Witnesses() = default;
  // An answer each, in their order.
  virtual Async<Result<protocol::Explanations>> objects(protocol::ProcessAddress owner,
                                                        std::vector<ObjectId> objects,
                                                        Instant deadline) = 0;
  // The same of the tasks; or the actor, and then its calls.
  virtual Async<Result<protocol::Explanations>> calls(protocol::ProcessAddress process,
                                                      protocol::ExplainCalls asked,
                                                      Instant deadline) = 0;
  // Errors: not_found.
  virtual Async<Result<protocol::Explanation>> head(RawId id, Instant deadline) = 0;
};

struct ExplainLimits {
  size_t depth_max = 32;       // Steps from what was asked about.
  size_t questions_max = 256;  // Messages.
  size_t nodes_max = 2048;     // Things that were asked about.
  size_t asked_max = 256;      // Things in one question.
  Duration budget = std::chrono::seconds(5);
  Duration answer_budget = std::chrono::seconds(1);  // Of one who is asked.
};

// On the loop. The witnesses and the scope outlive it and what it runs.
class Explainer {
 public:
  Explainer(transport::Environment environment, Scope& scope, Witnesses& witnesses,
            ExplainLimits limits = {});

  // Whoever does not answer is in the graph as that, with what the head knows of its process. Takes
  // the limits' budget at most.
  Async<std::shared_ptr<WaitGraph>> explain(std::vector<protocol::WaitsFor> roots);

 private:
  struct Walk;
  struct Question;
  std::vector<Question> questions_of(Walk& walk, const std::vector<size_t>& places) const;
  Async<void> ask(std::shared_ptr<Walk> walk, Question question, std::shared_ptr<void> round);
  Async<Result<protocol::Explanations>> answer_to(Question question, const WaitGraph& graph,
                                                  Instant deadline);
  // Those that are to be asked about next.
  void take(Walk& walk, const Question& question, Result<protocol::Explanations> answer);

  const transport::Environment environment_;
  Scope& scope_;
  Witnesses& witnesses_;
  const ExplainLimits limits_;
};

}  // namespace troupe::client
