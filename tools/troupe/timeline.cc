// `troupe timeline`.
#include <fmt/format.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <memory>

#include "protocol/codec.h"
#include "troupe/commands.h"
#include "troupe/daemon_process.h"
#include "troupe/rpc.h"
#include "troupe/trace_writer.h"

namespace troupe::tools {

namespace {

struct Close {
  void operator()(std::FILE* file) const {
    if (file != stdout) std::fclose(file);
  }
};
using File = std::unique_ptr<std::FILE, Close>;

Error not_written(const std::string& path) {
  return error(Code::exhausted, fmt::format("{}: {}", path, std::strerror(errno)));
}

// What was written under another name takes its own once it is whole.
class TraceFile {
 public:
  explicit TraceFile(std::string path) : path_(std::move(path)) {
    file_.reset(to_stdout() ? stdout : std::fopen(partial().c_str(), "w"));
  }
  TraceFile(const TraceFile&) = delete;
  TraceFile& operator=(const TraceFile&) = delete;
  ~TraceFile() {
    if (to_stdout() || kept_) return;
    std::error_code failed;
    std::filesystem::remove(partial(), failed);
  }
  bool to_stdout() const { return path_ == "-"; }
  std::FILE* get() const { return file_.get(); }
  std::string partial() const { return path_ + ".partial"; }
  Status keep() {
    if (to_stdout()) return ok();
    if (std::fclose(file_.release()) != 0) return not_written(partial());
    if (std::rename(partial().c_str(), path_.c_str()) != 0) return not_written(path_);
    kept_ = true;
    return ok();
  }

 private:
  const std::string path_;
  File file_;
  bool kept_ = false;
};

}  // namespace

int run_timeline(const CommonOptions& common, const TimelineOptions& options) {
  watch_interrupts();
  protocol::GetTimelines request;
  if (!options.job.empty()) {
    const auto job = JobId::parse(options.job);
    if (!job) return fail(job.error());
    request.job = *job;
  }
  auto head = connect_head(StateFolder{common.state});
  if (!head) return fail(head.error());
  TraceFile file{options.file};
  if (file.get() == nullptr) return fail(not_written(file.partial()));
  TraceWriter trace{file.get()};
  Status malformed = ok();
  auto ended = (*head)->stream(transport::Method::get_timelines, protocol::encode(request),
                               [&](BytesView item) {
                                 auto part = protocol::decode<protocol::ProcessTimeline>(item);
                                 if (!part) {
                                   malformed = std::move(part).error();
                                   return false;
                                 }
                                 trace.add(std::move(*part));
                                 return true;
                               });
  if (was_interrupted()) return fail(error(Code::cancelled, "interrupted"));
  if (ended && !malformed) ended = std::move(malformed);
  if (!ended) return fail(ended.error());
  const Status written = trace.finish();
  for (const auto& [node, why] : trace.missing()) {
    fmt::print(stderr, "troupe: without node {}, which did not answer: {}\n", node, why);
  }
  if (!written) return fail(written.error());
  if (trace.nodes() == 0) {
    return fail(error(Code::unavailable, "no node answered: see 'troupe status'"));
  }
  if (trace.processes() == 0 && !options.job.empty()) {
    return fail(error(Code::not_found,
                      fmt::format("no process of job {} has noted anything, or it is long ago: see "
                                  "'troupe list jobs'",
                                  options.job)));
  }
  if (trace.events() == 0) {
    return fail(error(Code::not_found,
                      "no process has noted anything: were they started with TROUPE_TIMELINE=0?"));
  }
  if (auto kept = file.keep(); !kept) return fail(kept.error());
  if (!file.to_stdout()) {
    fmt::print(
        "{}: {} records of {} processes; open it in https://ui.perfetto.dev or "
        "chrome://tracing\n",
        options.file, trace.events(), trace.processes());
  }
  return 0;
}

}  // namespace troupe::tools
