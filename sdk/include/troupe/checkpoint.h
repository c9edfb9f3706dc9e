// An actor whose state outlives its process.
//
//   class Counter {
//    public:
//     explicit Counter(int start);
//     int add(int n);
//     void save(troupe::CheckpointWriter& out) const { out.write(value_, names_); }
//     void load(troupe::CheckpointReader& in) { in.read(value_, names_); }
//   };
//   TROUPE_ACTOR(Counter(int), add);           // save and load are not named here.
//
// A checkpoint is taken every ActorOptions::checkpoint_interval, when somebody calls
// ActorRef::checkpoint(), or when the actor asks for one by checkpoint_soon(): always on the
// actor's thread and between two of its calls, so that save sees what the calls before it left. It
// goes to the head, which keeps the last one of each actor. When the actor starts again (its
// process, node or head died, or its node is drained), its constructor runs with the arguments
// that it had, and then load. What it did since the checkpoint is lost, and callers of that time
// have had their answers; a drain takes a last one, so that nothing is. Whatever save or load
// throws fails the checkpoint, or the start.
//
// Not for actors with several threads, concurrency groups or coroutine methods.
#pragma once

#include <concepts>
#include <filesystem>
#include <memory>
#include <string>

#include "troupe/serialize.h"

namespace troupe {

class CheckpointWriter {
 public:
  // Writes into this directory. For the SDK.
  explicit CheckpointWriter(std::filesystem::path folder);
  ~CheckpointWriter();
  CheckpointWriter(const CheckpointWriter&) = delete;
  CheckpointWriter& operator=(const CheckpointWriter&) = delete;

  // Any types that may be arguments of calls; handles of actors too, but no refs of objects, which
  // live no longer than their owner. Throws Error: exhausted (the disk is full), invalid (a ref).
  template <Serializable... Ts>
  void write(const Ts&... values) {
    (write_one(values), ...);
  }
  // For what is better kept in files of its own. What lies here at the end of save, links that lead
  // out excepted, is found in CheckpointReader::folder(); the name "values" is taken.
  const std::filesystem::path& folder() const { return folder_; }
  // For the SDK. Throws Error: as write.
  void finish();

 private:
  template <class T>
  void write_one(const T& value) {
    detail::Writer out{};
    detail::write<T>(out, value);
    append(detail::type_hash<T>(), out);
  }
  void append(uint64_t type, const detail::Writer& value);

  struct Impl;
  std::filesystem::path folder_;
  std::unique_ptr<Impl> impl_;
};

class CheckpointReader {
 public:
  explicit CheckpointReader(std::filesystem::path folder);
  ~CheckpointReader();
  CheckpointReader(const CheckpointReader&) = delete;
  CheckpointReader& operator=(const CheckpointReader&) = delete;

  // The values that save wrote, of the same types and in the same order. Throws Error: data_loss
  // (another type, or there are no more).
  template <Serializable... Ts>
  void read(Ts&... values) {
    (read_one(values), ...);
  }
  // Whether all were read: a version of the class that writes more finds out so that this is a
  // checkpoint of an older one.
  bool at_end() const;
  // Read-only, and not there for longer than load.
  const std::filesystem::path& folder() const { return folder_; }

 private:
  template <class T>
  void read_one(T& value) {
    detail::Reader in = next(detail::type_hash<T>());
    detail::read<T>(in, value);
    check(in);
  }
  detail::Reader next(uint64_t type);
  void check(const detail::Reader& in) const;

  struct Impl;
  std::filesystem::path folder_;
  std::unique_ptr<Impl> impl_;
};

// Whether a class is written for checkpoints.
template <class A>
concept Checkpointable = requires(A& actor, CheckpointWriter& out, CheckpointReader& in) {
  actor.save(out);
  actor.load(in);
};

namespace detail {
template <class A>
constexpr bool is_half_checkpointable =
    !Checkpointable<A> && (
                              requires(A& actor, CheckpointWriter& out) { actor.save(out); } ||
                              requires(A& actor, CheckpointReader& in) { actor.load(in); });
}  // namespace detail

// A state of an actor that is kept.
struct CheckpointInfo {
  uint64_t number = 0;  // From 1, of this actor.
  uint64_t size_bytes = 0;
  uint32_t incarnation = 0;  // That wrote it.
};

// Within an actor: asks for a checkpoint behind the calls that wait, and does not wait for it.
// Several wishes before one begins are one. Errors: unimplemented (this actor can take none),
// invalid (this thread runs no actor).
Status checkpoint_soon();

}  // namespace troupe
