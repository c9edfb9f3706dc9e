#include "packages/names.h"

#include <algorithm>

namespace troupe::packages {
namespace {

// Takes the first component off.
std::string_view next_component(std::string_view& rest) {
  const size_t slash = rest.find('/');
  const std::string_view component = rest.substr(0, slash);
  rest = slash == rest.npos ? std::string_view{} : rest.substr(slash + 1);
  return component;
}

bool is_plain_component(std::string_view component) {
  return !component.empty() && component != "." && component != "..";
}

}  // namespace

bool is_plain_name(std::string_view name) {
  if (name.empty() || name.size() > name_bytes_max || name.back() == '/') return false;
  if (name.find('\0') != name.npos) return false;
  while (!name.empty()) {
    if (!is_plain_component(next_component(name))) return false;
  }
  return true;
}

bool stays_inside(std::string_view link, std::string_view target) {
  if (target.empty() || target.size() > name_bytes_max || target.front() == '/') return false;
  if (target.find('\0') != target.npos) return false;
  auto above = std::count(link.begin(), link.end(), '/');
  bool went_down = false;
  while (!target.empty()) {
    const std::string_view component = next_component(target);
    if (component.empty() || component == ".") continue;
    if (component != "..") {
      went_down = true;
    } else if (went_down || --above < 0) {
      return false;
    }
  }
  return true;
}

std::string_view parent_of(std::string_view name) {
  const size_t slash = name.rfind('/');
  return slash == name.npos ? std::string_view{} : name.substr(0, slash);
}

bool is_hash(std::string_view text) {
  return text.size() == 64 && std::ranges::all_of(text, [](char c) {
           return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f');
         });
}

}  // namespace troupe::packages
