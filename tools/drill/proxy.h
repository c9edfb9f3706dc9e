// A wire between two processes of this machine, which can be cut without either end being told.
#pragma once

#include <sys/types.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>
#include <vector>

#include "base/file_descriptor.h"
#include "base/status.h"

namespace troupe::drill {

// A port that forwards to another one, on loopback. Cut, it passes nothing on and accepts nobody;
// what is under way waits, as it does where packets are lost. Thread-safe.
class Proxy {
 public:
  static Result<std::unique_ptr<Proxy>> start();
  ~Proxy();

  uint16_t port() const { return port_; }
  // Whom it leads to; before anybody connects.
  void lead_to(uint16_t port) { target_ = port; }
  void cut();
  void mend();

 private:
  class Pipe;

  Proxy() = default;
  void run();
  void accept_one();
  void wake();

  uint16_t port_ = 0;
  std::atomic<uint16_t> target_ = 0;
  std::atomic<bool> is_cut_ = false;
  std::atomic<bool> over_ = false;
  FileDescriptor listener_;
  FileDescriptor wake_;
  std::vector<std::unique_ptr<Pipe>> pipes_;
  std::thread thread_;
};

// A port of loopback that was free a moment ago.
Result<uint16_t> free_port();

}  // namespace troupe::drill
