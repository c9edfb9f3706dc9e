#include "training/trainer.h"

// An array of pointers is meant, so the size of one of them is: a false alarm within the macro.
// NOLINTNEXTLINE(bugprone-sizeof-expression)
TROUPE_PLUGIN("training", "0.1.0",
              troupe::plugin::class_table<troupe::training::Trainer>("trainer"))
