// The worker's end of a fork server (actor/fork_server.h).
#pragma once

#include <boost/asio/io_context.hpp>
#include <boost/asio/posix/stream_descriptor.hpp>
#include <deque>
#include <functional>
#include <memory>
#include <vector>

#include "base/file_descriptor.h"
#include "protocol/messages.h"
#include "transport/async.h"

namespace troupe::worker {

// On the loop.
class ForkClient {
 public:
  // The process that was started, a child of this one; or why not. exhausted: no memory or
  // processes are left. unimplemented: this system cannot. unavailable: the server is gone, and
  // whether it had started one is not known.
  using Answer = std::function<void(Result<pid_t>)>;

  // `socket`: a packet socket whose other end is the server's descriptor 3. `scope` owns the
  // reader.
  ForkClient(boost::asio::io_context& loop, Scope& scope, FileDescriptor socket);

  // False: it takes no more now (it is gone, or its queue or the packet is full), and `answer` will
  // not be called. Otherwise it is called once, on a later turn, unless the scope stops before.
  // Descriptors: as ForkProcess says.
  bool fork(const protocol::ForkProcess& request, std::span<const FileDescriptor> descriptors,
            Answer answer);
  bool is_open() const { return state_->is_open; }

 private:
  // What the reader, which ends with the scope, shares with this.
  struct State {
    State(boost::asio::io_context& loop, int socket) : descriptor(loop, socket) {}
    boost::asio::posix::stream_descriptor descriptor;
    std::deque<Answer> waiting;  // The server answers in turn.
    bool is_open = true;
  };
  static Async<void> read(std::shared_ptr<State> state);
  std::shared_ptr<State> state_;
};

}  // namespace troupe::worker
