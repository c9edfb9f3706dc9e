#include "gateway/metrics.h"

#include <fmt/format.h>

#include <algorithm>

namespace troupe::gateway {

namespace {

std::string escaped(const std::string& value) {
  std::string out;
  for (const char c : value) {
    if (c == '\\' || c == '"') out += '\\';
    if (c == '\n') {
      out += "\\n";
    } else {
      out += c;
    }
  }
  return out;
}

std::string label(const char* name, const std::string& value) {
  return fmt::format("{}=\"{}\"", name, escaped(value));
}

void head(std::string& out, const std::string& name, const char* type, const char* help) {
  out += fmt::format("# HELP {} {}\n# TYPE {} {}\n", name, help, name, type);
}

void family(std::string& out, const std::string& name, const char* type, const char* help,
            const char* key, const std::map<std::string, uint64_t>& values) {
  head(out, name, type, help);
  for (const auto& [value, count] : values) {
    out += fmt::format("{}{{{}}} {}\n", name, label(key, value), count);
  }
}

void family(std::string& out, const std::string& name, const char* help, const char* key,
            const std::map<std::string, Histogram>& values) {
  head(out, name, "histogram", help);
  for (const auto& [value, histogram] : values) histogram.write(out, name, label(key, value));
}

}  // namespace

void Histogram::observe(Duration value) {
  const double seconds = std::chrono::duration<double>(value).count();
  const auto bucket = std::lower_bound(bounds.begin(), bounds.end(), seconds) - bounds.begin();
  ++counts_[static_cast<size_t>(bucket)];
  sum_ += seconds;
}

void Histogram::write(std::string& out, const std::string& name, const std::string& labels) const {
  uint64_t total = 0;
  for (size_t i = 0; i < bounds.size(); ++i) {
    total += counts_[i];
    out += fmt::format("{}_bucket{{{},le=\"{}\"}} {}\n", name, labels, bounds[i], total);
  }
  total += counts_.back();
  out +=
      fmt::format("{0}_bucket{{{1},le=\"+Inf\"}} {2}\n{0}_sum{{{1}}} {3}\n{0}_count{{{1}}} {2}\n",
                  name, labels, total, sum_);
}

void Metrics::request_ended(const std::string& route, int code, Duration took) {
  ++requests_[{route, code}];
  durations_[route].observe(took);
}

void Metrics::tokens(const std::string& model, uint64_t prompt, uint64_t completion) {
  prompt_tokens_[model] += prompt;
  completion_tokens_[model] += completion;
}

std::string Metrics::text() const {
  std::string out;
  head(out, "troupe_gateway_requests_total", "counter", "Requests by route and status code.");
  for (const auto& [key, count] : requests_) {
    out += fmt::format("troupe_gateway_requests_total{{{},code=\"{}\"}} {}\n",
                       label("route", key.first), key.second, count);
  }
  family(out, "troupe_gateway_request_duration_seconds", "From a request read to its answer sent.",
         "route", durations_);
  family(out, "troupe_gateway_time_to_first_token_seconds",
         "From a request read to its first token.", "model", first_);
  family(out, "troupe_gateway_inter_token_seconds", "Between the pieces of one generation.",
         "model", between_);
  family(out, "troupe_gateway_prompt_tokens_total", "counter", "Prompt tokens.", "model",
         prompt_tokens_);
  family(out, "troupe_gateway_completion_tokens_total", "counter", "Generated tokens.", "model",
         completion_tokens_);
  family(out, "troupe_gateway_retries_total", "counter",
         "Generations begun again because a replica was lost.", "model", retries_);
  family(out, "troupe_gateway_in_flight_requests", "gauge", "Generations running.", "model",
         in_flight_);
  family(out, "troupe_gateway_refused_total", "counter", "Requests turned away.", "reason",
         refused_);
  head(out, "troupe_gateway_connections", "gauge", "Open client connections.");
  out += fmt::format("troupe_gateway_connections {}\n", connections_);
  return out;
}

}  // namespace troupe::gateway
