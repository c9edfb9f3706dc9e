// Registration of the tasks and actors that a module offers.
//
//   int add(int a, int b) { return a + b; }
//   TROUPE_TASK(add);
//
//   class Counter { public: explicit Counter(int start); int add(int n); };
//   TROUPE_ACTOR(Counter(int), add);            // The constructor, then the methods.
//
// A method that returns Coroutine<T> gives a T in the end, one that returns Generator<T> gives many
// (see generator.h). While it awaits, others of its actor
// run, on the same thread, up to ActorOptions::max_concurrency unfinished ones.
//
//   TROUPE_CONCURRENCY_GROUP(Counter, "io", 4, read, write);
//
// Calls of these methods run on 4 threads of their own (of coroutine methods: up to 4 are
// unfinished), so that they neither wait for the others nor hold them up.
//
// When an actor is stopped, its method on_exit(), if it has one without parameters, runs after its
// last call; after ActorOptions::exit_grace its process is killed.
//
// A class with save(CheckpointWriter&) and load(CheckpointReader&) can be checkpointed: see
// checkpoint.h.
//
// At namespace scope, in the namespace of the function or class. Tasks go by the name that stands
// in TROUPE_TASK, so two functions of a program need two names there: TROUPE_TASK(a::step) outside
// of `a` is another than TROUPE_TASK(step). Build the program with troupe_add_program (CMake), so
// that workers can load it.
#pragma once

#include <deque>

#include "troupe/checkpoint.h"
#include "troupe/invoke.h"

namespace troupe::detail {

using CallFunction = void (*)(void* instance, troupe_call*, uint64_t signature,
                              const troupe_bytes* arguments, size_t argument_count);

// Called by static initialisers of a module. `function` is the address that submit() is given.
void register_task(const char* name, const void* function, CallFunction call);
void register_class(const troupe_actor_class* table);
// The registered name of a task function. Errors: invalid (it is no task, or another function has
// that name, too).
Result<std::string> task_name(const void* function);
// "Counter" of "Counter(int)"; lives as long as the process.
const char* class_name(const char* signature);
// The shared object that holds `address`.
std::string module_of(const void* address);
// Of all functions and classes that are registered.
std::vector<std::string> registered_modules();
// In a process that loaded its module from a copy: by which name it goes everywhere.
void set_module_alias(std::string file, std::string name);

template <auto function>
void call_task(void*, troupe_call* call, uint64_t signature, const troupe_bytes* arguments,
               size_t argument_count) {
  using Traits = FunctionTraits<decltype(function)>;
  run_and_reply<Traits>(call, signature, arguments, argument_count, function);
}

template <auto function>
struct TaskRegistration {
  explicit TaskRegistration(const char* name) {
    register_task(name, reinterpret_cast<const void*>(function), &call_task<function>);
  }
};

// Names a method in overload resolution.
template <auto method>
struct MethodTag {};

struct MethodEntry {
  std::string_view name;
  CallFunction call;
  bool is_coroutine;
};

template <auto method>
void call_method(void* instance, troupe_call* call, uint64_t signature,
                 const troupe_bytes* arguments, size_t argument_count) {
  using Traits = FunctionTraits<decltype(method)>;
  auto* actor = static_cast<typename Traits::Class*>(instance);
  run_and_reply<Traits>(call, signature, arguments, argument_count,
                        [actor](auto&&... values) -> decltype(auto) {
                          return (actor->*method)(std::forward<decltype(values)>(values)...);
                        });
}

// The concurrency groups of a class: static initialisers fill them.
template <class Class>
struct MethodGroups {
  static inline std::vector<troupe_method_group> groups;
  static const troupe_method_group* table(size_t* count) {
    *count = groups.size();
    return groups.data();
  }
};

template <class Class>
struct GroupRegistration {
  GroupRegistration(const char* name, uint32_t limit, std::vector<const char*> methods) {
    static std::deque<std::vector<const char*>> kept;
    const auto& names = kept.emplace_back(std::move(methods));
    MethodGroups<Class>::groups.push_back({name, limit, names.data(), names.size()});
  }
};

// The C ABI's functions for one class. `Signature` is Class(Parameters...).
template <class Signature>
struct ClassTable {
  using Traits = FunctionTraits<Signature>;
  using Class = typename Traits::Class;

  static inline std::vector<MethodEntry> methods;

  // Lets nothing escape.
  template <class Function>
  static int32_t guarded(troupe_text* message, Function function) {
    try {
      function();
      return TROUPE_OK;
    } catch (const Error& thrown) {
      put_message(message, thrown.message());
      return static_cast<int32_t>(thrown.code());
    } catch (const std::exception& thrown) {
      put_message(message, thrown.what());
    } catch (...) {
      put_message(message, "an exception of unknown type");
    }
    return TROUPE_INTERNAL;
  }

  static int32_t create(troupe_context*, uint64_t signature, const troupe_bytes* arguments,
                        size_t argument_count, void** instance, troupe_text* message) {
    if (argument_count != Traits::arity || (signature != 0 && signature != Traits::signature())) {
      put_message(message, signatures_differ(Traits::text(), signature, argument_count));
      return TROUPE_INVALID;
    }
    return guarded(message, [&] {
      typename Traits::Arguments values{};
      if (!decode_arguments(arguments, values, std::make_index_sequence<Traits::arity>{})) {
        throw error(Code::invalid, "malformed arguments");
      }
      *instance = std::apply(
          [](auto&&... parts) { return new Class(std::forward<decltype(parts)>(parts)...); },
          std::move(values));
    });
  }

  static void call(void* instance, troupe_call* call, const char* method, uint64_t signature,
                   const troupe_bytes* arguments, size_t argument_count) {
    for (const MethodEntry& entry : methods) {
      if (entry.name == method) {
        entry.call(instance, call, signature, arguments, argument_count);
        return;
      }
    }
    host().call_fail(call, TROUPE_NOT_FOUND,
                     ("the class has no method named " + std::string(method)).c_str());
  }

  static void exiting(void* instance) {
    if constexpr (requires(Class& actor) { actor.on_exit(); }) {
      try {
        static_cast<Class*>(instance)->on_exit();
      } catch (...) {
        // It ends all the same.
        host().log(host().current(), TROUPE_LOG_ERROR, "on_exit_threw", nullptr);
      }
    }
  }
  static int32_t checkpoint(void* instance, const char* path, troupe_text* message) {
    return guarded(message, [&] {
      CheckpointWriter out{path};
      static_cast<Class*>(instance)->save(out);
      out.finish();
    });
  }
  static int32_t restore(void* instance, const char* path, troupe_text* message) {
    return guarded(message, [&] {
      CheckpointReader in{path};
      static_cast<Class*>(instance)->load(in);
    });
  }
  static void destroy(void* instance) { delete static_cast<Class*>(instance); }
};

template <class Signature>
struct ClassRegistration {
  ClassRegistration(const char* name, std::vector<MethodEntry> methods) {
    using Table = ClassTable<Signature>;
    Table::methods = std::move(methods);
    static troupe_actor_class table{};
    table.size = sizeof table;
    table.name = name;
    table.create = &Table::create;
    table.call = &Table::call;
    table.destroy = &Table::destroy;
    table.groups = &MethodGroups<typename Table::Class>::table;
    table.exiting = &Table::exiting;
    static_assert(!is_half_checkpointable<typename Table::Class>,
                  "save(CheckpointWriter&) and load(CheckpointReader&) go together");
    if constexpr (Checkpointable<typename Table::Class>) {
      table.checkpoint = &Table::checkpoint;
      table.restore = &Table::restore;
    }
    for (const MethodEntry& entry : Table::methods) {
      if (entry.is_coroutine) table.flags = TROUPE_CLASS_COROUTINES;
    }
    register_class(&table);
  }
};

}  // namespace troupe::detail

#define TROUPE_JOIN_(a, b) a##b
#define TROUPE_JOIN(a, b) TROUPE_JOIN_(a, b)

#define TROUPE_TASK(function)                                                           \
  static const ::troupe::detail::TaskRegistration<&function> TROUPE_JOIN(troupe_task_,  \
                                                                         __COUNTER__) { \
    #function                                                                           \
  }

// Applies M(context, x) to each further argument, up to 24.
#define TROUPE_EACH_1(M, c, x) M(c, x)
#define TROUPE_EACH_2(M, c, x, ...) M(c, x) TROUPE_EACH_1(M, c, __VA_ARGS__)
#define TROUPE_EACH_3(M, c, x, ...) M(c, x) TROUPE_EACH_2(M, c, __VA_ARGS__)
#define TROUPE_EACH_4(M, c, x, ...) M(c, x) TROUPE_EACH_3(M, c, __VA_ARGS__)
#define TROUPE_EACH_5(M, c, x, ...) M(c, x) TROUPE_EACH_4(M, c, __VA_ARGS__)
#define TROUPE_EACH_6(M, c, x, ...) M(c, x) TROUPE_EACH_5(M, c, __VA_ARGS__)
#define TROUPE_EACH_7(M, c, x, ...) M(c, x) TROUPE_EACH_6(M, c, __VA_ARGS__)
#define TROUPE_EACH_8(M, c, x, ...) M(c, x) TROUPE_EACH_7(M, c, __VA_ARGS__)
#define TROUPE_EACH_9(M, c, x, ...) M(c, x) TROUPE_EACH_8(M, c, __VA_ARGS__)
#define TROUPE_EACH_10(M, c, x, ...) M(c, x) TROUPE_EACH_9(M, c, __VA_ARGS__)
#define TROUPE_EACH_11(M, c, x, ...) M(c, x) TROUPE_EACH_10(M, c, __VA_ARGS__)
#define TROUPE_EACH_12(M, c, x, ...) M(c, x) TROUPE_EACH_11(M, c, __VA_ARGS__)
#define TROUPE_PICK_13_(_1, _2, _3, _4, _5, _6, _7, _8, _9, _10, _11, _12, name, ...) name
#define TROUPE_EACH(M, c, ...)                                                                \
  TROUPE_PICK_13_(__VA_ARGS__, TROUPE_EACH_12, TROUPE_EACH_11, TROUPE_EACH_10, TROUPE_EACH_9, \
                  TROUPE_EACH_8, TROUPE_EACH_7, TROUPE_EACH_6, TROUPE_EACH_5, TROUPE_EACH_4,  \
                  TROUPE_EACH_3, TROUPE_EACH_2, TROUPE_EACH_1)                                \
  (M, c, __VA_ARGS__)

#define TROUPE_METHOD_NAME_(Signature, method)                                                    \
  [[maybe_unused]] inline const char* troupe_method_name(                                         \
      ::troupe::detail::FunctionTraits<Signature>::Class*,                                        \
      ::troupe::detail::MethodTag<&::troupe::detail::FunctionTraits<Signature>::Class::method>) { \
    return #method;                                                                               \
  }
#define TROUPE_METHOD_ENTRY_(Signature, method)                                                 \
  {#method,                                                                                     \
   &::troupe::detail::call_method<&::troupe::detail::FunctionTraits<Signature>::Class::method>, \
   ::troupe::detail::goes_on_later<typename ::troupe::detail::FunctionTraits<                   \
       decltype(&::troupe::detail::FunctionTraits<Signature>::Class::method)>::Return>},

// TROUPE_ACTOR(Class(ConstructorParameters...), method, ...): at most 12 methods, none overloaded.
// A constructor with several parameters needs a name without commas: using Make = Class(int, int).
#define TROUPE_ACTOR(Signature, ...)                                                      \
  [[maybe_unused]] inline ::troupe::detail::FunctionTraits<Signature> troupe_constructor( \
      ::troupe::detail::FunctionTraits<Signature>::Class*) {                              \
    return {};                                                                            \
  }                                                                                       \
  [[maybe_unused]] inline const char* troupe_class_name(                                  \
      ::troupe::detail::FunctionTraits<Signature>::Class*) {                              \
    return ::troupe::detail::class_name(#Signature);                                      \
  }                                                                                       \
  [[maybe_unused]] static const void* troupe_class_anchor(                                \
      ::troupe::detail::FunctionTraits<Signature>::Class*) {                              \
    using Anchor = const void* (*)(::troupe::detail::FunctionTraits<Signature>::Class*);  \
    return reinterpret_cast<const void*>(static_cast<Anchor>(&troupe_class_anchor));      \
  }                                                                                       \
  TROUPE_EACH(TROUPE_METHOD_NAME_, Signature, __VA_ARGS__)                                \
  static const ::troupe::detail::ClassRegistration<Signature> TROUPE_JOIN(troupe_class_,  \
                                                                          __COUNTER__) {  \
    ::troupe::detail::class_name(#Signature), {                                           \
      TROUPE_EACH(TROUPE_METHOD_ENTRY_, Signature, __VA_ARGS__)                           \
    }                                                                                     \
  }

#define TROUPE_GROUP_METHOD_(Class, method) \
  (static_cast<void>(::troupe::detail::MethodTag<&Class::method>{}), #method),

// TROUPE_CONCURRENCY_GROUP(Class, "name", limit, method, ...): see above. A method is in at most
// one group.
#define TROUPE_CONCURRENCY_GROUP(Class, name, limit, ...)                            \
  static const ::troupe::detail::GroupRegistration<Class> TROUPE_JOIN(troupe_group_, \
                                                                      __COUNTER__) { \
    name, limit, {                                                                   \
      TROUPE_EACH(TROUPE_GROUP_METHOD_, Class, __VA_ARGS__)                          \
    }                                                                                \
  }
