#include "client/wait_graph.h"

#include <fmt/format.h>

#include <algorithm>
#include <deque>
#include <optional>

namespace troupe::client {

namespace {

constexpr size_t shown_max = 8;  // Of what one thing waits for.
constexpr size_t lines_max = 200;

bool is_call(const WaitGraph::Node& node) {
  return node.subject.kind == "call";
}
// One that a get could fail in.
bool waits(const WaitGraph::Node& node) {
  return node.said.state == wait_state::waiting || node.said.state == wait_state::waiting_for_any;
}
bool needs_all(const WaitGraph::Node& node) {
  return node.said.state == wait_state::waiting || node.said.state == wait_state::sent;
}
bool depends(const WaitGraph::Node& node) {
  if (node.answer != WaitGraph::Answer::told || node.edges.empty()) return false;
  if (node.said.deadline_us > 0) return false;  // It ends by then.
  return needs_all(node) || node.said.state == wait_state::waiting_for_any ||
         node.said.state == wait_state::queued;
}

const std::string& name_of(const WaitGraph::Node& node) {
  return node.said.name.empty() ? node.subject.name : node.said.name;
}

std::string title(const WaitGraph::Node& node) {
  const std::string& name = name_of(node);
  const std::string id = node.subject.id.to_string();
  return name.empty() ? fmt::format("{} {}", node.subject.kind, id)
                      : fmt::format("{} {} {}", node.subject.kind, name, id);
}

std::string line_text(const WaitGraph::Node& node) {
  if (node.answer == WaitGraph::Answer::none) return title(node) + ": not asked about";
  std::string text = title(node);
  if (node.answer == WaitGraph::Answer::silent) return text + ": " + node.said.why;
  text += ": " + node.said.state;
  if (node.said.since_us > 0) text += " for " + seconds_text(node.said.since_us);
  if (node.said.deadline_us > 0) {
    text += fmt::format(", deadline in {}", seconds_text(node.said.deadline_us));
  }
  if (!node.said.why.empty()) text += ": " + node.said.why;
  return text;
}

}  // namespace

std::string seconds_text(uint64_t us) {
  if (us < 10'000'000) return fmt::format("{:.1f} s", static_cast<double>(us) / 1e6);
  const uint64_t seconds = us / 1'000'000;
  if (seconds < 120) return fmt::format("{} s", seconds);
  if (seconds < 7200) return fmt::format("{} min {} s", seconds / 60, seconds % 60);
  return fmt::format("{} h {} min", seconds / 3600, seconds / 60 % 60);
}

size_t WaitGraph::add(const protocol::WaitsFor& subject) {
  const Key key{subject.kind, subject.id, subject.at.process};
  const auto [place, is_new] = places_.try_emplace(key, nodes_.size());
  if (is_new) {
    nodes_.push_back({subject, Answer::none, {}, {}});
  } else if (nodes_[place->second].subject.name.empty()) {
    nodes_[place->second].subject.name = subject.name;
  }
  return place->second;
}

std::vector<size_t> WaitGraph::tell(size_t place, protocol::Explanation said) {
  std::vector<size_t> next;
  for (const protocol::WaitsFor& subject : said.waits_for) {
    const size_t to = add(subject);
    if (std::ranges::find(next, to) == next.end()) next.push_back(to);
  }
  nodes_[place].answer = Answer::told;
  nodes_[place].said = std::move(said);
  nodes_[place].edges = next;
  return next;
}

void WaitGraph::silent(size_t place, std::string why) {
  nodes_[place].answer = Answer::silent;
  nodes_[place].said.why = std::move(why);
}

// Least fixed point: what needs nothing may go on, and then what needs only that.
std::vector<bool> WaitGraph::stuck() const {
  std::vector<bool> goes_on(nodes_.size());
  for (bool changed = true; changed;) {
    changed = false;
    for (size_t i = 0; i < nodes_.size(); ++i) {
      if (goes_on[i]) continue;
      const auto free = [&](size_t to) { return goes_on[to]; };
      const Node& node = nodes_[i];
      goes_on[i] = !depends(node) || (needs_all(node) ? std::ranges::all_of(node.edges, free)
                                                      : std::ranges::any_of(node.edges, free));
      changed = changed || goes_on[i];
    }
  }
  goes_on.flip();
  return goes_on;
}

std::vector<bool> WaitGraph::reachable(const std::vector<bool>& within, size_t from,
                                       bool backwards) const {
  std::vector<std::vector<size_t>> steps(nodes_.size());
  for (size_t i = 0; i < nodes_.size(); ++i) {
    if (!within[i]) continue;
    for (const size_t to : nodes_[i].edges) {
      if (within[to]) steps[backwards ? to : i].push_back(backwards ? i : to);
    }
  }
  std::vector<bool> found(nodes_.size());
  std::vector<size_t> open{from};
  while (!open.empty()) {
    const size_t at = open.back();
    open.pop_back();
    for (const size_t to : steps[at]) {
      if (found[to]) continue;
      found[to] = true;
      open.push_back(to);
    }
  }
  return found;
}

std::vector<size_t> WaitGraph::circle_through(const std::vector<bool>& within, size_t start) const {
  std::vector<std::optional<size_t>> before(nodes_.size());
  std::deque<size_t> open{start};
  while (!open.empty() && !before[start]) {
    const size_t at = open.front();
    open.pop_front();
    for (const size_t to : nodes_[at].edges) {
      if (!within[to] || before[to]) continue;
      before[to] = at;
      open.push_back(to);
    }
  }
  std::vector<size_t> circle;
  if (!before[start]) return circle;
  for (size_t at = *before[start]; at != start; at = *before[at]) circle.push_back(at);
  circle.push_back(start);
  std::ranges::reverse(circle);
  return circle;
}

std::vector<size_t> WaitGraph::deadlock(size_t with) const {
  return deadlock_of(stuck(), with);
}

std::vector<size_t> WaitGraph::deadlock_of(std::vector<bool> knot, size_t with) const {
  if (!knot[with]) return {};
  const auto ahead = reachable(knot, with, false);
  const auto behind = reachable(knot, with, true);
  if (!ahead[with]) return {};  // It waits for others who are stuck.
  std::optional<size_t> victim;
  for (size_t i = 0; i < nodes_.size(); ++i) {
    knot[i] = ahead[i] && behind[i];
    if (!knot[i] || !is_call(nodes_[i]) || !waits(nodes_[i])) continue;
    if (!victim || nodes_[i].subject.id > nodes_[*victim].subject.id) victim = i;
  }
  return victim ? circle_through(knot, *victim) : std::vector<size_t>{};
}

std::vector<size_t> WaitGraph::deadlock() const {
  const std::vector<bool> all = stuck();
  const auto first = std::ranges::find(all, true);
  if (first == all.end()) return {};
  // What is stuck waits for something that is, and so on: the walk comes back to where it was.
  std::vector<bool> seen(nodes_.size());
  size_t at = static_cast<size_t>(first - all.begin());
  while (!seen[at]) {
    seen[at] = true;
    at = *std::ranges::find_if(nodes_[at].edges, [&](size_t to) { return all[to]; });
  }
  return deadlock_of(all, at);
}

std::string WaitGraph::describe(const std::vector<size_t>& circle) const {
  std::vector<const Node*> calls;
  for (const size_t place : circle) {
    if (is_call(nodes_[place])) calls.push_back(&nodes_[place]);
  }
  std::string text;
  for (size_t i = 0; i < calls.size(); ++i) {
    text += i == 0 ? name_of(*calls[i]) + " " : ", which ";
    text += waits(*calls[i]) ? "waits for " : "is queued behind ";
    text += name_of(*calls[(i + 1) % calls.size()]);
  }
  return text;
}

void WaitGraph::put_lines(size_t node, size_t depth, std::vector<bool>& shown,
                          std::vector<Line>& out) const {
  if (out.size() >= lines_max) return;
  out.push_back({depth, node, shown[node], 0});
  if (shown[node]) return;
  shown[node] = true;
  // What is done says nothing of why the rest waits.
  std::vector<size_t> wanted;
  for (const size_t to : nodes_[node].edges) {
    const bool is_done = nodes_[to].said.state == "ready";
    if (!is_done) wanted.push_back(to);
  }
  for (size_t i = 0; i < std::min(wanted.size(), shown_max); ++i) {
    put_lines(wanted[i], depth + 1, shown, out);
  }
  if (wanted.size() > shown_max) out.push_back({depth + 1, 0, false, wanted.size() - shown_max});
}

std::vector<WaitGraph::Line> WaitGraph::lines() const {
  std::vector<Line> out;
  std::vector<bool> shown(nodes_.size());
  for (size_t root = 0; root < std::min({roots_, nodes_.size(), shown_max}); ++root) {
    put_lines(root, 0, shown, out);
  }
  if (roots_ > shown_max) out.push_back({0, 0, false, roots_ - shown_max});
  return out;
}

std::string WaitGraph::text() const {
  std::string text;
  for (const Line& line : lines()) {
    if (!text.empty()) text += '\n';
    text.append(line.depth * 2, ' ');
    if (line.others > 0) {
      text += fmt::format("and {} more", line.others);
    } else if (line.again) {
      text += title(nodes_[line.node]) + ": as above";
    } else {
      text += line_text(nodes_[line.node]);
    }
  }
  if (is_cut_) text += "\nthere is more: the questions were cut short";
  if (const auto circle = deadlock(); !circle.empty()) {
    text += "\ndeadlock: " + describe(circle);
  }
  return text;
}

bool is_unbroken(const WaitGraph& before, const std::vector<size_t>& circle,
                 const WaitGraph& after) {
  return std::ranges::all_of(circle, [&](size_t place) {
    const WaitGraph::Node& was = before.nodes()[place];
    const auto& nodes = after.nodes();
    const auto is = std::ranges::find_if(nodes, [&](const WaitGraph::Node& node) {
      return node.subject.kind == was.subject.kind && node.subject.id == was.subject.id &&
             node.subject.at.process == was.subject.at.process;
    });
    if (is == nodes.end() || is->answer != WaitGraph::Answer::told) return false;
    const auto same = [](const protocol::WaitsFor& a, const protocol::WaitsFor& b) {
      return a.kind == b.kind && a.id == b.id;
    };
    return is->said.state == was.said.state && is->said.since_us >= was.said.since_us &&
           std::ranges::equal(is->said.waits_for, was.said.waits_for, same);
  });
}

}  // namespace troupe::client
