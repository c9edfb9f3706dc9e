#include "client/lineage.h"

#include "client/object.h"

namespace troupe::client {

Lineage::RecipePointer Lineage::find(ObjectId result) const {
  const auto found = by_result_.find(result);
  return found == by_result_.end() ? nullptr : found->second;
}

void Lineage::add(const RecipePointer& recipe, const std::vector<ObjectId>& stored) {
  // All of them: another may be wanted as an argument only once it is made again.
  for (uint32_t i = 0; i < recipe->results(); ++i) {
    by_result_[result_id(recipe->first, i)] = recipe;
  }
  recipe->users = static_cast<uint32_t>(stored.size());
  recipe->age = by_age_.insert(by_age_.end(), recipe);
  bytes_ += recipe->bytes;
  while (bytes_ > bytes_max_ && !by_age_.empty()) remove(by_age_.front());
}

void Lineage::use(ObjectId result) {
  if (const auto recipe = find(result)) ++recipe->users;
}

void Lineage::disuse(ObjectId result) {
  const auto recipe = find(result);
  if (recipe && --recipe->users == 0) remove(recipe);
}

void Lineage::remove(RecipePointer recipe) {
  // A list, for a chain of recipes can be long.
  std::vector<RecipePointer> going{std::move(recipe)};
  while (!going.empty()) {
    const RecipePointer gone = std::move(going.back());
    going.pop_back();
    for (uint32_t i = 0; i < gone->results(); ++i) by_result_.erase(result_id(gone->first, i));
    by_age_.erase(gone->age);
    bytes_ -= gone->bytes;
    dropped_.insert(dropped_.end(), gone->kept.begin(), gone->kept.end());
    gone->kept.clear();
    for (const ObjectId parent : gone->parents) {
      auto needed = find(parent);
      if (needed && --needed->users == 0) going.push_back(std::move(needed));
    }
  }
}

}  // namespace troupe::client
