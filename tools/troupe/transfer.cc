// `troupe head transfer`.
#include <boost/json.hpp>

#include "protocol/codec.h"
#include "troupe/commands.h"
#include "troupe/output.h"
#include "troupe/rpc.h"
#include "troupe/state_folder.h"

namespace troupe::tools {

int run_transfer(const CommonOptions& common, const std::string& to) {
  const auto head = connect_head(StateFolder{common.state});
  if (!head) return fail(head.error());
  protocol::TransferLead request;
  request.to = to;
  const auto done = (*head)->ask<protocol::TransferLead>(transport::Method::transfer_lead, request);
  if (!done) return fail(done.error());
  print(boost::json::object{{"leads", done->to}}, common.format);
  return 0;
}

}  // namespace troupe::tools
