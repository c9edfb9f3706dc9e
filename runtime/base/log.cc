#include "base/log.h"

#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>

namespace troupe::log {
namespace {

spdlog::level::level_enum to_spdlog(Level level) {
  switch (level) {
    case Level::debug:
      return spdlog::level::debug;
    case Level::info:
      return spdlog::level::info;
    case Level::warning:
      return spdlog::level::warn;
    case Level::error:
      return spdlog::level::err;
  }
  return spdlog::level::err;
}

// Dates take the place of the letters d; the level's letter follows.
constexpr std::string_view line_shape = "dddd-dd-ddTdd:dd:dd.ddd ";

spdlog::logger& logger() {
  // Constructed on first use, so that a library user who never calls start() still sees errors.
  static const std::shared_ptr<spdlog::logger> instance = [] {
    auto made = spdlog::stderr_logger_mt("troupe");
    made->set_pattern("%Y-%m-%dT%H:%M:%S.%e %L %n %v");
    made->set_level(spdlog::level::warn);
    made->flush_on(spdlog::level::debug);
    return made;
  }();
  return *instance;
}

std::string& process_name() {
  static std::string name;
  return name;
}

void append_value(std::string& line, std::string_view value) {
  const bool plain = !value.empty() && value.find_first_of(" \t\r\n\"=\\") == value.npos;
  if (plain) {
    line += value;
    return;
  }
  line += '"';
  for (const char c : value) {
    switch (c) {
      case '"':
        line += "\\\"";
        break;
      case '\\':
        line += "\\\\";
        break;
      case '\n':
        line += "\\n";
        break;
      case '\r':
        line += "\\r";
        break;
      default:
        line += c;
    }
  }
  line += '"';
}

}  // namespace

Level level_from(const char* given) {
  const std::string_view name = given != nullptr ? given : "info";
  if (name == "debug") return Level::debug;
  if (name == "warning") return Level::warning;
  if (name == "error") return Level::error;
  return Level::info;
}

void start(std::string_view name, Level level) {
  process_name() = name;
  logger().set_level(to_spdlog(level));
}

void write(Level level, std::string_view event, Fields fields) {
  if (!logger().should_log(to_spdlog(level))) return;
  std::string line;
  if (!process_name().empty()) line += process_name() + " ";
  line += event;
  for (const Field& field : fields) {
    line += ' ';
    line += field.key;
    line += '=';
    append_value(line, field.value);
  }
  logger().log(to_spdlog(level), line);
}

bool is_routine(std::string_view line) {
  if (line.size() <= line_shape.size()) return false;
  for (size_t i = 0; i < line_shape.size(); ++i) {
    const bool digit = line[i] >= '0' && line[i] <= '9';
    if (line_shape[i] == 'd' ? !digit : line[i] != line_shape[i]) return false;
  }
  line.remove_prefix(line_shape.size());
  return line.substr(1).starts_with(" troupe ") && std::string_view("DIW").find(line[0]) < 3;
}

}  // namespace troupe::log
