#include "troupe/output.h"

#include <fmt/format.h>

#include <algorithm>
#include <boost/json.hpp>
#include <cctype>
#include <cstdio>
#include <vector>

namespace troupe::tools {
namespace json = boost::json;

namespace {

// One cell: nested values in one line.
std::string cell(const json::value& value) {
  switch (value.kind()) {
    case json::kind::null:
      return "-";
    case json::kind::bool_:
      return value.get_bool() ? "yes" : "no";
    case json::kind::int64:
      return std::to_string(value.get_int64());
    case json::kind::uint64:
      return std::to_string(value.get_uint64());
    case json::kind::double_:
      return fmt::format("{:g}", value.get_double());
    case json::kind::string: {
      const std::string_view text = value.get_string();
      return text.empty() ? "-" : std::string(text);
    }
    case json::kind::array: {
      std::string line;
      for (const auto& item : value.get_array()) line += (line.empty() ? "" : ", ") + cell(item);
      return line.empty() ? "-" : line;
    }
    case json::kind::object: {
      std::string line;
      for (const auto& [key, item] : value.get_object()) {
        line += fmt::format("{}{}={}", line.empty() ? "" : " ", std::string_view(key), cell(item));
      }
      return line.empty() ? "-" : line;
    }
  }
  return {};
}

std::string upper(std::string_view text) {
  std::string out{text};
  for (char& c : out) c = static_cast<char>(std::toupper(static_cast<unsigned char>(c)));
  return out;
}

std::string table(const json::array& rows) {
  if (rows.empty()) return "none\n";
  if (!rows.front().is_object()) {
    std::string lines;
    for (const auto& row : rows) lines += cell(row) + "\n";
    return lines;
  }
  std::vector<std::vector<std::string>> lines(1);
  for (const auto& [key, value] : rows.front().get_object()) lines[0].push_back(upper(key));
  for (const auto& row : rows) {
    auto& line = lines.emplace_back();
    for (const auto& [key, value] : row.as_object()) line.push_back(cell(value));
  }
  std::vector<size_t> widths(lines[0].size(), 0);
  for (const auto& line : lines) {
    for (size_t i = 0; i < widths.size() && i < line.size(); ++i) {
      widths[i] = std::max(widths[i], line[i].size());
    }
  }
  std::string out;
  for (const auto& line : lines) {
    std::string text;
    for (size_t i = 0; i < line.size(); ++i) {
      text += i + 1 < line.size() && i < widths.size() ? fmt::format("{:<{}}  ", line[i], widths[i])
                                                       : line[i];
    }
    out += text + "\n";
  }
  return out;
}

std::string lines_of(const json::object& object) {
  size_t width = 0;
  for (const auto& [key, value] : object) width = std::max(width, key.size());
  std::string out;
  for (const auto& [key, value] : object) {
    const bool rows =
        value.is_array() && !value.get_array().empty() && value.get_array().front().is_object();
    if (rows) {
      out += fmt::format("{}:\n", std::string_view(key));
      std::string nested = table(value.get_array());
      size_t start = 0;
      for (size_t end; (end = nested.find('\n', start)) != nested.npos; start = end + 1) {
        out += "  " + nested.substr(start, end - start + 1);
      }
    } else {
      out += fmt::format("{:<{}}  {}\n", std::string(key) + ":", width + 1, cell(value));
    }
  }
  return out;
}

// JSON's quoting is YAML's double-quoted style, so every scalar is written so unless it is plain.
std::string yaml_scalar(const json::value& value) {
  // Not 6E-3, which YAML 1.1 reads as text.
  if (value.is_double()) return fmt::format("{}", value.get_double());
  if (!value.is_string()) return json::serialize(value);
  const std::string_view text = value.get_string();
  const bool plain = !text.empty() &&
                     (std::isalpha(static_cast<unsigned char>(text[0])) != 0 || text[0] == '/') &&
                     std::all_of(text.begin(), text.end(), [](unsigned char c) {
                       return std::isalnum(c) != 0 || c == '_' || c == '-' || c == '.' || c == '/';
                     });
  const bool reserved = text == "true" || text == "false" || text == "null" || text == "yes" ||
                        text == "no" || text == "on" || text == "off" || text == "y" || text == "n";
  return plain && !reserved ? std::string(text) : json::serialize(value);
}

void yaml(const json::value& value, size_t depth, std::string& out) {
  const std::string indent(depth * 2, ' ');
  const auto nested = [](const json::value& item) {
    return (item.is_object() && !item.get_object().empty()) ||
           (item.is_array() && !item.get_array().empty());
  };
  if (value.is_object()) {
    for (const auto& [key, item] : value.get_object()) {
      out += indent + yaml_scalar(json::value(json::string(key))) + ":";
      if (nested(item)) {
        out += "\n";
        yaml(item, depth + 1, out);
      } else {
        out += " " + yaml_scalar(item) + "\n";
      }
    }
  } else if (value.is_array()) {
    for (const auto& item : value.get_array()) {
      if (nested(item)) {
        std::string inner;
        yaml(item, depth + 1, inner);
        inner.replace(depth * 2, 2, "- ");
        out += inner;
      } else {
        out += indent + "- " + yaml_scalar(item) + "\n";
      }
    }
  } else {
    out += indent + yaml_scalar(value) + "\n";
  }
}

}  // namespace

std::string render(const json::value& value, Format format) {
  if (format == Format::json) return json::serialize(value) + "\n";
  if (format == Format::yaml) {
    const bool empty = (value.is_array() && value.get_array().empty()) ||
                       (value.is_object() && value.get_object().empty());
    if (empty) return value.is_array() ? "[]\n" : "{}\n";
    std::string out;
    yaml(value, 0, out);
    return out;
  }
  if (value.is_array()) return table(value.get_array());
  if (value.is_object()) return lines_of(value.get_object());
  return cell(value) + "\n";
}

void print(const json::value& value, Format format) {
  const std::string text = render(value, format);
  std::fwrite(text.data(), 1, text.size(), stdout);
  std::fflush(stdout);
}

int exit_code(Code code) {
  switch (code) {
    case Code::ok:
      return 0;
    case Code::not_found:
      return 3;
    case Code::denied:
      return 4;
    case Code::unavailable:
      return 5;
    case Code::deadline_exceeded:
      return 6;
    default:
      return 1;
  }
}

int fail(const Error& failure) {
  std::string where = failure.where().empty() ? "" : fmt::format(" (at {})", failure.where());
  std::fprintf(stderr, "troupe: %s%s\n", failure.message().c_str(), where.c_str());
  return exit_code(failure.code());
}

}  // namespace troupe::tools
