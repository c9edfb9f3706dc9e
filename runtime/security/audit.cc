#include "security/audit.h"

#include "base/log.h"

namespace troupe::security {
namespace {

// Strangers choose part of these texts: they get no control characters and no flood.
std::string printable(std::string_view text) {
  constexpr size_t bytes_max = 256;
  std::string out{text.substr(0, bytes_max)};
  for (char& c : out) {
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) c = '?';
  }
  return out;
}

}  // namespace

std::string audit_name(const PeerIdentity& peer) {
  return std::string(peer.local ? "local " : "") + std::string(role_name(peer.role)) + " " +
         peer.name;
}

void Audit::to_log(const AuditLine& line) {
  log::info("audit", {{"who", line.who},
                      {"what", line.what},
                      {"decision", line.decision == Decision::admitted ? "admitted" : "refused"},
                      {"reason", line.reason}});
}

void Audit::write(std::string_view who, std::string_view what, Decision decision,
                  std::string_view reason) const {
  sink_({.who = printable(who),
         .what = printable(what),
         .decision = decision,
         .reason = printable(reason)});
}

}  // namespace troupe::security
