#include "head/backups.h"

#include <filesystem>

#include "base/log.h"

namespace troupe::head {
namespace {

// Set for as long as it lives.
class Busy {
 public:
  explicit Busy(bool& flag) : flag_(flag) { flag_ = true; }
  Busy(const Busy&) = delete;
  Busy& operator=(const Busy&) = delete;
  ~Busy() { flag_ = false; }

 private:
  bool& flag_;
};

}  // namespace

Backups::Backups(transport::Environment environment, Store& store)
    : environment_(environment), store_(store) {}

Async<Result<protocol::BackedUp>> Backups::make(protocol::BackUp request, transport::CallContext) {
  if (!std::filesystem::path(request.folder).is_absolute()) {
    co_return error(Code::invalid, "the path of the folder for backups must be absolute");
  }
  if (busy_) {
    co_return error(Code::conflict, "another backup is being made: try again when it has ended");
  }
  const Busy busy{busy_};
  BackupOptions options;
  options.folder = request.folder;
  options.keep = request.keep;
  options.now = environment_.clock.wall_now();
  options.stop = &stopping_;
  const Instant began = environment_.clock.now();
  Store* const store = &store_;
  auto work = [store, options] { return back_up(*store, options); };
  auto made = co_await transport::run_blocking(environment_, work);
  if (!made) {
    log::warning("backup_failed", {{"folder", request.folder}, {"why", made.error()}});
    co_return std::move(made).error();
  }
  log::info("backup_made",
            {{"folder", request.folder},
             {"number", made->number},
             {"copied_bytes", made->copied_bytes},
             {"took_ms", (environment_.clock.now() - began) / std::chrono::milliseconds(1)}});
  protocol::BackedUp answer;
  answer.number = made->number;
  answer.cluster = made->cluster;
  answer.schema = made->schema;
  answer.epoch = made->epoch;
  answer.taken_unix_us =
      static_cast<uint64_t>(made->taken.time_since_epoch() / std::chrono::microseconds(1));
  answer.state_hash = made->state_hash;
  answer.size_bytes = made->size_bytes;
  answer.copied_bytes = made->copied_bytes;
  co_return answer;
}

}  // namespace troupe::head
