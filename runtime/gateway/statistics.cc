#include "gateway/statistics.h"

#include <algorithm>
#include <boost/json.hpp>
#include <cmath>

namespace troupe::gateway {
namespace json = boost::json;

namespace {

constexpr Duration rate_window = std::chrono::seconds(60);

double milliseconds(Duration value) {
  return std::chrono::duration<double, std::milli>(value).count();
}

// The nearest-rank percentile; null without values.
json::value percentile(std::vector<Duration> values, double part) {
  if (values.empty()) return nullptr;
  const auto rank = static_cast<size_t>(std::lround(part * static_cast<double>(values.size() - 1)));
  const auto nth = values.begin() + static_cast<std::ptrdiff_t>(rank);
  std::nth_element(values.begin(), nth, values.end());
  return milliseconds(*nth);
}

}  // namespace

void Statistics::add(const std::string& name, Request request) {
  Model& model = models_[name];
  ++model.requests;
  model.failed += request.succeeded ? 0 : 1;
  model.tokens += request.tokens;
  model.retries += request.retries;
  model.recent.push_back(request);
  if (model.recent.size() > recent_max) model.recent.pop_front();
}

void Statistics::keep_only(const std::vector<ModelInfo>& models) {
  std::erase_if(models_, [&](const auto& entry) {
    return std::none_of(models.begin(), models.end(),
                        [&](const ModelInfo& info) { return info.name == entry.first; });
  });
}

std::string Statistics::to_json(const std::vector<ModelInfo>& models, Instant now) const {
  static const Model nothing;
  json::object out;
  for (const ModelInfo& info : models) {
    const auto found = models_.find(info.name);
    const Model& model = found == models_.end() ? nothing : found->second;
    std::vector<Duration> took;
    std::vector<Duration> first;
    uint64_t tokens = 0;
    Instant oldest = now;
    for (const Request& request : model.recent) {
      if (request.succeeded) took.push_back(request.took);
      if (request.succeeded && request.first_token) first.push_back(*request.first_token);
      if (now - request.ended > rate_window) continue;
      tokens += request.tokens;
      oldest = std::min(oldest, request.ended - request.took);
    }
    const double seconds = std::chrono::duration<double>(now - oldest).count();
    json::object row{
        {"model", info.name},
        {"state", info.state},
        {"replicas", info.replicas_wanted},
        {"replicas_alive", info.replicas_alive},
        {"requests", model.requests},
        {"requests_failed", model.failed},
        {"response_ms_p50", percentile(took, 0.5)},
        {"response_ms_p99", percentile(took, 0.99)},
        {"first_token_ms_p50", percentile(first, 0.5)},
        {"first_token_ms_p99", percentile(first, 0.99)},
        {"measured_over_requests", took.size()},
        {"tokens_total", model.tokens},
        {"tokens_per_second", seconds > 0 ? static_cast<double>(tokens) / seconds : 0.0},
        {"utilisation", info.utilisation},
        {"retries", model.retries},
        {"replica_failures", info.replica_failures},
        {"last_recovery_seconds", nullptr}};
    if (info.last_recovery_seconds) row["last_recovery_seconds"] = *info.last_recovery_seconds;
    out[info.name] = std::move(row);
  }
  return json::serialize(json::object{{"models", std::move(out)}});
}

}  // namespace troupe::gateway
