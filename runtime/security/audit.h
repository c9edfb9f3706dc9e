// One line for each decision to let in or to turn away.
#pragma once

#include <functional>
#include <string>
#include <string_view>

#include "security/identity.h"

namespace troupe::security {

enum class Decision { admitted, refused };

struct AuditLine {
  std::string who;   // "node 3fa2...", "api_key ci", "unknown 10.0.0.7".
  std::string what;  // "connect", "join", "POST /v1/chat/completions".
  Decision decision = Decision::refused;
  std::string reason;  // Of a refusal, or what admitted it: "certificate", "api key".
};

// "node 3fa2...", as audit lines name a peer.
std::string audit_name(const PeerIdentity& peer);

// Thread-safe if its sink is. Never give it a secret: callers name keys, they do not show them.
class Audit {
 public:
  using Sink = std::function<void(const AuditLine&)>;
  // The log event "audit" with who, what, decision and reason.
  static void to_log(const AuditLine& line);

  explicit Audit(Sink sink = &Audit::to_log) : sink_(std::move(sink)) {}

  void admit(std::string_view who, std::string_view what, std::string_view reason) const {
    write(who, what, Decision::admitted, reason);
  }
  void refuse(std::string_view who, std::string_view what, std::string_view reason) const {
    write(who, what, Decision::refused, reason);
  }

 private:
  void write(std::string_view who, std::string_view what, Decision decision,
             std::string_view reason) const;
  Sink sink_;
};

}  // namespace troupe::security
