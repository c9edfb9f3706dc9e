// Errors as values: a code that says what the caller may do, and a message that says why.
#pragma once

#include <boost/system/result.hpp>
#include <chrono>
#include <cstdint>
#include <exception>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

namespace troupe {

// Decide by code, never by message text. The values cross process boundaries: never renumber.
enum class Code : uint8_t {
  ok = 0,
  unavailable = 1,        // Not now; retry later.
  deadline_exceeded = 2,  // Not in time; retry later.
  exhausted = 3,          // A bound was reached; retry later.
  invalid = 4,            // The request is wrong; do not retry.
  not_found = 5,          // Do not retry.
  conflict = 6,           // Contradicts the present state; do not retry.
  denied = 7,             // The caller may not do this.
  unimplemented = 8,      // This build or peer cannot do it.
  cancelled = 9,          // Someone asked for it to stop.
  outcome_unknown = 10,   // It may have run.
  data_loss = 11,         // The data is gone or damaged; rebuild it.
  internal = 12,          // A bug of ours or an exception of the user's code.
};

// The stable name of a code, e.g. "deadline_exceeded".
std::string_view code_name(Code code);
// The inverse; internal for a name or number that this build does not know.
Code code_from_number(uint32_t number);

// What went wrong. Thrown only by Result::value(), for those who prefer exceptions.
class [[nodiscard]] Error : public std::exception {
 public:
  Error() = default;
  Error(Code code, std::string message) : code_(code), message_(std::move(message)) {}

  Code code() const { return code_; }
  const std::string& message() const { return message_; }
  // The process where it happened, e.g. "actor 3fa2... on node worker-1"; empty if local.
  const std::string& where() const { return where_; }
  // When a retry may help, the time to wait before it.
  std::optional<std::chrono::milliseconds> retry_after() const { return retry_after_; }
  bool retriable() const;

  Error at(std::string where) && {
    if (where_.empty()) where_ = std::move(where);
    return std::move(*this);
  }
  Error after(std::chrono::milliseconds delay) && {
    retry_after_ = delay;
    return std::move(*this);
  }
  // Puts what was being done before the message: "start actor 12ab: no such file".
  Error context(std::string_view doing) && {
    message_.insert(0, std::string(doing) + ": ");
    return std::move(*this);
  }

  // "not_found: no actor named counter (at node worker-1)".
  std::string to_string() const;
  const char* what() const noexcept override { return message_.c_str(); }

 private:
  Code code_ = Code::internal;
  std::string message_;
  std::string where_;
  std::optional<std::chrono::milliseconds> retry_after_;
};

[[noreturn]] void throw_exception_from_error(const Error& error, const boost::source_location&);

// A value or an Error. value() throws the Error; test with operator bool first.
template <class T>
class [[nodiscard]] Result : public boost::system::result<T, Error> {
 public:
  using value_type = T;
  using boost::system::result<T, Error>::result;
};

// Success or an Error.
template <>
class [[nodiscard]] Result<void> : public boost::system::result<void, Error> {
 public:
  using value_type = void;
  using boost::system::result<void, Error>::result;
};
using Status = Result<void>;

inline Status ok() {
  return Status{};
}
inline Error error(Code code, std::string message) {
  return Error{code, std::move(message)};
}

// Aborts with the message: a broken invariant is a bug, in every build.
[[noreturn]] void assert_failed(const char* condition, const char* file, int line,
                                std::string_view message);

}  // namespace troupe

#define TROUPE_CONCAT_(a, b) a##b
#define TROUPE_CONCAT(a, b) TROUPE_CONCAT_(a, b)

#define TROUPE_TRY_(tmp, ret, decl, ...) \
  auto tmp = (__VA_ARGS__);              \
  if (!tmp) [[unlikely]]                 \
    ret std::move(tmp).error();          \
  decl = std::move(*tmp)
#define TROUPE_TRY_STATUS_(tmp, ret, ...)          \
  if (auto tmp = (__VA_ARGS__); !tmp) [[unlikely]] \
  ret std::move(tmp).error()

// TROUPE_TRY(auto x, f()): x is f()'s value, or this function returns f()'s error.
#define TROUPE_TRY(decl, ...) \
  TROUPE_TRY_(TROUPE_CONCAT(troupe_try_, __COUNTER__), return, decl, __VA_ARGS__)
// The same in a coroutine: TROUPE_CO_TRY(auto x, co_await f()).
#define TROUPE_CO_TRY(decl, ...) \
  TROUPE_TRY_(TROUPE_CONCAT(troupe_try_, __COUNTER__), co_return, decl, __VA_ARGS__)
// For a Status: TROUPE_CHECK(f()).
#define TROUPE_CHECK(...) \
  TROUPE_TRY_STATUS_(TROUPE_CONCAT(troupe_try_, __COUNTER__), return, __VA_ARGS__)
#define TROUPE_CO_CHECK(...) \
  TROUPE_TRY_STATUS_(TROUPE_CONCAT(troupe_try_, __COUNTER__), co_return, __VA_ARGS__)

#define TROUPE_ASSERT(condition, message)                                 \
  do {                                                                    \
    if (!(condition)) [[unlikely]]                                        \
      ::troupe::assert_failed(#condition, __FILE__, __LINE__, (message)); \
  } while (false)
