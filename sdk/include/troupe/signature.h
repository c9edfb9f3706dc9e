// What the types of a function look like, for errors that name those of a caller and of a module
// that differ. For the SDK's own headers.
#pragma once

#include <boost/pfr/core.hpp>
#include <cstdint>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>

namespace troupe::detail {

// Of the text that the compiler has for a type: std::string under its usual name.
std::string tidy_type_name(std::string_view name);

template <class T>
std::string type_name() {
  // "... type_name() [with T = int; ...]", and Clang's "[T = int]".
  const std::string_view text = __PRETTY_FUNCTION__;
  const size_t begin = text.find("T = ") + 4;
  return tidy_type_name(text.substr(begin, text.find_first_of(";]", begin) - begin));
}

// A struct with its fields, for two may differ in nothing else.
template <class T>
std::string type_text() {
  std::string text = type_name<T>();
  if constexpr (std::is_aggregate_v<T> && std::is_class_v<T> &&
                !requires { std::tuple_size<T>::value; }) {
    [&]<size_t... I>(std::index_sequence<I...>) {
      [[maybe_unused]] std::string_view before = "{";
      ((text.append(before) += type_text<boost::pfr::tuple_element_t<I, T>>(), before = ", "), ...);
      text += sizeof...(I) == 0 ? "{}" : "}";
    }(std::make_index_sequence<boost::pfr::tuple_size_v<T>>{});
  }
  return text;
}

// "int (double, Point{int, int})".
template <class R, class... P>
std::string signature_text() {
  std::string text = type_text<R>() + " (";
  [[maybe_unused]] std::string_view before = "";
  ((text.append(before) += type_text<P>(), before = ", "), ...);
  return text + ")";
}

// Has this process know a signature's text by its hash. Called by static initialisers of modules
// that call such functions or have them: calls themselves carry the hash alone.
bool note_signature(uint64_t (*hash)(), std::string (*text)());

// What a callee answers to a caller of another signature, whose hash stands in it for its text.
std::string signatures_differ(std::string_view here, uint64_t of_caller, size_t argument_count);

}  // namespace troupe::detail
