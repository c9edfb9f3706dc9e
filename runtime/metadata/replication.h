// Copies of what is committed, on other machines: what a group commit asks of who makes them.
#pragma once

#include <functional>

#include "base/status.h"
#include "metadata/store.h"

namespace troupe {

// Called on the loop of the group commit.
class Replication {
 public:
  virtual ~Replication() = default;
  // A group is about to be written here; each is begun in the order in which they become durable.
  // May add rows to it.
  virtual void begin(Batch& group) = 0;
  // The group that was begun last is durable here. `told` is called once, at once or later: with ok
  // when every copy that counts has it, too; else with why nobody may be told of it.
  virtual void confirm(std::function<void(Status)> told) = 0;
  // Whether nobody else can have promised anything since.
  virtual bool holds() const = 0;
};

}  // namespace troupe
