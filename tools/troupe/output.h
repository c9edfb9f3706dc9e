// What commands print: one JSON value, as a table, JSON or YAML; errors with exit codes.
#pragma once

#include <boost/json/value.hpp>
#include <string>

#include "base/status.h"

namespace troupe::tools {

enum class Format { table, json, yaml };

// An array of objects becomes a table with a column a key; an object becomes lines of key and
// value.
std::string render(const boost::json::value& value, Format format);
// Prints to standard output.
void print(const boost::json::value& value, Format format);

// 0 ok, 1 failed, 2 usage, 3 not found, 4 denied, 5 unreachable, 6 timeout.
int exit_code(Code code);
// Prints "troupe: <what, why, what to do>" to standard error; returns the exit code.
int fail(const Error& failure);

}  // namespace troupe::tools
