// Hashes of signatures in errors, read back.
#pragma once

#include <string>

#include "base/status.h"

namespace troupe::detail {

// The error as its reader should see it: with the texts of those signatures that this process
// knows, in the place of their hashes.
Error with_signatures(Error error);

}  // namespace troupe::detail
