// How to start a member of etcd.
#pragma once

#include <chrono>
#include <filesystem>
#include <string>
#include <vector>

namespace troupe::etcd {

struct EtcdMember {
  std::string name;
  std::string peer_address;  // IP:PORT
};

struct EtcdServerOptions {
  // With the credentials of role etcd that security::save_credentials wrote, whose certificate
  // names the addresses below. The data go to etcd/ in it.
  std::filesystem::path folder;
  std::string cluster;         // Its id; members of different clusters do not mix.
  std::string client_address;  // IP:PORT
  EtcdMember self;
  std::vector<EtcdMember> others;  // The same at each member, each without itself.
  // The least lease is one and a half election timeouts, rounded up to whole seconds.
  std::chrono::milliseconds heartbeat{100};
  std::chrono::milliseconds election_timeout{500};
};

// The arguments of etcd, without the program's name. etcd reads ETCD_... from its environment, too:
// start it without.
std::vector<std::string> etcd_arguments(const EtcdServerOptions& options);

}  // namespace troupe::etcd
