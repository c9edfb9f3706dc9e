// How results that lie in stores were made: the task and its arguments, kept by their owner, so
// that one that is lost with its node can be made again (Wang et al., "Ownership: A Distributed
// Futures System for Fine-Grained Tasks", NSDI 2021).
#pragma once

#include <list>
#include <memory>
#include <unordered_map>
#include <vector>

#include "client/client.h"

namespace troupe::client {

// On the loop. A recipe stays as long as one of its results is there, or a recipe that stays needs
// one as an argument: of those that nobody has refs to the value goes, and how to make it stays.
class Lineage {
 public:
  struct Recipe {
    std::shared_ptr<const TaskTraits> traits;
    std::vector<protocol::Argument> arguments;
    std::vector<ObjectName> kept;   // Refs held for as long as it stays.
    std::vector<ObjectId> parents;  // Results of other recipes, once for each use.
    ObjectId first;                 // Its results are named after it.
    uint64_t bytes = 0;
    uint32_t users = 0;
    int32_t made_again = 0;  // So often.
    std::list<std::shared_ptr<Recipe>>::iterator age = {};

    uint32_t results() const { return std::max(traits->results, 1u); }
  };
  using RecipePointer = std::shared_ptr<Recipe>;

  // Over so many bytes the oldest recipes go.
  explicit Lineage(uint64_t bytes_max) : bytes_max_(bytes_max) {}

  RecipePointer find(ObjectId result) const;
  // Those of its results are in a store, and each is a user. Its parents are used already.
  void add(const RecipePointer& recipe, const std::vector<ObjectId>& stored);
  // One user more of the recipe that makes this, if there is one; or one less.
  void use(ObjectId result);
  void disuse(ObjectId result);
  // What was kept for recipes that went: the caller drops a reference to each.
  std::vector<ObjectName> take_dropped() { return std::exchange(dropped_, {}); }

  uint64_t bytes() const { return bytes_; }
  uint64_t bytes_max() const { return bytes_max_; }

 private:
  // Gives up its parents and what is kept for it.
  void remove(RecipePointer recipe);

  const uint64_t bytes_max_;
  uint64_t bytes_ = 0;
  std::unordered_map<ObjectId, RecipePointer> by_result_;
  std::list<RecipePointer> by_age_;  // The oldest first.
  std::vector<ObjectName> dropped_;
};

}  // namespace troupe::client
