// A network in memory, with faults by seed. Frames really are encoded and decoded on their way.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "base/random.h"
#include "tests/sim/faults.h"
#include "tests/sim/history.h"
#include "tests/sim/sim_clock.h"
#include "transport/network.h"

namespace troupe::sim {

class SimNetwork;
struct SimPipe;  // One direction of a connection.

// Probabilities are a frame's. A frame that is held up may be overtaken by later ones of its
// connection; all others keep their order.
struct NetworkFaults {
  Duration delay_min = std::chrono::microseconds(100);
  Duration delay_max = std::chrono::milliseconds(1);
  double drop = 0;
  double duplicate = 0;
  double reorder = 0;  // Held up by up to ten times delay_max.
  double late = 0;     // Arrives up to late_max later, and holds up what follows.
  Duration late_max = std::chrono::seconds(2);
  // A packet's, between machines, each way. What is lost TCP sends again, and it holds up what
  // follows.
  double packet_loss = 0;
  double reset = 0;          // The connection breaks instead, on both sides.
  double refuse = 0;         // A connect is turned away.
  bool spare_local = false;  // Sockets within a machine lose and reset nothing.
  bool spare_hello = true;   // Without its hello a connection never begins; none is lost then.
  // Which requests may arrive twice; null: all.
  std::function<bool(const protocol::FrameHeader&)> may_duplicate;
};

struct NetworkCounts {
  uint64_t sent = 0;
  uint64_t delivered = 0;
  uint64_t dropped = 0;
  uint64_t duplicated = 0;
  uint64_t held_up = 0;
  uint64_t overtaken = 0;  // Arrived after a frame that was sent later.
  uint64_t resets = 0;
  uint64_t cut = 0;   // Lost in a partition.
  uint64_t lost = 0;  // Sent to, or on the way from, a side that was closed or killed.
  uint64_t connections = 0;
  uint64_t refused = 0;  // Connects to nobody.
  uint64_t packets_lost = 0;
};

class SimHost;

// A frame as its sender hands it over, before any fault. A tap may change it.
struct SentFrame {
  uint64_t connection;  // The same in both directions.
  const SimHost& from;
  const SimHost& to;
  transport::Frame& frame;
};

struct HostOptions {
  std::string name;     // In the history, and where it happened.
  std::string machine;  // Unix paths reach hosts of the same machine only; partitions cut machines.
  // What a TLS peer learns of this host.
  transport::PeerIdentity identity;
};

// One process's view of the network.
class SimHost final : public transport::Network {
 public:
  using Connecting = Async<Result<std::unique_ptr<transport::Connection>>>;

  SimHost(SimNetwork& network, HostOptions options);
  ~SimHost() override;

  const std::string& name() const { return options_.name; }
  const std::string& machine() const { return options_.machine; }
  const transport::PeerIdentity& identity() const { return options_.identity; }
  bool is_alive() const { return alive_; }

  // Of this process alone.
  HostClock& clock() { return clock_; }
  // Stops it where it is, as SIGSTOP or a hypervisor does: what comes for it waits.
  void pause();
  void resume();
  bool is_paused() const { return clock_.is_paused(); }
  // How long it was paused so far.
  Duration paused_for() const;
  // Timers and messages that waited for the end of a pause, so far.
  uint64_t held_back() const { return held_back_ + clock_.held_back(); }

  Connecting connect(transport::Endpoint endpoint, Instant deadline) override;
  Async<transport::Reach> probe(transport::Endpoint endpoint, Instant deadline) override;
  Result<std::unique_ptr<transport::Listener>> listen(const transport::Endpoint& endpoint) override;

 private:
  friend class SimNetwork;
  SimNetwork& network_;
  // Now, or when it is no longer paused.
  void when_awake(std::function<void()> event);

  HostOptions options_;
  HostClock clock_;
  std::vector<std::function<void()>> held_;
  uint64_t held_back_ = 0;
  Instant paused_at_{};
  Duration paused_for_{};
  bool alive_ = true;
};

// Owned by the simulation; hosts live as long as it.
class SimNetwork {
 public:
  SimNetwork(Executor executor, SimClock& clock, History& history, uint64_t seed);
  ~SimNetwork();

  SimHost& add_host(HostOptions options);
  // Two ends of a connection between processes of one machine, as a socket pair is.
  using Pair =
      std::pair<std::unique_ptr<transport::Connection>, std::unique_ptr<transport::Connection>>;
  Pair connected_pair(SimHost& a, SimHost& b);

  void set_faults(NetworkFaults faults) { faults_ = std::move(faults); }
  const NetworkFaults& faults() const { return faults_; }
  const NetworkCounts& counts() const { return counts_; }

  // Whether machines say that nobody listens where a process has died, so that a probe knows. Else
  // it finds silence, and deaths are noticed late: most of what goes wrong does so until then.
  void set_refusals(bool told) { tells_refusals_ = told; }

  // Taps see every frame, in the order in which they were added.
  void add_tap(std::function<void(const SentFrame&)> tap) { taps_.push_back(std::move(tap)); }

  // Frames between the two machines are lost and connects wait, in both directions.
  void partition(const std::string& machine_a, const std::string& machine_b);
  // The same of one direction, counted as `why` when something is lost by it.
  void cut(const std::string& from_machine, const std::string& to_machine, Fault why);
  void mend(const std::string& from_machine, const std::string& to_machine);
  // Whether a cut takes what is sent now, by another way than a frame. Counted as it is.
  bool loses(const std::string& from_machine, const std::string& to_machine);
  // Everything to and from the machine takes so much longer; zero: no longer.
  void slow_down(const std::string& machine, Duration by);
  // Of all cuts and slow links.
  void heal();
  // Its connections break, its listeners are gone, and it reaches nobody any more.
  void kill(SimHost& host);
  // The same, but nobody learns of it: who is connected or connects waits for an answer.
  void lose(SimHost& host);

  FaultCounts& fault_counts() { return fault_counts_; }

 private:
  friend class SimHost;
  friend class SimConnection;
  friend class SimListener;
  struct ListenerState;

  void note(Fault fault) { fault_counts_.note(fault); }
  void end_host(SimHost& host, bool silently);
  std::optional<Fault> cut_between(const std::string& from, const std::string& to) const;
  std::optional<Fault> cut_between(const SimHost& from, const SimHost& to) const {
    return cut_between(from.machine(), to.machine());
  }
  bool cuts_connect(const SimHost& from, const SimHost& to);
  Duration slowness(const SimHost& from, const SimHost& to);
  Duration delay();
  bool loses_packet();
  // What lost packets add to the way of a frame, and to the handshakes of TCP and TLS.
  Duration resending();
  Duration connecting();
  Status send(const std::shared_ptr<SimPipe>& pipe, transport::Frame frame);
  void deliver_at(Instant when, std::shared_ptr<SimPipe> pipe, uint64_t sequence,
                  std::shared_ptr<transport::Frame> rest, std::shared_ptr<const Bytes> header);
  void deliver(SimPipe& pipe, uint64_t sequence, transport::Frame& rest, const Bytes& header);
  // Tells the reading side that nothing more comes.
  void end_at(Instant when, std::shared_ptr<SimPipe> pipe);
  void end_both(const std::shared_ptr<SimPipe>& pipe, const Error& why);
  Pair make_pair(SimHost& from, SimHost& to, transport::PeerIdentity seen_by_from,
                 transport::PeerIdentity seen_by_to);
  void trace(const char* what, const SimPipe& pipe, const protocol::FrameHeader& header,
             size_t body_bytes);

  Executor executor_;
  SimClock& clock_;
  History& history_;
  SeededRandom random_;
  NetworkFaults faults_;
  NetworkCounts counts_;
  std::vector<std::unique_ptr<SimHost>> hosts_;
  std::map<std::string, std::shared_ptr<ListenerState>> listeners_;  // By the endpoint's name.
  std::vector<std::weak_ptr<SimPipe>> pipes_;
  std::vector<std::function<void(const SentFrame&)>> taps_;
  std::map<std::pair<std::string, std::string>, Fault> cuts_;  // From, to.
  std::map<std::string, Duration> slow_;
  std::set<std::string> silent_;  // Endpoints whose process was lost.
  FaultCounts fault_counts_;
  uint16_t next_port_ = 10'000;
  bool tells_refusals_ = false;
};

}  // namespace troupe::sim
