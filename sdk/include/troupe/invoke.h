// From C++ functions and their arguments to named calls with bytes, and back. For the SDK's own
// headers.
#pragma once

#include <string_view>

#include "troupe/coroutine.h"
#include "troupe/generator.h"
#include "troupe/object_ref.h"
#include "troupe/plugin.h"
#include "troupe/signature.h"

namespace troupe::detail {

// One argument: bytes, or a ref whose value the callee gets.
struct ArgumentValue {
  Bytes bytes;
  std::shared_ptr<RefHandle> by_ref;
  std::vector<std::shared_ptr<RefHandle>> refs_inside;
};

template <class T>
struct UnwrapResult {
  using type = T;
};
template <class T>
struct UnwrapResult<Result<T>> {
  using type = T;
};

template <class T>
constexpr bool is_coroutine = false;
template <class T>
constexpr bool is_coroutine<Coroutine<T>> = true;

// What a method returns that need not be done when it returns.
template <class R>
constexpr bool goes_on_later = is_coroutine<R> || is_generator<R>;

// What a method gives in the end: Coroutine<R> gives what R gives.
template <class R>
struct Awaited {
  using type = R;
};
template <class R>
struct Awaited<Coroutine<R>> {
  using type = R;
};

template <class R>
uint64_t value_hash() {
  using Plain = typename UnwrapResult<typename Awaited<R>::type>::type;
  if constexpr (std::is_void_v<Plain>) {
    return 2;
  } else {
    return type_hash<Plain>();
  }
}

template <class T>
struct ItemOf;
template <class T>
struct ItemOf<Generator<T>> {
  using type = T;
};

template <class R>
uint64_t result_hash() {
  if constexpr (is_generator<R>) {
    return hash_mix(24, type_hash<typename ItemOf<R>::type>());
  } else {
    return value_hash<R>();
  }
}

// The same for caller and callee exactly when they agree on every type.
template <class R, class... P>
uint64_t signature_hash() {
  uint64_t hash = hash_mix(hash_start, result_hash<R>());
  ((hash = hash_mix(hash, type_hash<P>())), ...);
  return hash | 1;  // 0 means opaque bytes.
}

// What f(p...) looks like, for functions and member functions.
template <class F>
struct FunctionTraits;
template <class R, class... P>
struct FunctionTraits<R (*)(P...)> {
  using Return = R;
  using Value = typename UnwrapResult<typename Awaited<R>::type>::type;
  // A coroutine outlives its caller's arguments.
  static_assert(!(is_coroutine<R> || is_generator<R>) || !(std::is_reference_v<P> || ...),
                "a coroutine's parameters must be values");
  using Arguments = std::tuple<std::remove_cvref_t<P>...>;
  static constexpr size_t arity = sizeof...(P);
  static uint64_t signature() {
    (void)noted;  // So that it is made.
    return hash();
  }
  static std::string text() { return signature_text<Value, std::remove_cvref_t<P>...>(); }

 private:
  static uint64_t hash() { return signature_hash<R, std::remove_cvref_t<P>...>(); }
  static inline const bool noted = note_signature(&hash, &text);
};
template <class R, class... P>
struct FunctionTraits<R (*)(P...) noexcept> : FunctionTraits<R (*)(P...)> {};
template <class C, class R, class... P>
struct FunctionTraits<R (C::*)(P...)> : FunctionTraits<R (*)(P...)> {
  using Class = C;
};
template <class C, class R, class... P>
struct FunctionTraits<R (C::*)(P...) const> : FunctionTraits<R (C::*)(P...)> {};
template <class C, class R, class... P>
struct FunctionTraits<R (C::*)(P...) noexcept> : FunctionTraits<R (C::*)(P...)> {};
// Class(Parameters...): a constructor.
template <class C, class... P>
struct FunctionTraits<C(P...)> : FunctionTraits<void (*)(P...)> {
  using Class = C;
};

// A parameter of type P takes a P (or what converts to it), or a ref to one.
template <class P, class A>
ArgumentValue encode_argument(A&& argument) {
  using Given = std::remove_cvref_t<A>;
  ArgumentValue out;
  if constexpr (is_object_ref<Given> && !is_object_ref<P>) {
    static_assert(std::is_same_v<Given, ObjectRef<P>>,
                  "a ref to another type than the parameter's");
    out.by_ref = argument.handle();
  } else {
    static_assert(std::is_convertible_v<A, P>, "the argument does not convert to the parameter");
    static_assert(Known<P>, "the parameter's type cannot be serialised");
    Writer writer;
    const P& value = static_cast<const P&>(std::forward<A>(argument));
    write<P>(writer, value);
    out.bytes = std::move(writer.bytes);
    out.refs_inside = std::move(writer.refs);
  }
  return out;
}

template <class Parameters, class... A, size_t... I>
std::vector<ArgumentValue> encode_arguments(std::index_sequence<I...>, A&&... arguments) {
  std::vector<ArgumentValue> out;
  out.reserve(sizeof...(A));
  (out.push_back(encode_argument<std::tuple_element_t<I, Parameters>>(std::forward<A>(arguments))),
   ...);
  return out;
}

// --- The callee's side, run by the host through the C ABI.

const troupe_host& host();
std::shared_ptr<SessionImpl> process_session();
void put_message(troupe_text* out, std::string_view message);
// The refs inside the value that this thread replies with, or gives as an item, next: the host
// keeps them (see runtime/client/result_refs.h).
void keep_result_refs(std::vector<std::shared_ptr<RefHandle>> refs);

template <class Tuple, size_t... I>
bool decode_arguments(const troupe_bytes* arguments, Tuple& out, std::index_sequence<I...>) {
  bool good = true;
  [[maybe_unused]] const auto one = [&](const troupe_bytes& bytes, auto& value) {
    Reader in{{bytes.data, bytes.size}, process_session()};
    read<std::remove_cvref_t<decltype(value)>>(in, value);
    good = good && !in.failed;
  };
  (one(arguments[I], std::get<I>(out)), ...);
  return good;
}

// A value whose parts can be results of their own, each with its ref: a tuple's, or a vector's, of
// which the caller says how many.
template <class T>
struct Several {
  static constexpr bool possible = false;
};
template <class... Ts>
struct Several<std::tuple<Ts...>> {
  static constexpr bool possible = true;
  using Refs = std::tuple<ObjectRef<Ts>...>;
  static uint32_t count(uint32_t) { return sizeof...(Ts); }
  static Refs refs(std::vector<std::shared_ptr<RefHandle>> handles) {
    return [&]<size_t... I>(std::index_sequence<I...>) {
      return Refs{ObjectRef<Ts>{std::move(handles[I])}...};
    }(std::index_sequence_for<Ts...>{});
  }
  template <class Each>
  static void for_each(const std::tuple<Ts...>& value, Each each) {
    std::apply([&](const Ts&... parts) { (each(parts), ...); }, value);
  }
};
template <class T>
struct Several<std::vector<T>> {
  static constexpr bool possible = true;
  using Refs = std::vector<ObjectRef<T>>;
  static uint32_t count(uint32_t wanted) { return wanted; }
  static Refs refs(std::vector<std::shared_ptr<RefHandle>> handles) {
    Refs refs;
    refs.reserve(handles.size());
    for (auto& handle : handles) refs.emplace_back(std::move(handle));
    return refs;
  }
  template <class Each>
  static void for_each(const std::vector<T>& value, Each each) {
    for (const T& part : value) each(part);
  }
};

// The refs inside each of several values, as keep_result_refs.
void keep_result_refs(std::vector<std::vector<std::shared_ptr<RefHandle>>> refs);

template <class Value>
void reply_with_several(troupe_call* call, const Value& value) {
  std::vector<Bytes> parts;
  std::vector<std::vector<std::shared_ptr<RefHandle>>> refs;
  Several<Value>::for_each(value, [&](const auto& part) {
    Writer out;
    write<std::remove_cvref_t<decltype(part)>>(out, part);
    parts.push_back(std::move(out.bytes));
    refs.push_back(std::move(out.refs));
  });
  std::vector<troupe_bytes> views;
  for (const Bytes& part : parts) views.push_back({part.data(), part.size()});
  keep_result_refs(std::move(refs));
  host().call_reply_many(call, views.data(), views.size());
}

template <class Value>
void reply_with(troupe_call* call, const Value& value) {
  if constexpr (Several<Value>::possible) {
    if (host().call_results(call) > 0) {
      reply_with_several(call, value);
      return;
    }
  }
  Writer out;
  write<Value>(out, value);
  keep_result_refs(std::move(out.refs));
  host().call_reply(call, {out.bytes.data(), out.bytes.size()});
}

// Finishes `call` with what `give` returns (an R) or throws.
template <class R, class Give>
void finish_with(troupe_call* call, Give give) noexcept {
  using Value = typename UnwrapResult<R>::type;
  try {
    if constexpr (std::is_void_v<R>) {
      give();
      host().call_reply(call, {nullptr, 0});
    } else if constexpr (std::is_same_v<R, Status>) {
      const Status outcome = give();
      if (!outcome) throw outcome.error();
      host().call_reply(call, {nullptr, 0});
    } else if constexpr (!std::is_same_v<R, Value>) {
      const R outcome = give();
      if (!outcome) throw outcome.error();
      reply_with<Value>(call, *outcome);
    } else {
      reply_with<R>(call, give());
    }
  } catch (const Error& thrown) {
    host().call_fail(call, static_cast<int32_t>(thrown.code()), thrown.message().c_str());
  } catch (const std::exception& thrown) {
    host().call_fail(call, TROUPE_INTERNAL, thrown.what());
  } catch (...) {
    host().call_fail(call, TROUPE_INTERNAL, "an exception of unknown type");
  }
}

template <class Traits, class Function>
void run_generator(troupe_call* call, const troupe_bytes* arguments, Function function) noexcept {
  if (host().call_streams(call) == 0) {
    host().call_fail(call, TROUPE_INVALID, "it gives a stream: its caller must take one");
    return;
  }
  std::optional<typename Traits::Return> made;
  try {
    typename Traits::Arguments values{};
    if (!decode_arguments(arguments, values, std::make_index_sequence<Traits::arity>{})) {
      throw error(Code::invalid, "malformed arguments");
    }
    made.emplace(std::apply(function, std::move(values)));
  } catch (...) {
    ItemWriter{call}.finish(std::current_exception());
    return;
  }
  std::move(*made).run(call);
}

// Runs `function` (a callable over the argument tuple) and finishes `call` with what it returns or
// throws, once it has if it is a coroutine.
template <class Traits, class Function>
void run_and_reply(troupe_call* call, uint64_t signature, const troupe_bytes* arguments,
                   size_t argument_count, Function function) noexcept {
  if (argument_count != Traits::arity || (signature != 0 && signature != Traits::signature())) {
    host().call_fail(call, TROUPE_INVALID,
                     signatures_differ(Traits::text(), signature, argument_count).c_str());
    return;
  }
  const RunningCall running{{.call = call}};
  using Return = typename Traits::Return;
  if constexpr (is_generator<Return>) {
    // A method goes on on its actor's thread; a task keeps its own until the end.
    std::optional<CoroutineMethod> method;
    if constexpr (requires { typename Traits::Class; }) method.emplace();
    run_generator<Traits>(call, arguments, function);
  } else if constexpr (is_coroutine<Return>) {
    using Given = typename Awaited<Return>::type;
    // What throws before the coroutine begins, e.g. the copy of an argument.
    std::optional<Return> begun;
    try {
      typename Traits::Arguments values{};
      if (!decode_arguments(arguments, values, std::make_index_sequence<Traits::arity>{})) {
        host().call_fail(call, TROUPE_INVALID, "malformed arguments");
        return;
      }
      const CoroutineMethod runs;
      begun.emplace(std::apply(function, std::move(values)));
    } catch (...) {
      finish_with<Given>(call, []() -> Given { throw; });
      return;
    }
    begun->then([call, coroutine = *begun]() mutable {
      finish_with<Given>(call, [&]() -> Given { return coroutine.get(); });
    });
  } else {
    finish_with<Return>(call, [&]() -> Return {
      typename Traits::Arguments values{};
      if (!decode_arguments(arguments, values, std::make_index_sequence<Traits::arity>{})) {
        throw error(Code::invalid, "malformed arguments");
      }
      return std::apply(function, std::move(values));
    });
  }
}

}  // namespace troupe::detail
