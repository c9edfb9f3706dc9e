#include "inference/engine_actor.h"

TROUPE_PLUGIN("inference", "0.1.0",
              troupe::plugin::class_table<troupe::inference::EngineActor>("engine"))
