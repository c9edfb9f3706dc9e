// Objects that leave memory under pressure, and come back when they are wanted.
#pragma once

#include <memory>
#include <optional>
#include <unordered_map>

#include "object_store/object_table.h"
#include "object_store/spill_folder.h"
#include "transport/environment.h"
#include "worker/options.h"

namespace troupe::worker {

class ObjectService;

class ObjectSpiller {
  struct Restore;

 public:
  ObjectSpiller(transport::Environment environment, Scope& scope, const WorkerOptions& options,
                ObjectService& objects);
  ~ObjectSpiller();

  // Makes the folder ready, if spilling is on. Errors: invalid (says why and what to do).
  Async<Status> start();
  // Removes the folder: objects end with their worker.
  void stop();

  // Lets objects leave memory for a create that found no room. True: try again. False: nothing can
  // leave. Errors: exhausted (the disk is full, or the limit is reached), internal (a broken disk);
  // all is still in memory, and the disk is left alone for a second.
  Async<Result<bool>> make_room(object_store::Caller caller, uint64_t size_bytes);

  // Brings an object back into memory. While the answer lives, it stays there.
  // Errors: data_loss (its file is damaged or gone), exhausted (no room), deadline_exceeded,
  // cancelled, not_found (freed meanwhile).
  Async<Result<std::shared_ptr<const void>>> restore(JobId job, ObjectId object, Instant deadline,
                                                     std::shared_ptr<Event> cancelled);
  // The object was freed.
  void forget(ObjectId object);

 private:
  using SpillFolder = object_store::SpillFolder;
  using Evictees = std::vector<object_store::Evictee>;

  // `all`: fewer would be in vain.
  Async<Status> spill(Evictees leaving, bool all);
  Async<void> run(std::shared_ptr<Restore> restore);
  Async<Status> read_back(std::shared_ptr<Restore> restore);
  Async<void> erase(object_store::SpillPlace place, bool whole_file);

  transport::Environment environment_;
  Scope& scope_;
  const WorkerOptions& options_;
  ObjectService& objects_;
  std::shared_ptr<const SpillFolder> folder_;  // Null: spilling is off.
  std::unordered_map<ObjectId, object_store::SpillPlace> places_;
  std::unordered_map<uint64_t, uint64_t> objects_in_;  // By file.
  uint64_t last_file_ = 0;
  bool busy_ = false;
  Event idle_;
  Instant retry_at_{};  // With a failure.
  std::optional<Error> failure_;
  std::unordered_map<ObjectId, std::shared_ptr<Restore>> restores_;
};

}  // namespace troupe::worker
