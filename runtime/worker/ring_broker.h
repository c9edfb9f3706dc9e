// Makes the rings between processes of this node, and closes those of the dead.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <vector>

#include "transport/doorbell.h"
#include "transport/environment.h"
#include "transport/peer.h"

namespace troupe::worker {

class RingBroker {
 public:
  explicit RingBroker(transport::Environment environment) : environment_(environment) {}

  // A process of this node gives its doorbell, and gets the node's page. Once a process.
  // Errors: denied (another node's), invalid, conflict, exhausted.
  Async<Result<transport::Message>> attach(transport::Message message, transport::CallContext call);
  // Opens a pair of rings from the caller to another process. Errors: denied, not_found (it has no
  // rings), exhausted (too many rings, no memory), what the other process answers.
  Async<Result<transport::Message>> open(transport::Message message, transport::CallContext call);
  // Its peers find its rings closed and are woken.
  void process_gone(ProcessId process);

 private:
  // One end of an open pair.
  struct End {
    ProcessId peer;
    std::shared_ptr<transport::SharedPage> control;
  };
  struct Member {
    Member(std::shared_ptr<transport::Peer> p, transport::SharedPage page)
        : peer(std::move(p)), doorbell(std::move(page)), ends(transport::rings_max) {}
    std::shared_ptr<transport::Peer> peer;
    transport::Doorbell doorbell;
    std::vector<std::optional<End>> ends;  // By index in its doorbell.
    uint32_t next_index = 0;
  };

  std::optional<uint32_t> free_index(Member& member) const;
  void release(ProcessId process, uint32_t index,
               const std::shared_ptr<transport::SharedPage>& control);

  transport::Environment environment_;
  std::map<ProcessId, std::unique_ptr<Member>> members_;
  std::optional<transport::SharedPage> node_;
};

}  // namespace troupe::worker
