// What the cluster has promised, as its users and its workers were told, and whether it holds.
#pragma once

#include <map>
#include <set>
#include <string>
#include <vector>

#include "tests/sim/sim_cluster.h"

namespace troupe::sim {

//  - The incarnation of an actor never goes back, one incarnation lives in one process, is asked of
//    one node, and who is dead stays dead.
//  - An actor, job or placement group whose making was acknowledged is known, whose end was
//    acknowledged has ended, and an actor with restarts left lives, once the cluster has settled.
//  - What a job has made ends with it.
//  - Of several heads none leads without what was acknowledged until then.
class Promises {
 public:
  Promises(Simulation& simulation, SimCluster& cluster);

  // Acknowledged, by who asked for it.
  void actor_created(const protocol::ActorSpec& spec);
  void job_begun(JobId job);
  void job_ended(JobId job);
  void group_created(const protocol::PlacementGroupSpec& spec);
  // Asked for; acknowledged: `done`.
  void kill(ActorId actor, bool done);
  void remove(PlacementGroupId group, bool done);
  // It fails by itself, or is in something that was ended: it may be dead.
  void excuse(ActorId actor);
  // The driver is gone; its job ends by itself.
  void driver_gone(JobId job);

  // Compares with what the cluster said last (SimCluster::seen): what does not hold. Some of it
  // takes a while, as the end of a job whose driver is gone.
  std::vector<std::string> broken();

  size_t actors() const { return actors_.size(); }

 private:
  struct Made {
    protocol::ActorSpec spec;
    bool excused = false;
    bool killed = false;
  };
  struct Told {
    uint32_t incarnation = 0;
    bool dead = false;
    std::map<uint32_t, ProcessId> processes;  // Of each incarnation.
    std::map<uint32_t, NodeId> nodes;
  };
  struct Job {
    bool ended = false;   // Acknowledged.
    bool absent = false;  // Nobody is left to end it.
  };
  struct Group {
    protocol::PlacementGroupSpec spec;
    bool removing = false;
    bool removed = false;
  };
  struct Question {
    uint64_t connection;
    std::string asker;
    uint64_t call;
    auto operator<=>(const Question&) const = default;
  };

  void see(const SentFrame& sent);
  void head_leads(SimHead& head);
  void told(const protocol::ActorInfo& info);
  void asked_of_worker(const protocol::StartActor& start, const SentFrame& sent);
  void problem(std::string what) { problems_.push_back(std::move(what)); }
  void violation(std::string what) { cluster_.checks().violation(std::move(what)); }
  void check_actors();
  void check_jobs();
  void check_groups();
  bool has_ended(JobId job) const;

  Simulation& simulation_;
  SimCluster& cluster_;
  std::map<Question, protocol::Method> asked_;
  std::map<ActorId, Made> made_;
  std::map<ActorId, Told> actors_;
  std::map<JobId, Job> jobs_;
  std::map<PlacementGroupId, Group> groups_;
  std::vector<std::string> problems_;
};

}  // namespace troupe::sim
