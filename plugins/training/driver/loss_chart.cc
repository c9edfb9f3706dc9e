#include "training/driver/loss_chart.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <vector>

namespace troupe::training {
namespace {

constexpr double width = 860, height = 480;
constexpr double left = 64, right = 24, top = 48, bottom = 56;
constexpr size_t line_points_max = 2000;

// A round distance between marks, so that about `count` of them cover `range`.
double tick_size(double range, int count) {
  const double rough = std::max(range, 1e-9) / count;
  const double power = std::pow(10.0, std::floor(std::log10(rough)));
  for (const double factor : {1.0, 2.0, 5.0}) {
    if (rough <= factor * power) return factor * power;
  }
  return 10 * power;
}

struct Scale {
  double step_min, step_max, loss_min, loss_max;
  double x(double step) const {
    return left + (step - step_min) / (step_max - step_min) * (width - left - right);
  }
  double y(double loss) const {
    return height - bottom - (loss - loss_min) / (loss_max - loss_min) * (height - top - bottom);
  }
};

std::vector<LossPoint> finite(std::span<const LossPoint> points) {
  std::vector<LossPoint> out;
  for (const LossPoint& point : points) {
    if (std::isfinite(point.loss)) out.push_back(point);
  }
  return out;
}

std::vector<LossPoint> smooth(std::vector<LossPoint> points) {
  // A running mean over about a fiftieth of the run, corrected for its start.
  const double keep = 1 - 1 / std::max(4.0, static_cast<double>(points.size()) / 50);
  double mean = 0, weight = 0;
  for (LossPoint& point : points) {
    mean = keep * mean + (1 - keep) * point.loss;
    weight = keep * weight + (1 - keep);
    point.loss = mean / weight;
  }
  return points;
}

Scale scale_of(std::span<const LossPoint> train, std::span<const LossPoint> validation) {
  Scale scale{0, 1, 1e300, -1e300};
  for (const auto points : {train, validation}) {
    for (const LossPoint& point : points) {
      scale.step_max = std::max(scale.step_max, static_cast<double>(point.step));
      scale.loss_min = std::min(scale.loss_min, point.loss);
      scale.loss_max = std::max(scale.loss_max, point.loss);
    }
  }
  if (scale.loss_min > scale.loss_max) scale.loss_min = 0, scale.loss_max = 1;
  const double tick = tick_size(scale.loss_max - scale.loss_min, 6);
  scale.loss_min = std::floor(scale.loss_min / tick) * tick;
  scale.loss_max = std::max(std::ceil(scale.loss_max / tick) * tick, scale.loss_min + tick);
  return scale;
}

std::string line(std::span<const LossPoint> points, const Scale& scale, std::string_view style) {
  if (points.empty()) return {};
  std::string out = fmt::format("<polyline fill=\"none\" {} points=\"", style);
  const size_t stride = (points.size() + line_points_max - 1) / line_points_max;
  for (size_t i = 0; i < points.size(); i += stride) {
    out += fmt::format("{:.1f},{:.1f} ", scale.x(static_cast<double>(points[i].step)),
                       scale.y(points[i].loss));
  }
  return out + "\"/>\n";
}

std::string axes(const Scale& scale) {
  std::string out;
  const double x_tick = std::max(1.0, tick_size(scale.step_max - scale.step_min, 8));
  for (double step = scale.step_min; step <= scale.step_max + 1e-9; step += x_tick) {
    out += fmt::format("<text x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"middle\">{:.0f}</text>\n",
                       scale.x(step), height - bottom + 20, step);
  }
  const double y_tick = tick_size(scale.loss_max - scale.loss_min, 6);
  for (double loss = scale.loss_min; loss <= scale.loss_max + y_tick / 100; loss += y_tick) {
    const double y = scale.y(loss);
    out += fmt::format(
        "<line x1=\"{}\" y1=\"{:.1f}\" x2=\"{}\" y2=\"{:.1f}\" stroke=\"#e3e3e3\"/>\n"
        "<text x=\"{}\" y=\"{:.1f}\" text-anchor=\"end\">{:.4g}</text>\n",
        left, y, width - right, y, left - 8, y + 4, loss);
  }
  out += fmt::format("<line x1=\"{0}\" y1=\"{1}\" x2=\"{2}\" y2=\"{1}\" stroke=\"#444\"/>\n", left,
                     height - bottom, width - right);
  out += fmt::format("<text x=\"{}\" y=\"{}\" text-anchor=\"middle\">step</text>\n",
                     (left + width - right) / 2, height - 14);
  out += fmt::format(
      "<text transform=\"translate(18 {}) rotate(-90)\" text-anchor=\"middle\">loss (nats a "
      "token)</text>\n",
      (top + height - bottom) / 2);
  return out;
}

std::string escaped(const std::string& text) {
  std::string out;
  for (const char c : text) {
    if (c == '<')
      out += "&lt;";
    else if (c == '&')
      out += "&amp;";
    else
      out += c;
  }
  return out;
}

}  // namespace

std::string loss_chart_svg(std::span<const LossPoint> train, std::span<const LossPoint> validation,
                           const std::string& title) {
  const auto raw = finite(train);
  const auto held_out = finite(validation);
  const Scale scale = scale_of(raw, held_out);
  std::string out = fmt::format(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {0} {1}\" width=\"{0}\" "
      "height=\"{1}\" font-family=\"sans-serif\" font-size=\"12\" fill=\"#333\">\n"
      "<rect width=\"{0}\" height=\"{1}\" fill=\"#fff\"/>\n"
      "<text x=\"{2}\" y=\"26\" font-size=\"15\">{3}</text>\n",
      width, height, left, escaped(title));
  out += axes(scale);
  out += line(raw, scale, "stroke=\"#b9d2ec\" stroke-width=\"1\"");
  out += line(smooth(raw), scale, "stroke=\"#1f66ad\" stroke-width=\"2\"");
  out += line(held_out, scale, "stroke=\"#d1551f\" stroke-width=\"1\" stroke-dasharray=\"4 3\"");
  for (const LossPoint& point : held_out) {
    out += fmt::format("<circle cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"3.5\" fill=\"#d1551f\"/>\n",
                       scale.x(static_cast<double>(point.step)), scale.y(point.loss));
  }
  out += fmt::format(
      "<text x=\"{0}\" y=\"{1}\" text-anchor=\"end\" fill=\"#1f66ad\">training (smoothed)</text>\n"
      "<text x=\"{0}\" y=\"{2}\" text-anchor=\"end\" fill=\"#d1551f\">validation</text>\n",
      width - right - 8, top + 16, top + 34);
  return out + "</svg>\n";
}

}  // namespace troupe::training
