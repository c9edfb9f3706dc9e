// Log events: a snake_case name plus fields, one a state change, as one line of logfmt.
// Thread-safe. Events go to the process's sink, which main sets once before it starts threads.
#pragma once

#include <fmt/format.h>

#include <initializer_list>
#include <string>
#include <string_view>
#include <type_traits>

#include "base/ids.h"
#include "base/status.h"

namespace troupe::log {

enum class Level { debug, info, warning, error };

struct Field {
  std::string_view key;
  std::string value;

  template <class T>
  Field(std::string_view name, const T& v) : key(name), value(text(v)) {}

 private:
  template <class T>
  static std::string text(const T& v) {
    if constexpr (std::is_base_of_v<RawId, T> || std::is_same_v<T, Error>) {
      return v.to_string();
    } else {
      return fmt::format("{}", v);
    }
  }
};
using Fields = std::initializer_list<Field>;

void write(Level level, std::string_view event, Fields fields);
inline void debug(std::string_view event, Fields fields = {}) {
  write(Level::debug, event, fields);
}
inline void info(std::string_view event, Fields fields = {}) {
  write(Level::info, event, fields);
}
inline void warning(std::string_view event, Fields fields = {}) {
  write(Level::warning, event, fields);
}
// A person must act.
inline void error(std::string_view event, Fields fields = {}) {
  write(Level::error, event, fields);
}

// debug, info, warning or error, as in TROUPE_LOG; info for anything else, and for null.
Level level_from(const char* name);

// Names the process in every line and sets the lowest level written (from TROUPE_LOG, by main).
// Lines go to standard error, which a daemon's supervisor points at its log file.
void start(std::string_view process_name, Level level);

// Whether a line of a process's output was written here, below the level error: nothing for who
// reads what a program says.
bool is_routine(std::string_view line);

}  // namespace troupe::log
