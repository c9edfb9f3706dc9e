// A disk that is slow to sync, preloaded into whoever should have it: every fsync and fdatasync
// takes SLOW_SYNC_US microseconds more.
#include <dlfcn.h>
#include <time.h>
#include <unistd.h>

#include <cstdlib>

namespace {

int sync_late(const char* name, int file) {
  static const char* given = std::getenv("SLOW_SYNC_US");
  static const long us = given != nullptr ? std::atol(given) : 0;
  const timespec delay{us / 1'000'000, us % 1'000'000 * 1000};
  ::clock_nanosleep(CLOCK_MONOTONIC, 0, &delay, nullptr);
  return reinterpret_cast<int (*)(int)>(::dlsym(RTLD_NEXT, name))(file);
}

}  // namespace

extern "C" int fdatasync(int file) {
  return sync_late("fdatasync", file);
}
extern "C" int fsync(int file) {
  return sync_late("fsync", file);
}
