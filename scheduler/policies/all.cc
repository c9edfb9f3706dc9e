#include <fmt/format.h>
#include <fmt/ranges.h>

#include "scheduler/policy.h"

namespace troupe::scheduler {

Result<std::unique_ptr<Policy>> make_policy(std::string_view name) {
  if (name == "aging") return make_aging_policy();
  if (name == "fifo") return make_fifo_policy();
  if (name == "mlfq") return make_mlfq_policy();
  if (name == "priority") return make_priority_policy();
  if (name == "rr") return make_round_robin_policy();
  if (name == "sjf") return make_sjf_policy();
  if (name == "srtf") return make_srtf_policy();
  return error(Code::invalid, fmt::format("there is no policy '{}': choose one of {}", name,
                                          fmt::join(policy_names, ", ")));
}

}  // namespace troupe::scheduler
