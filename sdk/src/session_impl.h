// What a Session hides: the client, and the loop that it runs on.
#pragma once

#include <boost/asio/post.hpp>
#include <future>
#include <memory>
#include <mutex>
#include <set>
#include <thread>

#include "client/client.h"
#include "client/driver_logs.h"
#include "packages/shelf.h"
#include "security/credentials.h"
#include "transport/real_environment.h"
#include "troupe/session.h"

namespace troupe::detail {

// A driver's own loop thread, credentials and client; everything that must end with its job.
struct DriverCore {
  transport::RealEnvironment real;
  std::unique_ptr<security::DeferredCredentials> credentials;
  std::unique_ptr<transport::TimelineMemory> timeline;
  std::unique_ptr<client::Client> client;
  std::unique_ptr<client::DriverLogs> logs;  // Null: nobody wants to read them.
  std::shared_ptr<packages::Shelf> shelf;    // On the loop.
  std::mutex modules_mutex;
  std::set<std::string> modules;  // That were put on the shelf, or cannot be.
  std::thread thread;
  bool ends_job = true;  // False: `troupe submit` does, for its command may be several programs.
  std::string failure;   // Why the job failed; empty: it did not.
};

class GroupBatches;

class SessionImpl {
 public:
  // Of a process that hosts actors: the host owns the client and runs the loop.
  explicit SessionImpl(client::Client& client) : client_(client) {}
  // Of a driver.
  explicit SessionImpl(std::unique_ptr<DriverCore> core)
      : core_(std::move(core)), client_(*core_->client) {}
  ~SessionImpl();

  client::Client& client() { return client_; }
  DriverCore* core() { return core_.get(); }
  const std::string& name_space() const { return name_space_; }
  // Empty: the default. Before the session is used.
  void set_name_space(std::string name) {
    if (!name.empty()) name_space_ = std::move(name);
  }

  // On the loop. What is asked of placement groups, many at a time.
  std::shared_ptr<GroupBatches>& group_batches() { return group_batches_; }

  // Runs `work` on the loop; returns at once. `work` must own no ref and no session: the last of
  // them must not go on the loop's own thread.
  template <class Work>
  void post(Work work) {
    boost::asio::post(client_.environment().loop, std::move(work));
  }
  // Runs the coroutine that `make` returns on the loop and blocks for what it gives.
  template <class T, class Make>
  Result<T> run(Make make) {
    std::promise<Result<T>> promise;
    auto future = promise.get_future();
    post([this, &promise, &make] { spawn(client_.scope(), deliver<T>(make(), promise)); });
    return future.get();
  }
  // As run(), for what other tasks or actors bring about: a task lends them its cpu meanwhile.
  template <class T, class Make>
  Result<T> run_waiting(Make make) {
    return run<T>([&] { return lend_cpu<T>(client_, make()); });
  }

 private:
  template <class T>
  static Async<Result<T>> lend_cpu(client::Client& client, Async<Result<T>> operation) {
    const client::TaskWait wait{client};
    co_return co_await std::move(operation);
  }
  template <class T>
  static Async<void> deliver(Async<Result<T>> operation, std::promise<Result<T>>& promise) {
    // An unwound coroutine must not leave its caller waiting.
    struct Guard {
      std::promise<Result<T>>& promise;
      bool done = false;
      ~Guard() {
        if (!done) promise.set_value(error(Code::cancelled, "the session was closed"));
      }
    } guard{promise};
    auto outcome = co_await std::move(operation);
    guard.done = true;
    promise.set_value(std::move(outcome));
  }

  std::unique_ptr<DriverCore> core_;
  client::Client& client_;
  std::string name_space_ = "default";
  std::shared_ptr<GroupBatches> group_batches_;
};

// The session of a process that hosts actors; null in a driver.
void set_process_session(std::shared_ptr<SessionImpl> session);

}  // namespace troupe::detail
