// The etcd of a cluster with several heads on this machine.
#pragma once

#include <string>
#include <vector>

#include "base/clock.h"
#include "base/status.h"
#include "troupe/state_folder.h"

namespace troupe::tools {

// The name of the folder of a head's credentials for etcd. They are of an authority of etcd's own:
// no other part of the cluster may write who leads.
std::string etcd_credentials(const std::string& head);

// Makes etcd's authority, if there is none, and the credentials of a member and of the heads.
// Errors: not_found (etcd is not installed).
Status prepare_etcd(const StateFolder& folder, const std::string& host,
                    const std::vector<std::string>& heads, WallTime now);

}  // namespace troupe::tools
