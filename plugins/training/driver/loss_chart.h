// The losses of a run as a picture for people: an SVG without outside parts.
#pragma once

#include <cstdint>
#include <span>
#include <string>

namespace troupe::training {

struct LossPoint {
  uint64_t step = 0;
  double loss = 0;
};

// The training loss thin, its running mean over it, and the validation losses as points. Values
// that are not finite are left out.
std::string loss_chart_svg(std::span<const LossPoint> train, std::span<const LossPoint> validation,
                           const std::string& title);

}  // namespace troupe::training
