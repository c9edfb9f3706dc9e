// A cluster on this machine, in a state folder of its own.
#pragma once

#include <optional>
#include <string>

namespace bench {

class Cluster {
 public:
  // Starts one of so many workers, of which the last has the label bench=far, and heads, and points
  // TROUPE_STATE at it; nothing if that failed, with the reason on stderr.
  static std::optional<Cluster> start(int workers, int heads = 1);
  Cluster(Cluster&& other) noexcept;
  Cluster& operator=(Cluster&&) = delete;
  // Takes it down and removes its folder.
  ~Cluster();

  std::string state() const { return folder_ + "/state"; }

 private:
  explicit Cluster(std::string folder) : folder_(std::move(folder)) {}

  std::string folder_;  // Empty: moved from.
};

}  // namespace bench
