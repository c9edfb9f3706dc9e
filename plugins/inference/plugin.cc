#include "inference/engine_actor.h"

// An array of pointers is meant, so the size of one of them is: a false alarm within the macro.
// NOLINTNEXTLINE(bugprone-sizeof-expression)
TROUPE_PLUGIN("inference", "0.1.0",
              troupe::plugin::class_table<troupe::inference::EngineActor>("engine"))
