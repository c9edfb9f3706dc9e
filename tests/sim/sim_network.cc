#include "tests/sim/sim_network.h"

#include <fmt/format.h>

#include <algorithm>
#include <deque>

#include "tests/sim/sim_clock.h"

namespace troupe::sim {

using protocol::FrameHeader;
using protocol::FrameKind;
using transport::Connection;
using transport::Endpoint;
using transport::Frame;
using transport::Listener;
using transport::PeerIdentity;

namespace {

// How often what waits for the end of a partition looks again.
constexpr Duration retransmit_period = std::chrono::milliseconds(200);
// As transport/tls_stream.cc sets them, the second since Linux 6.15.
constexpr Duration user_timeout = std::chrono::seconds(15);
constexpr Duration resend_most = std::chrono::seconds(1);
// A tail loss probe (RFC 8985, section 7) goes before the first timeout.
constexpr Duration tail_probe = std::chrono::milliseconds(20);
constexpr Duration resend_first = std::chrono::milliseconds(200);
constexpr Duration connect_again_first = std::chrono::seconds(1);  // RFC 6298, section 2.
constexpr int held_up_factor = 10;
constexpr size_t backlog_max = 256;
constexpr size_t error_message_bytes_max = 16 << 10;  // As on a real connection.

const char* kind_name(FrameKind kind) {
  switch (kind) {
    case FrameKind::request:
      return "request";
    case FrameKind::reply:
      return "reply";
    case FrameKind::stream_request:
      return "stream_request";
    case FrameKind::item:
      return "item";
    case FrameKind::credit:
      return "credit";
    case FrameKind::cancel:
      return "cancel";
    case FrameKind::unknown:
      break;
  }
  return "unknown";
}

bool is_hello(const FrameHeader& header) {
  return header.kind == FrameKind::request && header.method == protocol::Method::hello;
}

// Two hellos make a connection, and a refusal to speak is a reply to call 0.
bool opens(const FrameHeader& header) {
  return is_hello(header) || (header.kind == FrameKind::reply && header.call == 0);
}

}  // namespace

struct SimPipe {
  SimPipe(const Executor& executor, SimHost& sender, SimHost& receiver)
      : from(sender), to(receiver), changed(executor) {}

  SimHost& from;
  SimHost& to;
  uint64_t connection = 0;
  std::deque<Frame> inbox;
  Event changed;
  bool sender_closed = false;    // Nothing more is sent.
  bool receiver_closed = false;  // Nothing more is taken.
  bool ended = false;            // The receiver knows that nothing more comes.
  Error why{Code::unavailable, "the peer closed the connection"};
  Instant not_before{};      // The hello's arrival: nothing overtakes it.
  Instant last_arrival{};    // Of frames that keep their order.
  Instant latest_arrival{};  // Of all: the end comes after it.
  uint64_t next_sequence = 1;
  uint64_t highest_arrived = 0;
  std::weak_ptr<SimPipe> back;  // The other direction.
};

class SimConnection final : public Connection {
 public:
  SimConnection(SimNetwork& network, std::shared_ptr<SimPipe> in, std::shared_ptr<SimPipe> out,
                PeerIdentity peer)
      : network_(network), in_(std::move(in)), out_(std::move(out)), peer_(std::move(peer)) {}
  ~SimConnection() override { close(); }

  const PeerIdentity& peer() const override { return peer_; }

  Async<Result<Frame>> receive() override { return receive_from(in_); }

  Status send(Frame frame) override {
    if (out_->sender_closed) return error(Code::unavailable, "the connection is closed");
    if (frame.body.size() > protocol::body_bytes_max) {
      return error(Code::invalid, "a message is over the limit");
    }
    return network_.send(out_, std::move(frame));
  }

  Async<void> writable() override { co_return; }
  bool is_writable() const override { return true; }

  void close() override {
    if (!in_->receiver_closed) {
      in_->receiver_closed = true;
      in_->inbox.clear();
      in_->changed.pulse();
    }
    if (out_->sender_closed) return;
    out_->sender_closed = true;
    network_.end_at(std::max(out_->latest_arrival, network_.clock_.now() + network_.delay()), out_);
  }

 private:
  // Holds the pipe, not the connection, which may be destroyed meanwhile.
  static Async<Result<Frame>> receive_from(std::shared_ptr<SimPipe> pipe) {
    while (pipe->inbox.empty() && !pipe->ended && !pipe->receiver_closed) {
      co_await pipe->changed.wait();
    }
    if (pipe->receiver_closed) co_return error(Code::unavailable, "closed by this side");
    if (pipe->inbox.empty()) co_return pipe->why;
    Frame frame = std::move(pipe->inbox.front());
    pipe->inbox.pop_front();
    co_return frame;
  }

  SimNetwork& network_;
  std::shared_ptr<SimPipe> in_;
  std::shared_ptr<SimPipe> out_;
  PeerIdentity peer_;
};

struct SimNetwork::ListenerState {
  ListenerState(const Executor& executor, SimHost& owner, Endpoint where)
      : host(owner), endpoint(std::move(where)), changed(executor) {}
  SimHost& host;
  Endpoint endpoint;
  std::deque<std::unique_ptr<Connection>> ready;
  Event changed;
  bool closed = false;
};

class SimListener final : public Listener {
 public:
  SimListener(SimNetwork& network, std::shared_ptr<SimNetwork::ListenerState> state)
      : network_(network), state_(std::move(state)) {}
  ~SimListener() override { close(); }

  Async<Result<std::unique_ptr<Connection>>> accept() override { return accept_from(state_); }
  const Endpoint& endpoint() const override { return state_->endpoint; }
  Async<void> stop() override {
    close();
    co_return;
  }

 private:
  static Async<Result<std::unique_ptr<Connection>>> accept_from(
      std::shared_ptr<SimNetwork::ListenerState> state) {
    while (state->ready.empty() && !state->closed) co_await state->changed.wait();
    if (state->closed) co_return error(Code::unavailable, "the listener is closed");
    auto connection = std::move(state->ready.front());
    state->ready.pop_front();
    co_return connection;
  }

  void close() {
    if (std::exchange(state_->closed, true)) return;
    const auto found = network_.listeners_.find(state_->endpoint.to_string());
    if (found != network_.listeners_.end() && found->second == state_) {
      network_.listeners_.erase(found);
    }
    state_->ready.clear();
    state_->changed.pulse();
  }

  SimNetwork& network_;
  std::shared_ptr<SimNetwork::ListenerState> state_;
};

SimHost::SimHost(SimNetwork& network, HostOptions options)
    : network_(network), options_(std::move(options)), clock_(network.clock_) {}
SimHost::~SimHost() = default;

SimHost::Connecting SimHost::connect(Endpoint endpoint, Instant deadline) {
  SimNetwork& network = network_;
  const std::string name = endpoint.to_string();
  for (;;) {
    if (!alive_) co_return error(Code::unavailable, "this process is dead");
    Instant arrival = network.clock_.now() + network.delay() + network.delay();
    if (!endpoint.is_unix()) arrival += network.connecting();
    if (arrival >= deadline) {
      co_await sleep_until(clock_, deadline);
      co_return error(Code::deadline_exceeded, "connect to " + name + ": no answer in time");
    }
    co_await sleep_until(clock_, arrival);
    if (alive_ && network.silent_.contains(name)) {
      network.note(Fault::machine_lost);
      co_await sleep_for(clock_, retransmit_period);
      continue;
    }
    const auto found = network.listeners_.find(name);
    const bool is_cut =
        found != network.listeners_.end() && network.cuts_connect(*this, found->second->host);
    // TLS needs the process, not the kernel alone.
    const bool sleeps = found != network.listeners_.end() && !endpoint.is_unix() &&
                        found->second->host.clock_.is_paused();
    if (is_cut || sleeps) {
      co_await sleep_for(clock_, retransmit_period);
      continue;
    }
    const bool foreign = found != network.listeners_.end() && endpoint.is_unix() &&
                         found->second->host.machine() != machine();
    const bool refused = !endpoint.is_unix() && network.random_.chance(network.faults_.refuse);
    if (refused) network.note(Fault::connect_refused);
    if (!alive_ || refused || found == network.listeners_.end() || foreign ||
        found->second->ready.size() >= backlog_max) {
      ++network.counts_.refused;
      network.history_.add(network.clock_.now(), fmt::format("refuse {} > {}", this->name(), name));
      co_return error(Code::unavailable, "connect to " + name + ": nobody listens");
    }
    SimNetwork::ListenerState& listener = *found->second;
    SimNetwork::Pair pair;
    if (endpoint.is_unix()) {
      pair = network.connected_pair(*this, listener.host);
    } else {
      pair = network.make_pair(*this, listener.host, listener.host.identity(), identity());
    }
    listener.ready.push_back(std::move(pair.second));
    // Shared: it may be closed before a paused process takes notice.
    listener.host.when_awake([state = found->second] { state->changed.pulse(); });
    co_return std::move(pair.first);
  }
}

Async<transport::Reach> SimHost::probe(Endpoint endpoint, Instant deadline) {
  using transport::Reach;
  const std::string name = endpoint.to_string();
  auto connection = co_await connect(std::move(endpoint), deadline);
  if (connection) co_return Reach::answers;
  const bool is_refused = network_.tells_refusals_ && alive_ &&
                          connection.error().code() == Code::unavailable &&
                          !network_.listeners_.contains(name) && !network_.silent_.contains(name);
  co_return is_refused ? Reach::refused : Reach::silent;
}

Result<std::unique_ptr<Listener>> SimHost::listen(const Endpoint& endpoint) {
  if (!alive_) return error(Code::unavailable, "this process is dead");
  Endpoint bound = endpoint;
  if (!bound.is_unix() && bound.port == 0) bound.port = network_.next_port_++;
  const std::string name = bound.to_string();
  if (network_.listeners_.contains(name)) return error(Code::conflict, name + " is in use");
  auto state = std::make_shared<SimNetwork::ListenerState>(network_.executor_, *this, bound);
  network_.listeners_.emplace(name, state);
  network_.silent_.erase(name);
  return std::make_unique<SimListener>(network_, std::move(state));
}

Duration SimHost::paused_for() const {
  return paused_for_ + (clock_.is_paused() ? clock_.now() - paused_at_ : Duration::zero());
}

void SimHost::pause() {
  if (clock_.is_paused() || !alive_) return;
  paused_at_ = clock_.now();
  network_.history_.add(network_.clock_.now(), "pause " + name());
  clock_.pause();
}

void SimHost::resume() {
  if (!clock_.is_paused()) return;
  network_.history_.add(network_.clock_.now(), "resume " + name());
  paused_for_ += clock_.now() - paused_at_;
  clock_.resume();
  for (const auto& event : std::exchange(held_, {})) event();
}

void SimHost::when_awake(std::function<void()> event) {
  if (!clock_.is_paused()) return event();
  ++held_back_;
  held_.push_back(std::move(event));
}

SimNetwork::SimNetwork(Executor executor, SimClock& clock, History& history, uint64_t seed)
    : executor_(std::move(executor)), clock_(clock), history_(history), random_(seed) {}
SimNetwork::~SimNetwork() = default;

SimHost& SimNetwork::add_host(HostOptions options) {
  hosts_.push_back(std::make_unique<SimHost>(*this, std::move(options)));
  return *hosts_.back();
}

SimNetwork::Pair SimNetwork::connected_pair(SimHost& a, SimHost& b) {
  PeerIdentity local;
  local.role = transport::Role::client;
  local.name = "uid:0";
  local.local = true;
  return make_pair(a, b, local, local);
}

SimNetwork::Pair SimNetwork::make_pair(SimHost& from, SimHost& to, PeerIdentity seen_by_from,
                                       PeerIdentity seen_by_to) {
  ++counts_.connections;
  history_.add(clock_.now(), fmt::format("connect {} > {}", from.name(), to.name()));
  auto there = std::make_shared<SimPipe>(executor_, from, to);
  auto back = std::make_shared<SimPipe>(executor_, to, from);
  there->connection = back->connection = counts_.connections;
  there->back = back;
  back->back = there;
  std::erase_if(pipes_, [](const auto& pipe) { return pipe.expired(); });
  pipes_.push_back(there);
  pipes_.push_back(back);
  return {std::make_unique<SimConnection>(*this, back, there, std::move(seen_by_from)),
          std::make_unique<SimConnection>(*this, there, back, std::move(seen_by_to))};
}

void SimNetwork::partition(const std::string& machine_a, const std::string& machine_b) {
  cut(machine_a, machine_b, Fault::partition);
  cut(machine_b, machine_a, Fault::partition);
}

void SimNetwork::cut(const std::string& from, const std::string& to, Fault why) {
  history_.add(clock_.now(), fmt::format("cut {} > {}: {}", from, to, fault_name(why)));
  cuts_.insert_or_assign({from, to}, why);
}

void SimNetwork::mend(const std::string& from, const std::string& to) {
  if (cuts_.erase({from, to}) > 0) {
    history_.add(clock_.now(), fmt::format("mend {} > {}", from, to));
  }
}

void SimNetwork::heal() {
  if (!cuts_.empty()) history_.add(clock_.now(), "heal");
  cuts_.clear();
  slow_.clear();
}

void SimNetwork::slow_down(const std::string& machine, Duration by) {
  history_.add(clock_.now(), "slow " + machine);
  slow_[machine] = by;
}

void SimNetwork::kill(SimHost& host) {
  end_host(host, false);
}
void SimNetwork::lose(SimHost& host) {
  end_host(host, true);
}

void SimNetwork::end_host(SimHost& host, bool silently) {
  if (!std::exchange(host.alive_, false)) return;
  history_.add(clock_.now(), (silently ? "lose " : "kill ") + host.name());
  host.held_.clear();
  host.clock_.resume();  // What is left of it only unwinds.
  for (auto entry = listeners_.begin(); entry != listeners_.end();) {
    if (&entry->second->host != &host) {
      ++entry;
      continue;
    }
    const auto state = entry->second;
    if (silently) silent_.insert(entry->first);
    entry = listeners_.erase(entry);
    state->closed = true;
    state->ready.clear();
    state->changed.pulse();
  }
  const auto pipes = pipes_;
  for (const auto& weak : pipes) {
    const auto pipe = weak.lock();
    if (!pipe || &pipe->from != &host) continue;
    const auto back = pipe->back.lock();
    if (silently && back) {
      // The other side finds out by itself, as TCP does (tls_stream.cc), and can send until then.
      pipe->sender_closed = true;
      pipe->why = error(Code::unavailable, "the connection timed out");
      end_at(clock_.now() + user_timeout, pipe);
      back->receiver_closed = true;
      back->changed.pulse();
      continue;
    }
    end_both(pipe, error(Code::unavailable, "the connection was reset"));
    if (back) back->receiver_closed = true;
  }
}

std::optional<Fault> SimNetwork::cut_between(const std::string& from, const std::string& to) const {
  if (cuts_.empty()) return std::nullopt;
  const auto found = cuts_.find({from, to});
  return found == cuts_.end() ? std::nullopt : std::optional{found->second};
}

bool SimNetwork::loses(const std::string& from, const std::string& to) {
  const auto cut = cut_between(from, to);
  if (cut) note(*cut);
  return cut.has_value();
}

// A connection needs both directions.
bool SimNetwork::cuts_connect(const SimHost& from, const SimHost& to) {
  for (const auto cut : {cut_between(from, to), cut_between(to, from)}) {
    if (!cut) continue;
    note(*cut);
    return true;
  }
  return false;
}

Duration SimNetwork::slowness(const SimHost& from, const SimHost& to) {
  if (slow_.empty() || from.machine() == to.machine()) return {};
  Duration slowness{};
  for (const std::string& machine : {from.machine(), to.machine()}) {
    const auto found = slow_.find(machine);
    if (found != slow_.end()) slowness += found->second;
  }
  if (slowness > Duration::zero()) note(Fault::link_slow);
  return slowness;
}

Duration SimNetwork::delay() {
  const auto spread = static_cast<uint64_t>((faults_.delay_max - faults_.delay_min).count());
  return faults_.delay_min + Duration(static_cast<int64_t>(random_.below(spread + 1)));
}

bool SimNetwork::loses_packet() {
  if (faults_.packet_loss == 0 || !random_.chance(faults_.packet_loss)) return false;
  ++counts_.packets_lost;
  return true;
}

Duration SimNetwork::resending() {
  if (!loses_packet()) return {};
  Duration waited = tail_probe;
  for (Duration next = resend_first; loses_packet(); next = std::min(2 * next, resend_most)) {
    waited += next;
  }
  return waited;
}

Duration SimNetwork::connecting() {
  Duration waited{};
  for (int way = 0; way < 2; ++way) {
    for (Duration next = connect_again_first; loses_packet(); next *= 2) waited += next;
    waited += resending();
  }
  return waited;
}

Status SimNetwork::send(const std::shared_ptr<SimPipe>& pipe, Frame frame) {
  ++counts_.sent;
  for (const auto& tap : taps_) tap({pipe->connection, pipe->from, pipe->to, frame});
  FrameHeader& header = frame.header;
  if (header.error.message.size() > error_message_bytes_max) {
    header.error.message.resize(error_message_bytes_max);
  }
  header.descriptors = static_cast<uint32_t>(frame.descriptors.size());
  const uint64_t sequence = pipe->next_sequence++;
  const bool local = pipe->from.machine() == pipe->to.machine();
  const bool spared = (faults_.spare_hello && opens(header)) || (faults_.spare_local && local);
  // Drawn for every frame, so that one fault's setting leaves the others' draws where they were.
  const bool dropped = random_.chance(faults_.drop) && !spared;
  const bool reset = random_.chance(faults_.reset) && !spared;
  const bool held_up = random_.chance(faults_.reorder) && !opens(header);
  const bool twice = random_.chance(faults_.duplicate) && header.kind == FrameKind::request &&
                     !opens(header) && frame.descriptors.empty() &&
                     (!faults_.may_duplicate || faults_.may_duplicate(header));
  const bool late = random_.chance(faults_.late) && !opens(header) && !local;
  const Duration way = delay() + slowness(pipe->from, pipe->to);
  if (reset) {
    ++counts_.resets;
    note(Fault::connection_reset);
    trace("reset", *pipe, header, frame.body.size());
    end_both(pipe, error(Code::unavailable, "the connection was reset"));
    return ok();  // The sender learns of it as of any broken connection: later.
  }
  if (dropped) {
    ++counts_.dropped;
    note(Fault::frame_dropped);
    trace("drop", *pipe, header, frame.body.size());
    return ok();
  }
  auto encoded = std::make_shared<const Bytes>(protocol::encode_header(header));
  Instant arrival = std::max(clock_.now() + way, pipe->not_before);
  if (held_up) {
    ++counts_.held_up;
    const auto most = static_cast<uint64_t>(faults_.delay_max.count()) * held_up_factor;
    arrival += Duration(static_cast<int64_t>(random_.below(most + 1)));
  } else {
    if (!local) arrival += resending();
    if (late) {
      note(Fault::frame_late);
      arrival += Duration(
          static_cast<int64_t>(random_.below(static_cast<uint64_t>(faults_.late_max.count()) + 1)));
    }
    arrival = std::max(arrival, pipe->last_arrival);
    pipe->last_arrival = arrival;
  }
  if (opens(header)) pipe->not_before = arrival;
  if (twice) {
    ++counts_.duplicated;
    note(Fault::frame_duplicated);
    auto copy = std::make_shared<Frame>();
    copy->body = frame.body;
    deliver_at(arrival + delay(), pipe, sequence, std::move(copy), encoded);
  }
  deliver_at(arrival, pipe, sequence, std::make_shared<Frame>(std::move(frame)), encoded);
  return ok();
}

void SimNetwork::deliver_at(Instant when, std::shared_ptr<SimPipe> pipe, uint64_t sequence,
                            std::shared_ptr<Frame> rest, std::shared_ptr<const Bytes> header) {
  pipe->latest_arrival = std::max(pipe->latest_arrival, when);
  clock_.call_at(when, [this, pipe = std::move(pipe), sequence, rest = std::move(rest),
                        header = std::move(header)] {
    pipe->to.when_awake([this, pipe, sequence, rest, header] {  //
      deliver(*pipe, sequence, *rest, *header);
    });
  });
}

void SimNetwork::deliver(SimPipe& pipe, uint64_t sequence, Frame& rest, const Bytes& encoded) {
  auto header = protocol::decode_header(encoded);
  TROUPE_ASSERT(header.has_value(), "a frame header does not survive its encoding");
  const size_t body_bytes = rest.body.size();
  if (pipe.receiver_closed || pipe.ended) {
    ++counts_.lost;
    return trace("lose", pipe, *header, body_bytes);
  }
  if (const auto cut = cut_between(pipe.from, pipe.to)) {
    ++counts_.cut;
    note(*cut);
    return trace("cut", pipe, *header, body_bytes);
  }
  if (sequence < pipe.highest_arrived) {
    ++counts_.overtaken;
    note(Fault::frame_reordered);
  }
  pipe.highest_arrived = std::max(pipe.highest_arrived, sequence);
  ++counts_.delivered;
  trace("deliver", pipe, *header, body_bytes);
  Frame frame;
  frame.header = std::move(*header);
  frame.body = std::move(rest.body);
  frame.descriptors = std::move(rest.descriptors);
  pipe.inbox.push_back(std::move(frame));
  pipe.changed.pulse();
}

void SimNetwork::end_at(Instant when, std::shared_ptr<SimPipe> pipe) {
  clock_.call_at(when, [this, pipe] {
    if (pipe->ended) return;
    if (cut_between(pipe->from, pipe->to)) {
      return end_at(clock_.now() + retransmit_period, pipe);
    }
    history_.add(clock_.now(), fmt::format("end {} > {}", pipe->from.name(), pipe->to.name()));
    pipe->to.when_awake([pipe] {
      pipe->ended = true;
      pipe->changed.pulse();
    });
  });
}

// Nothing more is sent either way, and each side learns of it by itself.
void SimNetwork::end_both(const std::shared_ptr<SimPipe>& pipe, const Error& why) {
  for (const auto& each : {pipe, pipe->back.lock()}) {
    if (!each) continue;
    each->sender_closed = true;
    each->why = why;
    end_at(clock_.now() + delay(), each);
  }
}

void SimNetwork::trace(const char* what, const SimPipe& pipe, const FrameHeader& header,
                       size_t body_bytes) {
  const std::string method =
      header.method == protocol::Method::unknown ? "-" : protocol::method_name(header.method);
  history_.add(clock_.now(), fmt::format("{} {} > {} {} {} call={} bytes={} error={}", what,
                                         pipe.from.name(), pipe.to.name(), kind_name(header.kind),
                                         method, header.call, body_bytes, header.error.code));
}

}  // namespace troupe::sim
