#include "head/job_environment.h"

#include <fmt/format.h>

#include <algorithm>
#include <set>

#include "packages/file.h"
#include "packages/names.h"
#include "packages/shelf.h"

namespace troupe::head {

using protocol::JobEnvironment;
using protocol::NamedValue;
using protocol::Package;

namespace {

constexpr size_t variables_max = 1000;
constexpr size_t variable_name_bytes_max = 256;
constexpr size_t variables_bytes_max = 128 << 10;  // Names and values together.
constexpr size_t packages_max = 256;
constexpr size_t path_bytes_max = 4096;

Status check_variable(const NamedValue& variable) {
  const std::string& name = variable.name;
  if (name.empty() || name.size() > variable_name_bytes_max ||
      name.find_first_of(std::string_view("=\0", 2)) != name.npos ||
      variable.value.find('\0') != variable.value.npos) {
    return error(
        Code::invalid,
        fmt::format("the environment variable '{}' cannot be set: a name has 1 to {} bytes "
                    "and no '=', and neither it nor the value has a NUL",
                    name.substr(0, variable_name_bytes_max), variable_name_bytes_max));
  }
  if (name.starts_with("TROUPE_") || name == "CUDA_VISIBLE_DEVICES") {
    return error(
        Code::invalid,
        fmt::format("the environment variable {} is Troupe's own: a job cannot set it", name));
  }
  return ok();
}

Status check_variables(const std::vector<NamedValue>& variables) {
  std::set<std::string_view> known;
  size_t bytes = 0;
  for (const NamedValue& variable : variables) {
    TROUPE_CHECK(check_variable(variable));
    if (!known.insert(variable.name).second) {
      return error(Code::invalid,
                   fmt::format("the environment variable {} is given twice", variable.name));
    }
    bytes += variable.name.size() + variable.value.size();
  }
  if (variables.size() <= variables_max && bytes <= variables_bytes_max) return ok();
  return error(
      Code::invalid,
      fmt::format("a job has at most {} environment variables of {} KiB together; these "
                  "are {} of {} KiB: put large values into a file of the working directory",
                  variables_max, variables_bytes_max >> 10, variables.size(), bytes >> 10));
}

bool is_working_folder(const Package& package) {
  return package.kind == packages::working_folder_kind;
}

Status check_package(const Package& package) {
  const bool known = package.kind == packages::module_kind || is_working_folder(package);
  if (known && packages::is_hash(package.hash) && !package.path.empty() &&
      package.path.size() <= path_bytes_max && package.size_bytes <= packages::package_bytes_max) {
    return ok();
  }
  return error(
      Code::invalid,
      fmt::format("the package {} of kind '{}' and {} bytes is none that a job can have",
                  package.path.substr(0, path_bytes_max), package.kind, package.size_bytes));
}

const NamedValue* find(const std::vector<NamedValue>& variables, const std::string& name) {
  const auto found = std::ranges::find(variables, name, &NamedValue::name);
  return found == variables.end() ? nullptr : &*found;
}

// Whether it was added.
Result<bool> merge_variable(JobEnvironment& into, NamedValue variable, bool open) {
  const NamedValue* present = find(into.variables, variable.name);
  if (present != nullptr && present->value == variable.value) return false;
  if (present != nullptr || !open) {
    return error(Code::conflict,
                 fmt::format("the job's processes have the environment variable {} otherwise: give "
                             "it once, at 'troupe submit --env' or in its first program",
                             variable.name));
  }
  into.variables.push_back(std::move(variable));
  return true;
}

Result<bool> merge_package(JobEnvironment& into, Package package, bool open) {
  const auto same = [&](const Package& other) {
    return other.kind == package.kind && (is_working_folder(package) || other.path == package.path);
  };
  const auto present = std::ranges::find_if(into.packages, same);
  if (present != into.packages.end() && present->hash == package.hash) return false;
  if (present != into.packages.end() || (is_working_folder(package) && !open)) {
    return error(
        Code::conflict,
        fmt::format("the job has another {} than {} as it is now: what its processes find "
                    "is what was there when it began; begin another job",
                    is_working_folder(package) ? "working directory" : "module", package.path));
  }
  into.packages.push_back(std::move(package));
  return true;
}

}  // namespace

Status check(const JobEnvironment& environment) {
  TROUPE_CHECK(check_variables(environment.variables));
  if (environment.packages.size() > packages_max) {
    return error(Code::invalid, fmt::format("a job has at most {} packages", packages_max));
  }
  for (const Package& package : environment.packages) TROUPE_CHECK(check_package(package));
  if (std::ranges::count_if(environment.packages, is_working_folder) > 1) {
    return error(Code::invalid, "a job has one working directory");
  }
  return ok();
}

Result<std::optional<JobEnvironment>> merge(const JobEnvironment& environment, JobEnvironment other,
                                            bool open) {
  JobEnvironment merged = environment;
  bool changed = other.log_to_driver && !environment.log_to_driver;
  merged.log_to_driver = environment.log_to_driver || other.log_to_driver;
  for (NamedValue& variable : other.variables) {
    TROUPE_TRY(const bool added, merge_variable(merged, std::move(variable), open));
    changed = changed || added;
  }
  for (Package& package : other.packages) {
    TROUPE_TRY(const bool added, merge_package(merged, std::move(package), open));
    changed = changed || added;
  }
  if (!changed) return std::optional<JobEnvironment>{};
  TROUPE_CHECK(check(merged));
  return std::optional<JobEnvironment>{std::move(merged)};
}

bool names(const JobEnvironment& environment, const std::string& package) {
  return std::ranges::any_of(environment.packages,
                             [&](const Package& one) { return one.hash == package; });
}

bool can_be_reached(const protocol::ProcessAddress& address) {
  return !address.unix_path.empty() || address.port != 0;
}

}  // namespace troupe::head
