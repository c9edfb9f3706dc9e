#include "worker/file_watch.h"

#include <sys/inotify.h>
#include <unistd.h>

#include <array>
#include <boost/asio/as_tuple.hpp>
#include <boost/asio/posix/stream_descriptor.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <cerrno>
#include <cstring>
#include <map>

#include "base/log.h"

namespace troupe::worker {
namespace asio = boost::asio;

struct FileWatches::State {
  explicit State(asio::io_context& loop) : descriptor(loop) {}
  asio::posix::stream_descriptor descriptor;
  std::map<int, std::function<void()>*> armed;  // By the system's number.
};

namespace {

// What the system has to say now.
void read_present(int fd, const std::function<void(int)>& written) {
  alignas(inotify_event) std::array<char, 4096> buffer;
  for (ssize_t count; (count = ::read(fd, buffer.data(), buffer.size())) > 0;) {
    for (size_t at = 0; at < static_cast<size_t>(count);) {
      const auto* event = reinterpret_cast<const inotify_event*>(buffer.data() + at);
      at += sizeof(inotify_event) + event->len;
      if ((event->mask & IN_MODIFY) != 0) written(event->wd);
    }
  }
}

Async<void> read_events(asio::posix::stream_descriptor& descriptor,
                        std::function<void(int)> written) {
  auto token = asio::as_tuple(asio::use_awaitable);
  for (;;) {
    const auto [failed] =
        co_await descriptor.async_wait(asio::posix::stream_descriptor::wait_read, token);
    if (failed) co_return;
    read_present(descriptor.native_handle(), written);
  }
}

}  // namespace

FileWatches::FileWatches(asio::io_context& loop, Scope& scope)
    : state_(std::make_shared<State>(loop)) {
  const int fd = ::inotify_init1(IN_NONBLOCK | IN_CLOEXEC);
  if (fd < 0) {
    log::warning("files_not_watched", {{"why", std::strerror(errno)}});
    return;
  }
  state_->descriptor.assign(fd);
  auto written = [state = state_](int number) {
    const auto found = state->armed.find(number);
    if (found == state->armed.end()) return;
    const auto* call = found->second;
    state->armed.erase(found);  // It was for one write.
    (*call)();
  };
  spawn(scope, read_events(state_->descriptor, std::move(written)));
}

FileWatches::~FileWatches() {
  boost::system::error_code ignored;
  state_->descriptor.close(ignored);
}

std::unique_ptr<LogWatch> FileWatches::watch(const std::string& path,
                                             std::function<void()> written) {
  class Watch final : public LogWatch {
   public:
    Watch(std::shared_ptr<State> state, std::string path, std::function<void()> written)
        : state_(std::move(state)), path_(std::move(path)), written_(std::move(written)) {}
    ~Watch() override {
      const auto found = state_->armed.find(number_);
      if (found == state_->armed.end() || found->second != &written_) return;
      state_->armed.erase(found);
      if (state_->descriptor.is_open()) {
        ::inotify_rm_watch(state_->descriptor.native_handle(), number_);
      }
    }
    bool arm() override {
      if (!state_->descriptor.is_open()) return false;
      const int number = ::inotify_add_watch(state_->descriptor.native_handle(), path_.c_str(),
                                             IN_MODIFY | IN_ONESHOT);
      if (number < 0) return false;
      number_ = number;
      state_->armed[number] = &written_;
      return true;
    }

   private:
    std::shared_ptr<State> state_;
    std::string path_;
    std::function<void()> written_;
    int number_ = -1;
  };
  return std::make_unique<Watch>(state_, path, std::move(written));
}

}  // namespace troupe::worker
