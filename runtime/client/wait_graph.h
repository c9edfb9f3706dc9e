// What waits for what, as the processes of the cluster told it, and what follows from that: a text
// for people, and which of it can never go on.
#pragma once

#include <map>
#include <string>
#include <string_view>
#include <tuple>
#include <vector>

#include "protocol/messages.h"

namespace troupe::client {

// The states that the graph understands. Whatever is in another one, has a deadline or waits for
// nothing that is known may end by itself.
namespace wait_state {
inline constexpr std::string_view sent = "sent";        // An object: its call is at a process.
inline constexpr std::string_view waiting = "waiting";  // For all that it names.
inline constexpr std::string_view waiting_for_any = "waiting for any";
inline constexpr std::string_view queued = "queued";  // Until any of what it names has ended.
}  // namespace wait_state

class WaitGraph {
 public:
  enum class Answer : uint8_t { none, told, silent };
  struct Node {
    protocol::WaitsFor subject;
    Answer answer = Answer::none;
    protocol::Explanation said;  // Of one that is silent: `why` says what became of the question.
    std::vector<size_t> edges;   // Into nodes().
  };

  // Where this subject is, which is made if it is new.
  size_t add(const protocol::WaitsFor& subject);
  // What it waits for becomes nodes, too; their places are given.
  std::vector<size_t> tell(size_t place, protocol::Explanation said);
  void silent(size_t place, std::string why);
  // What a silent one is asked about instead.
  void link(size_t from, size_t to) { nodes_[from].edges.push_back(to); }
  // So many first nodes are what was asked about.
  void set_roots(size_t count) { roots_ = count; }
  size_t roots() const { return roots_; }
  // Some of it was not asked about, for it is more than the limits allow.
  void cut() { is_cut_ = true; }
  bool is_cut() const { return is_cut_; }
  const std::vector<Node>& nodes() const { return nodes_; }

  // Whether each node can never go on, by what was told. What was not asked about may.
  std::vector<bool> stuck() const;
  // A shortest circle of such nodes, each waiting for the next and the last for the first; empty if
  // there is none. It begins with its victim: of the calls that wait for each other the one with
  // the largest id, so that all who look agree. `with`: only one that this node is part of.
  std::vector<size_t> deadlock() const;
  std::vector<size_t> deadlock(size_t with) const;
  // "A.f waits for B.g, which waits for A.f".
  std::string describe(const std::vector<size_t>& circle) const;
  // One line a node, below what waits for it.
  struct Line {
    size_t depth = 0;
    size_t node = 0;
    bool again = false;  // Told above.
    size_t others = 0;   // Rather than a node: so many more that are not shown.
  };
  std::vector<Line> lines() const;
  std::string text() const;

 private:
  using Key = std::tuple<std::string, RawId, ProcessId>;
  std::vector<size_t> deadlock_of(std::vector<bool> knot, size_t with) const;
  std::vector<bool> reachable(const std::vector<bool>& within, size_t from, bool backwards) const;
  std::vector<size_t> circle_through(const std::vector<bool>& within, size_t start) const;
  void put_lines(size_t node, size_t depth, std::vector<bool>& shown, std::vector<Line>& out) const;

  std::vector<Node> nodes_;
  std::map<Key, size_t> places_;
  size_t roots_ = 1;
  bool is_cut_ = false;
};

// Whether each node of the circle was told to wait for the same, without a break, when it was asked
// once more: only then all of it held at one moment.
bool is_unbroken(const WaitGraph& before, const std::vector<size_t>& circle,
                 const WaitGraph& after);

// "12.3 s".
std::string seconds_text(uint64_t us);

}  // namespace troupe::client
