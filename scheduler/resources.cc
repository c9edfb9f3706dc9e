#include "scheduler/resources.h"

#include <fmt/format.h>

#include <algorithm>

namespace troupe::scheduler {
namespace {

bool in_range(int64_t amount) {
  return amount >= 0 && amount <= amount_max;
}

Status check_amounts(const ResourceVector& vector) {
  if (!in_range(vector.cpu_milli) || !in_range(vector.memory_mib) || !in_range(vector.gpu_milli))
    return error(Code::invalid, "amount out of range in " + vector.to_string());
  for (size_t i = 0; i < vector.custom.size(); ++i) {
    const CustomAmount& amount = vector.custom[i];
    if (amount.name.empty() || !in_range(amount.milli))
      return error(Code::invalid, "amount out of range in " + vector.to_string());
    if (i > 0 && vector.custom[i - 1].name >= amount.name)
      return error(Code::invalid, "custom resources not ascending in " + vector.to_string());
  }
  return ok();
}

bool is_fraction(int64_t gpu_milli) {
  return gpu_milli > 0 && gpu_milli < whole_gpu_milli;
}

const CustomAmount* find(const std::vector<CustomAmount>& custom, std::string_view name) {
  const auto it = std::lower_bound(
      custom.begin(), custom.end(), name,
      [](const CustomAmount& amount, std::string_view wanted) { return amount.name < wanted; });
  return it != custom.end() && it->name == name ? &*it : nullptr;
}

bool custom_covers(const std::vector<CustomAmount>& have, const std::vector<CustomAmount>& want) {
  return std::all_of(want.begin(), want.end(), [&](const CustomAmount& amount) {
    const CustomAmount* found = find(have, amount.name);
    return amount.milli == 0 || (found != nullptr && found->milli >= amount.milli);
  });
}

// All but the GPUs, which are a matter of single devices.
bool covers(const ResourceVector& have, const ResourceVector& want) {
  return have.cpu_milli >= want.cpu_milli && have.memory_mib >= want.memory_mib &&
         (want.custom.empty() || custom_covers(have.custom, want.custom));
}

}  // namespace

int64_t ResourceVector::custom_milli(std::string_view name) const {
  const CustomAmount* found = find(custom, name);
  return found != nullptr ? found->milli : 0;
}

bool could_fit(const ResourceVector& total, const ResourceVector& demand) {
  return total.gpu_milli >= demand.gpu_milli && covers(total, demand);
}

std::string milli_to_string(int64_t milli) {
  std::string text = fmt::format("{}", milli / 1000);
  const int64_t rest = milli % 1000;
  if (rest == 0) return text;
  text += fmt::format(".{:03}", rest < 0 ? -rest : rest);
  while (text.back() == '0') text.pop_back();
  return text;
}

std::string ResourceVector::to_string() const {
  std::string text;
  const auto put = [&](std::string_view name, const std::string& amount) {
    if (!text.empty()) text += ", ";
    text += name;
    text += ' ';
    text += amount;
  };
  if (cpu_milli != 0) put("cpu", milli_to_string(cpu_milli));
  if (memory_mib != 0) put("memory", fmt::format("{}MiB", memory_mib));
  if (gpu_milli != 0) put("gpu", milli_to_string(gpu_milli));
  for (const CustomAmount& amount : custom) put(amount.name, milli_to_string(amount.milli));
  return "{" + text + "}";
}

Status check_demand(const ResourceVector& demand) {
  TROUPE_CHECK(check_amounts(demand));
  if (!is_fraction(demand.gpu_milli) && demand.gpu_milli % whole_gpu_milli != 0)
    return error(Code::invalid,
                 fmt::format("{} GPUs: a fraction below 1 or a whole number is possible",
                             milli_to_string(demand.gpu_milli)));
  return ok();
}

Status check_total(const ResourceVector& total) {
  TROUPE_CHECK(check_amounts(total));
  if (total.gpu_milli % whole_gpu_milli != 0 ||
      total.gpu_milli / whole_gpu_milli > gpus_per_node_max)
    return error(Code::invalid,
                 fmt::format("a node cannot have {} GPUs", milli_to_string(total.gpu_milli)));
  return ok();
}

Status add(ResourceVector& sum, const ResourceVector& term) {
  ResourceVector next = sum;
  bool overflow = __builtin_add_overflow(next.cpu_milli, term.cpu_milli, &next.cpu_milli);
  overflow |= __builtin_add_overflow(next.memory_mib, term.memory_mib, &next.memory_mib);
  overflow |= __builtin_add_overflow(next.gpu_milli, term.gpu_milli, &next.gpu_milli);
  for (const CustomAmount& amount : term.custom) {
    const auto it =
        std::lower_bound(next.custom.begin(), next.custom.end(), amount.name,
                         [](const CustomAmount& a, const std::string& b) { return a.name < b; });
    if (it != next.custom.end() && it->name == amount.name) {
      overflow |= __builtin_add_overflow(it->milli, amount.milli, &it->milli);
    } else {
      next.custom.insert(it, amount);
    }
  }
  if (overflow)
    return error(Code::exhausted, "overflow adding " + term.to_string() + " to " + sum.to_string());
  sum = std::move(next);
  return ok();
}

Status subtract(ResourceVector& rest, const ResourceVector& term) {
  if (!covers(rest, term) || rest.gpu_milli < term.gpu_milli)
    return error(Code::exhausted, "cannot take " + term.to_string() + " from " + rest.to_string());
  rest.cpu_milli -= term.cpu_milli;
  rest.memory_mib -= term.memory_mib;
  rest.gpu_milli -= term.gpu_milli;
  for (const CustomAmount& amount : term.custom) {
    if (amount.milli == 0) continue;
    const_cast<CustomAmount*>(find(rest.custom, amount.name))->milli -= amount.milli;
  }
  return ok();
}

NodeLedger::NodeLedger(ResourceVector total)
    : total_(std::move(total)),
      available_(total_),
      device_free_milli_(static_cast<size_t>(total_.gpu_milli / whole_gpu_milli), whole_gpu_milli) {
  recount_devices();
}

NodeLedger::NodeLedger(ResourceVector bundle, const Devices& devices)
    : total_(std::move(bundle)),
      available_(total_),
      device_free_milli_(devices.empty() ? 0 : devices.back().device + size_t{1}) {
  for (const DeviceShare& share : devices) device_free_milli_[share.device] = share.milli;
  recount_devices();
}

void NodeLedger::recount_devices() {
  whole_gpus_free_ = 0;
  largest_partial_milli_ = 0;
  for (const int64_t free : device_free_milli_) {
    if (free == whole_gpu_milli) {
      ++whole_gpus_free_;
    } else {
      largest_partial_milli_ = std::max(largest_partial_milli_, free);
    }
  }
}

bool NodeLedger::devices_fit(int64_t gpu_milli) const {
  if (is_fraction(gpu_milli)) return whole_gpus_free_ > 0 || largest_partial_milli_ >= gpu_milli;
  return whole_gpus_free_ * whole_gpu_milli >= gpu_milli;
}

bool NodeLedger::fits(const ResourceVector& demand) const {
  return devices_fit(demand.gpu_milli) && covers(available_, demand);
}

std::optional<Devices> NodeLedger::take(const ResourceVector& demand) {
  if (!fits(demand)) return std::nullopt;
  Devices devices;
  if (is_fraction(demand.gpu_milli)) {
    uint32_t best = 0;
    int64_t best_free = whole_gpu_milli + 1;
    for (uint32_t i = 0; i < device_free_milli_.size(); ++i) {
      const int64_t free = device_free_milli_[i];
      if (free >= demand.gpu_milli && free < best_free) {
        best = i;
        best_free = free;
      }
    }
    devices.push_back({best, demand.gpu_milli});
  } else if (demand.gpu_milli > 0) {
    const auto wanted = static_cast<size_t>(demand.gpu_milli / whole_gpu_milli);
    devices.reserve(wanted);
    for (uint32_t i = 0; devices.size() < wanted; ++i)
      if (device_free_milli_[i] == whole_gpu_milli) devices.push_back({i, whole_gpu_milli});
  }
  TROUPE_ASSERT(take_exactly(demand, devices), "a demand that fits can be taken");
  return devices;
}

bool NodeLedger::take_exactly(const ResourceVector& demand, const Devices& devices) {
  int64_t sum_milli = 0;
  for (size_t i = 0; i < devices.size(); ++i) {
    const DeviceShare& share = devices[i];
    if (share.device >= device_free_milli_.size() || share.milli <= 0 ||
        share.milli > device_free_milli_[share.device])
      return false;
    if (i > 0 && devices[i - 1].device >= share.device) return false;
    if (!is_fraction(demand.gpu_milli) && share.milli != whole_gpu_milli) return false;
    sum_milli += share.milli;
  }
  if (sum_milli != demand.gpu_milli || (is_fraction(demand.gpu_milli) && devices.size() != 1))
    return false;
  const int64_t owed = std::max<int64_t>(demand.cpu_milli - available_.cpu_milli, 0);
  available_.cpu_milli += owed;
  if (!covers(available_, demand)) {
    available_.cpu_milli -= owed;
    return false;
  }
  cpu_owed_milli_ += owed;
  available_.cpu_milli -= demand.cpu_milli;
  available_.memory_mib -= demand.memory_mib;
  available_.gpu_milli -= demand.gpu_milli;
  for (CustomAmount& amount : available_.custom) {
    if (demand.custom.empty()) break;
    amount.milli -= demand.custom_milli(amount.name);
  }
  for (const DeviceShare& share : devices) device_free_milli_[share.device] -= share.milli;
  if (!devices.empty()) recount_devices();
  return true;
}

void NodeLedger::lend_cpu(int64_t cpu_milli) {
  const int64_t paid = std::min(cpu_owed_milli_, cpu_milli);
  cpu_owed_milli_ -= paid;
  available_.cpu_milli += cpu_milli - paid;
}

void NodeLedger::reclaim_cpu(int64_t cpu_milli) {
  const int64_t taken = std::min(available_.cpu_milli, cpu_milli);
  available_.cpu_milli -= taken;
  cpu_owed_milli_ += cpu_milli - taken;
}

void NodeLedger::give_back(const ResourceVector& demand, const Devices& devices) {
  lend_cpu(demand.cpu_milli);
  available_.memory_mib += demand.memory_mib;
  available_.gpu_milli += demand.gpu_milli;
  for (CustomAmount& amount : available_.custom) {
    if (demand.custom.empty()) break;
    amount.milli += demand.custom_milli(amount.name);
  }
  for (const DeviceShare& share : devices) device_free_milli_[share.device] += share.milli;
  if (!devices.empty()) recount_devices();
  TROUPE_ASSERT(covers(total_, available_) && available_.gpu_milli <= total_.gpu_milli,
                "more given back than taken");
}

}  // namespace troupe::scheduler
