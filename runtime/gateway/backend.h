// What the gateway asks of those who generate text. ClusterBackend is the real one.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "transport/async.h"

namespace troupe::gateway {

struct ModelInfo {
  std::string name;
  std::string state;   // starting, ready, updating, degraded, failed.
  std::string reason;  // Why it is not ready.
  uint32_t replicas_wanted = 0;
  uint32_t replicas_alive = 0;
  uint64_t replica_failures = 0;
  // From the first failure of a replica until all were alive again; of the latest such outage.
  std::optional<double> last_recovery_seconds;
  // The share of the replicas' time since the first request in which they had one to work on.
  double utilisation = 0;
};

// A piece of a generation, as an engine sends it.
struct Chunk {
  std::string text;
  std::vector<int32_t> tokens;
  std::string finish_reason;              // stop or length; empty: more follows.
  std::optional<uint32_t> prompt_tokens;  // On the first chunk.
  uint32_t completion_tokens = 0;         // So far.
  std::string logprobs;                   // JSON, empty if not asked for; see engine_json.h.
};

struct GenerateRequest {
  std::string model;
  std::string arguments;  // JSON, the engine's one argument.
  Duration budget{};      // Of the whole generation.
};

// One running generation. Dropping it cancels it.
class Generation {
 public:
  virtual ~Generation() = default;
  // The next chunk; nullopt at the orderly end. Errors: the engine's; unavailable or
  // outcome_unknown when its replica is lost.
  virtual Async<Result<std::optional<Chunk>>> next() = 0;
  // Which replica, in which incarnation: what begin() takes as excluded.
  virtual const std::string& replica() const = 0;
};

// Belongs to the gateway's loop.
class Backend {
 public:
  virtual ~Backend() = default;
  virtual std::vector<ModelInfo> models() const = 0;  // Ordered by name.
  // Starts on a replica that is not excluded; names the one that it tried in `tried`, also when it
  // fails. Errors: not_found (no such model), unavailable (none to try: `tried` is empty; or the
  // one tried is lost), and the engine's own.
  virtual Async<Result<std::unique_ptr<Generation>>> begin(GenerateRequest request,
                                                           std::set<std::string> excluded,
                                                           std::string& tried) = 0;
  // Waits until replicas have come or gone; false at the deadline.
  virtual Async<bool> wait_change(Instant deadline) = 0;
};

}  // namespace troupe::gateway
