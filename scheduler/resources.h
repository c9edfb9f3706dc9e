// Amounts of resources in fixed point, and the exact account of one node, device by device.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"

namespace troupe::scheduler {

constexpr int64_t whole_gpu_milli = 1000;
// The largest amount of anything that a request or node may name: sums of millions stay exact.
constexpr int64_t amount_max = int64_t{1} << 40;
constexpr int64_t gpus_per_node_max = 1024;

// An amount of a resource that only its users know, e.g. {"license", 1000}.
struct CustomAmount {
  std::string name;
  int64_t milli = 0;
  auto operator<=>(const CustomAmount&) const = default;
};

// What a slot, an actor or a bundle needs, or what a node has. A demand's GPUs are either a
// fraction below 1000, which must lie on one device, or whole devices.
struct ResourceVector {
  int64_t cpu_milli = 0;
  int64_t memory_mib = 0;
  int64_t gpu_milli = 0;
  std::vector<CustomAmount> custom;  // Ascending by name, each once.

  auto operator<=>(const ResourceVector&) const = default;
  // 0 for a name that is not there.
  int64_t custom_milli(std::string_view name) const;
  // "{cpu 1.5, memory 512MiB, gpu 0.25, license 1}"; "{}" for nothing.
  std::string to_string() const;
};

// Errors: invalid (an amount out of range, GPUs neither a fraction nor whole, names unordered).
Status check_demand(const ResourceVector& demand);
Status check_total(const ResourceVector& total);

// Exact sums, all dimensions or none. Errors: exhausted (overflow, or less than nothing left).
Status add(ResourceVector& sum, const ResourceVector& term);
Status subtract(ResourceVector& rest, const ResourceVector& term);

// Whether this demand alone could be taken of this much, were all of it free.
bool could_fit(const ResourceVector& total, const ResourceVector& demand);

// "1.5" for 1500.
std::string milli_to_string(int64_t milli);

// A part of one GPU of a node. Whole devices have 1000.
struct DeviceShare {
  uint32_t device = 0;
  int64_t milli = 0;
  auto operator<=>(const DeviceShare&) const = default;
};
using Devices = std::vector<DeviceShare>;

// What a node has and what is left of it. The one place that decides whether a demand fits.
class NodeLedger {
 public:
  // `total` has passed check_total.
  explicit NodeLedger(ResourceVector total);
  // Of a bundle: what NodeLedger::take handed out, to be dealt out anew.
  NodeLedger(ResourceVector bundle, const Devices& devices);

  // Would it fit an empty node of this kind; does it fit now.
  bool could_fit(const ResourceVector& demand) const {
    return scheduler::could_fit(total_, demand);
  }
  bool fits(const ResourceVector& demand) const;
  // Takes it and names its devices; nothing if it does not fit. A fraction goes to the fullest
  // device that has room, whole devices are the lowest free ones.
  std::optional<Devices> take(const ResourceVector& demand);
  // Takes these very devices, held before this ledger was made; CPU that is not free is owed, for
  // some of the other holders may have lent theirs. False if anything else is not free.
  bool take_exactly(const ResourceVector& demand, const Devices& devices);
  // Gives back what a take handed out.
  void give_back(const ResourceVector& demand, const Devices& devices);
  // The holder of this much CPU does not use it for now: others may take it.
  void lend_cpu(int64_t cpu_milli);
  // It does again, at once. What others took meanwhile is owed: the next that comes back pays it.
  void reclaim_cpu(int64_t cpu_milli);

  const ResourceVector& total() const { return total_; }
  const ResourceVector& available() const { return available_; }
  bool untouched() const { return available_ == total_; }
  std::span<const int64_t> device_free_milli() const { return device_free_milli_; }
  int64_t whole_gpus_free() const { return whole_gpus_free_; }
  // The most that is free on a device in partial use; 0 if there is none.
  int64_t largest_partial_milli() const { return largest_partial_milli_; }

 private:
  bool devices_fit(int64_t gpu_milli) const;
  void recount_devices();

  ResourceVector total_;
  ResourceVector available_;    // Its custom names are total_'s, in the same places.
  int64_t cpu_owed_milli_ = 0;  // What is held beyond total_; above 0 only if none is available.
  std::vector<int64_t> device_free_milli_;  // By the node's number of the device.
  int64_t whole_gpus_free_ = 0;
  int64_t largest_partial_milli_ = 0;
};

}  // namespace troupe::scheduler
