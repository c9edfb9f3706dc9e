// Work of a loop over a fixed number of threads. The split depends on nothing but the sizes, so
// that results are the same bits each time.
#pragma once

#include <omp.h>

#include <algorithm>
#include <cstdint>

namespace troupe::llm::cpu {

// Sets OpenMP's number of threads, for our loops and oneDNN's, while it lives. It is a setting of
// the calling thread, so models on other threads are not affected.
class ThreadScope {
 public:
  explicit ThreadScope(int threads) : before_(omp_get_max_threads()) {
    omp_set_num_threads(threads);
  }
  ~ThreadScope() { omp_set_num_threads(before_); }
  ThreadScope(const ThreadScope&) = delete;
  ThreadScope& operator=(const ThreadScope&) = delete;

 private:
  int before_;
};

// How many threads a pass of this many floating-point operations deserves. Each of its dozens of
// loops waits for its slowest thread: microseconds if the machine is idle, but a scheduler's whole
// time slice if another process has taken the core.
inline int threads_for(double flops, int threads) {
  constexpr double worth_sharing = 16e6;  // A quarter of a millisecond or less on one core.
  return flops < worth_sharing ? 1 : threads;
}

// Calls body(begin, end, part) for `threads` consecutive parts of [0, count).
template <class Body>
void parallel_parts(int threads, int64_t count, const Body& body) {
  const int64_t parts = std::min<int64_t>(threads, count);
  if (parts <= 1) {
    if (count > 0) body(int64_t{0}, count, int64_t{0});
    return;
  }
#ifndef __SANITIZE_THREAD__  // It cannot see OpenMP's barriers and would report races without end.
#pragma omp parallel for schedule(static, 1) num_threads(static_cast<int>(parts))
#endif
  for (int64_t part = 0; part < parts; ++part) {
    body(count * part / parts, count * (part + 1) / parts, part);
  }
}

}  // namespace troupe::llm::cpu
