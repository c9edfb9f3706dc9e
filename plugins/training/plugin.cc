#include "training/trainer.h"

TROUPE_PLUGIN("training", "0.1.0",
              troupe::plugin::class_table<troupe::training::Trainer>("trainer"))
