#include "protocol/messages.h"

#include <fmt/format.h>

namespace troupe::protocol {

std::string method_name(Method method) {
  switch (method) {
    case Method::unknown:
      break;
#define TROUPE_NAME(name) \
  case Method::name:      \
    return #name
      TROUPE_NAME(hello);
      TROUPE_NAME(register_node);
      TROUPE_NAME(heartbeat);
      TROUPE_NAME(process_exited);
      TROUPE_NAME(begin_job);
      TROUPE_NAME(end_job);
      TROUPE_NAME(create_actor);
      TROUPE_NAME(get_actor);
      TROUPE_NAME(kill_actor);
      TROUPE_NAME(request_lease);
      TROUPE_NAME(renew_lease);
      TROUPE_NAME(return_lease);
      TROUPE_NAME(deploy);
      TROUPE_NAME(undeploy);
      TROUPE_NAME(watch_deployments);
      TROUPE_NAME(list_nodes);
      TROUPE_NAME(list_actors);
      TROUPE_NAME(list_jobs);
      TROUPE_NAME(list_deployments);
      TROUPE_NAME(cluster_info);
      TROUPE_NAME(back_up);
      TROUPE_NAME(slot_waits);
      TROUPE_NAME(create_placement_groups);
      TROUPE_NAME(remove_placement_groups);
      TROUPE_NAME(get_placement_group);
      TROUPE_NAME(list_placement_groups);
      TROUPE_NAME(start_actor);
      TROUPE_NAME(stop_actor);
      TROUPE_NAME(start_slots);
      TROUPE_NAME(stop_slots);
      TROUPE_NAME(attach_process);
      TROUPE_NAME(attach_segment);
      TROUPE_NAME(reserve_extent);
      TROUPE_NAME(seal_blocks);
      TROUPE_NAME(get_block);
      TROUPE_NAME(release_blocks);
      TROUPE_NAME(fetch_chunk);
      TROUPE_NAME(read_log);
      TROUPE_NAME(return_extents);
      TROUPE_NAME(job_ended);
      TROUPE_NAME(report_gauges);
      TROUPE_NAME(attach_rings);
      TROUPE_NAME(open_ring);
      TROUPE_NAME(assign_actor);
      TROUPE_NAME(assign_slot);
      TROUPE_NAME(invoke);
      TROUPE_NAME(invoke_stream);
      TROUPE_NAME(stop_process);
      TROUPE_NAME(collective);
      TROUPE_NAME(resolve_objects);
      TROUPE_NAME(create_actors);
      TROUPE_NAME(kill_actors);
      TROUPE_NAME(get_actors);
      TROUPE_NAME(start_actors);
      TROUPE_NAME(stop_actors);
      TROUPE_NAME(list_objects);
      TROUPE_NAME(assign_actors);
      TROUPE_NAME(end_actors);
      TROUPE_NAME(stay_until);
      TROUPE_NAME(object_copied);
      TROUPE_NAME(free_objects);
      TROUPE_NAME(wait_objects);
      TROUPE_NAME(add_borrow);
      TROUPE_NAME(remove_borrow);
      TROUPE_NAME(drop_segments);
      TROUPE_NAME(accept_ring);
      TROUPE_NAME(yield_slots);
      TROUPE_NAME(drain_node);
      TROUPE_NAME(adopt_objects);
      TROUPE_NAME(evacuate);
      TROUPE_NAME(list_held);
      TROUPE_NAME(follow_leader);
      TROUPE_NAME(replicate);
      TROUPE_NAME(transfer_lead);
      TROUPE_NAME(ping);
      TROUPE_NAME(get_job);
      TROUPE_NAME(get_package);
      TROUPE_NAME(explain);
      TROUPE_NAME(explain_objects);
      TROUPE_NAME(explain_calls);
      TROUPE_NAME(job_logs);
      TROUPE_NAME(get_timelines);
      TROUPE_NAME(attach_timeline);
      TROUPE_NAME(store_checkpoint);
#undef TROUPE_NAME
  }
  return fmt::format("method {}", static_cast<uint32_t>(method));
}

ErrorInfo to_info(const Error& error) {
  ErrorInfo info;
  info.code = static_cast<uint32_t>(error.code());
  info.message = error.message();
  info.where = error.where();
  if (error.retry_after()) {
    info.retry_after_us = static_cast<uint64_t>(error.retry_after()->count()) * 1000;
  }
  return info;
}

Error from_info(const ErrorInfo& info) {
  Error made{code_from_number(info.code), info.message};
  if (!info.where.empty()) made = std::move(made).at(info.where);
  if (info.retry_after_us != 0) {
    made = std::move(made).after(std::chrono::milliseconds(info.retry_after_us / 1000));
  }
  return made;
}

}  // namespace troupe::protocol
