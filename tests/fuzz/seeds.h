// Well-formed inputs of the fuzz targets, to begin with.
#pragma once

#include <string>
#include <vector>

#include "base/bytes.h"

namespace troupe::fuzz {

struct Seed {
  std::string target;
  Bytes input;
};

std::vector<Seed> make_seeds();

}  // namespace troupe::fuzz
