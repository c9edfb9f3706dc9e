// `troupe`: the command line and the daemons of a cluster.
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <signal.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <map>

#include "scheduler/policy.h"
#include "troupe/commands.h"
#include "troupe/version.h"

namespace {

using namespace troupe::tools;

constexpr int usage_error = 2;

void add_state(CLI::App& command, CommonOptions& common) {
  command.add_option("--state", common.state,
                     "State directory (default: TROUPE_STATE or ~/.troupe)");
}

void add_output(CLI::App& command, CommonOptions& common) {
  const std::map<std::string, Format> formats{
      {"table", Format::table}, {"json", Format::json}, {"yaml", Format::yaml}};
  command.add_option("-o,--output", common.format, "Output: table, json or yaml")
      ->transform(CLI::CheckedTransformer(formats));
}

void add_common(CLI::App& command, CommonOptions& common) {
  add_state(command, common);
  add_output(command, common);
}

}  // namespace

int main(int argc, char** argv) {
  // A file that may not grow further (ulimit -f) is an error, which is reported, like a full disk.
  ::signal(SIGXFSZ, SIG_IGN);
  CLI::App app{"Troupe: a distributed actor runtime"};
  app.require_subcommand(1);
  CommonOptions common;
  int status = 0;

  UpOptions up;
  auto* up_command = app.add_subcommand("up", "Start a cluster on this machine");
  add_common(*up_command, common);
  up_command
      ->add_option(
          "--heads", up.heads,
          "Number of heads: one leads, the others have all that it promises and take over; "
          "more than one need etcd (Debian: etcd-server)")
      ->check(CLI::Range(1, 7));
  up_command->add_option("--workers", up.workers, "Number of workers")->check(CLI::Range(0, 64));
  up_command->add_option("--cpus", up.cpus, "Cores a worker (default: shared out evenly)");
  up_command->add_option("--gpus", up.gpus, "GPUs a worker (default: shared out evenly)");
  up_command->add_option("--store-mib", up.store_mib, "Object store a worker, in MiB");
  up_command->add_option("--spill-dir", up.spill_dir,
                         "Folder for objects that a full store spills (default: below the state "
                         "directory)");
  up_command->add_option(
      "--log-mib", up.log_mib,
      "Logs of ended processes that a worker keeps, at most; the newest few stay "
      "in any case (default: 256)");
  up_command->add_option("--spill-mib", up.spill_mib,
                         "Spilled objects a worker, in MiB, at most; 0: none (default: four times "
                         "--store-mib)");
  up_command->add_option("--package-mib", up.package_mib,
                         "Jobs' modules and working directories a worker keeps, in MiB");
  up_command->add_option("--checkpoint-mib", up.checkpoint_mib,
                         "The largest state of an actor that the head keeps, in MiB");
  up_command
      ->add_option("--head-lease", up.head_lease_s,
                   "Of several heads: seconds that the lead lasts without a word from who has it; "
                   "less is a faster failover after silence, and a sooner one of a head that was "
                   "only slow (default: 2)")
      ->check(CLI::Range(1, 60));
  up_command
      ->add_option("--resource", up.resources,
                   "NAME=AMOUNT of a resource of your own, for each worker; "
                   "worker-N:NAME=AMOUNT for one. May be repeated")
      ->allow_extra_args(false);
  up_command
      ->add_option("--label", up.labels,
                   "KEY=VALUE, a label of each worker; worker-N:KEY=VALUE for one. May be "
                   "repeated")
      ->allow_extra_args(false);
  up_command
      ->add_option("--gateway-port", up.gateway_port, "HTTP port on loopback; 0: any; -1: none")
      ->check(CLI::Range(-1, 65535));
  up_command->add_option("--gateway-https", up.https,
                         "HOST:PORT for HTTPS, e.g. 0.0.0.0:8443 for other machines");
  up_command
      ->add_option(
          "--memory-high", up.memory_high,
          "The part of the machine's memory beyond which workers end processes, those that can be "
          "started again first; 0: never (the kernel ends some)")
      ->check(CLI::Range(0.0, 1.0));
  up_command->add_flag("!--no-keeper", up.keeper,
                       "Do not start again what dies: something else does (systemd, say)");
  up_command->callback([&] { status = run_up(common, up); });

  auto* down_command = app.add_subcommand("down", "Stop the cluster; its state stays");
  add_common(*down_command, common);
  down_command->callback([&] { status = run_down(common); });

  auto* status_command = app.add_subcommand("status", "The cluster at a glance");
  add_common(*status_command, common);
  status_command->callback([&] { status = run_status(common); });

  std::string kind;
  auto* list_command = app.add_subcommand("list", "List nodes, actors, jobs and more");
  add_common(*list_command, common);
  list_command->add_option("kind", kind)
      ->required()
      ->check(CLI::IsMember({"nodes", "actors", "jobs", "deployments", "placement-groups"}));
  list_command->callback([&] { status = run_list(common, kind); });

  std::string id;
  auto* describe_command = app.add_subcommand("describe", "All about one thing, by id or name");
  add_common(*describe_command, common);
  describe_command->add_option("id", id)->required();
  describe_command->callback([&] { status = run_describe(common, id); });

  DrainOptions drain;
  auto* drain_command = app.add_subcommand(
      "drain", "Take a node out of use: its actors move, its tasks end, nothing new goes there");
  add_common(*drain_command, common);
  drain_command->add_option("node", id, "Its id or name")->required();
  drain_command->add_flag("--undo", drain.undo, "Use it again");
  drain_command->add_option("--timeout", drain.timeout_s,
                            "Seconds to wait until nothing runs there; 0: do not wait");
  drain_command->callback([&] { status = run_drain(common, id, drain); });

  auto* why_command = app.add_subcommand(
      "why",
      "Why something waits: an object, call, task, actor, lease, placement group, node, job or "
      "process, by id or name");
  add_common(*why_command, common);
  why_command->add_option("id", id)->required();
  why_command->callback([&] { status = run_why(common, id); });

  ObjectsOptions objects;
  auto* objects_command = app.add_subcommand("objects", "Who holds which objects, and why");
  add_common(*objects_command, common);
  objects_command->add_option("--job", objects.job, "Only this job's: its id");
  objects_command->add_option("--limit", objects.limit, "The largest only; 0: all");
  objects_command->callback([&] { status = run_objects(common, objects); });

  TimelineOptions timeline;
  auto* timeline_command = app.add_subcommand(
      "timeline", "What happened when, as a trace for ui.perfetto.dev or chrome://tracing");
  add_state(*timeline_command, common);
  timeline_command->add_option("-o,--output", timeline.file,
                               "The file (default: troupe-timeline.json); -: standard output");
  timeline_command->add_option("--job", timeline.job, "Only this job's processes: its id");
  timeline_command->callback([&] { status = run_timeline(common, timeline); });

  SimOptions sim;
  auto* sim_command = app.add_subcommand("sim", "What a scheduling policy does with recorded jobs");
  sim_command->require_subcommand(1);
  auto* sim_run = sim_command->add_subcommand(
      "run", "Replay a trace, and say how long its jobs take: one row a policy");
  add_output(*sim_run, common);
  sim_run
      ->add_option("--trace", sim.trace,
                   "CSV: submit_s,duration_s,num_gpus[,id,vc,user,priority,cpu_milli,memory_mib], "
                   "or Alibaba's cluster-trace-gpu-v2023")
      ->required();
  sim_run->add_option("--nodes", sim.nodes, "Nodes of the cluster (default: 64)")
      ->check(CLI::Range(1, 100'000));
  sim_run->add_option("--gpus", sim.gpus, "GPUs of each node (default: 8)")
      ->check(CLI::Range(0, 1024));
  sim_run
      ->add_option(
          "--policy", sim.policies,
          fmt::format("{}; several in turn", fmt::join(troupe::scheduler::policy_names, ", ")))
      ->required();
  sim_run
      ->add_option("--restart-cost", sim.restart_cost_s,
                   "Seconds that a job which was preempted takes to go on (default: 30)")
      ->check(CLI::Range(0.0, 1e6));
  sim_run->add_flag("--blind", sim.blind, "Do not tell policies what each job will run");
  sim_run->callback([&] { status = run_sim(common, sim); });

  bool follow = false;
  auto* logs_command = app.add_subcommand("logs", "The output of an actor, a node or a daemon");
  add_common(*logs_command, common);
  logs_command->add_option("id", id, "Id or name")->required();
  logs_command->add_flag("-f,--follow", follow, "Go on as it grows");
  logs_command->callback([&] { status = run_logs(common, id, follow); });

  SubmitOptions submit;
  auto* submit_command = app.add_subcommand(
      "submit", "Run a command, and its SDK programs, as a job: submit -- CMD ARGS");
  add_common(*submit_command, common);
  submit_command->add_option("--name", submit.name, "The job's name");
  submit_command->add_option("--namespace", submit.name_space,
                             "In which its programs and their processes give and look up names");
  submit_command
      ->add_option("--env", submit.variables,
                   "NAME=VALUE for the command and all processes of the job. May be repeated")
      ->allow_extra_args(false);
  submit_command->add_option("--working-dir", submit.working_dir,
                             "Directory that is sent to the nodes: there all processes of the job "
                             "start in it");
  submit_command->add_option("command", submit.command)->required();
  submit_command->callback([&] { status = run_submit(common, submit); });

  DeployOptions deploy;
  auto* deploy_command = app.add_subcommand("deploy", "Serve a model behind the gateway");
  add_common(*deploy_command, common);
  deploy_command->add_option("name", deploy.name, "The name that requests ask for")->required();
  deploy_command->add_option("--model", deploy.model, "Directory of the checkpoint")->required();
  deploy_command->add_option("--replicas", deploy.replicas)->check(CLI::Range(1, 1000));
  deploy_command->add_option("--plugin", deploy.plugin, "Plugin, by name or path");
  deploy_command->add_option("--class", deploy.class_name, "Actor class of the plugin");
  deploy_command->add_option("--config", deploy.config, "More settings: a JSON object");
  deploy_command->add_option("--cpus", deploy.cpus, "Cores a replica");
  deploy_command->add_option("--gpus", deploy.gpus, "GPUs a replica");
  deploy_command->add_option("--timeout", deploy.timeout_s, "Seconds to wait until it is ready");
  deploy_command->add_flag("!--no-wait", deploy.wait, "Return before it is ready");
  deploy_command->callback([&] { status = run_deploy(common, deploy); });

  std::string name;
  auto* undeploy_command = app.add_subcommand("undeploy", "Stop serving a model");
  add_common(*undeploy_command, common);
  undeploy_command->add_option("name", name)->required();
  undeploy_command->callback([&] { status = run_undeploy(common, name); });

  auto* report_command =
      app.add_subcommand("report", "Response time, throughput, utilisation, recovery");
  add_common(*report_command, common);
  report_command->add_option("name", name, "A deployment")->required();
  report_command->callback([&] { status = run_report(common, name); });

  BackupCommand backup;
  auto* backup_command = app.add_subcommand(
      "backup", "Add a backup of the head's durable state to a directory, while it runs");
  add_common(*backup_command, common);
  backup_command->add_option("directory", backup.directory, "New, or of earlier backups")
      ->required();
  auto* list_option =
      backup_command->add_flag("--list", backup.list, "Only show which backups it has");
  backup_command->add_option("--keep", backup.keep, "Remove all but the newest N backups")
      ->check(CLI::Range(1u, 1'000'000u))
      ->excludes(list_option);
  backup_command->callback([&] { status = run_backup(common, backup); });

  RestoreCommand restore;
  auto* restore_command = app.add_subcommand("restore", "Bring back a backup, where no head runs");
  add_common(*restore_command, common);
  restore_command->add_option("directory", restore.directory, "Of the backups")->required();
  restore_command->add_option("--number", restore.number, "Which (default: the newest)")
      ->check(CLI::Range(1u, 4'000'000'000u));
  restore_command->add_flag("--force", restore.force,
                            "Also where there is state; that is moved aside");
  restore_command->callback([&] { status = run_restore(common, restore); });

  DrillCommand drill;
  auto* drill_command = app.add_subcommand(
      "drill", "Make a fault in a throw-away cluster, and see whether it keeps its promises");
  add_output(*drill_command, common);
  drill_command->add_option("name", drill.name)
      ->required()
      ->check(
          CLI::IsMember({"head-kill", "worker-kill", "partition", "disk-full", "restore", "all"}));
  drill_command
      ->add_option("--rounds", drill.rounds,
                   "Faults, one after the other; the slowest counts (default: 3 kills, else 1)")
      ->check(CLI::Range(1, 1000));
  drill_command
      ->add_option("--detect-within", drill.detect_within_s,
                   "Seconds from the fault until the cluster says so (default: as documented)")
      ->check(CLI::PositiveNumber);
  drill_command
      ->add_option("--recover-within", drill.recover_within_s,
                   "Seconds until all is well again (default: as documented)")
      ->check(CLI::PositiveNumber);
  drill_command->callback([&] { status = run_drill(common, drill); });

  bool admin = false;
  auto* key_command = app.add_subcommand("key", "API keys of the gateway");
  auto* key_create = key_command->add_subcommand("create", "Make a key and show it once");
  key_command->require_subcommand(1);
  add_common(*key_create, common);
  key_create->add_option("name", name)->required();
  key_create->add_flag("--admin", admin, "May also read /metrics and the statistics of all models");
  key_create->callback([&] { status = run_key_create(common, name, admin); });

  auto* version_command = app.add_subcommand("version", "Print the version");
  add_common(*version_command, common);
  version_command->callback([&] {
    print(boost::json::object{{"version", troupe::version}}, common.format);
  });

  DaemonOptions daemon;
  const auto add_daemon = [&](const char* command_name, const char* text,
                              int (*run)(const CommonOptions&, const DaemonOptions&)) {
    auto* command = app.add_subcommand(command_name, text);
    command->group("Daemons");
    add_common(*command, common);
    command->add_option("--name", daemon.name);
    command->add_option("--host", daemon.host, "Address to listen on");
    command->add_option("--port", daemon.port, "Port; 0: any");
    command->add_option("--advertised-port", daemon.advertised_port,
                        "Port that other nodes reach this one at, where something forwards to it");
    command->add_option("--head", daemon.heads, "HOST:PORT of a head, of which one leads")
        ->allow_extra_args(false);
    command->add_option("--etcd", daemon.etcd, "HOST:PORT of a member of etcd, of several heads")
        ->allow_extra_args(false);
    command->add_flag("--first", daemon.is_first, "May lead a cluster that etcd does not know");
    command->add_option("--peer-port", daemon.peer_port, "Of etcd, for its other members");
    command->add_option("--node", daemon.node, "Id of the node");
    command->add_option("--worker-socket", daemon.worker_socket);
    command->add_option("--https", daemon.https, "HOST:PORT for HTTPS");
    command->add_option("--cpus", daemon.cpus);
    command->add_option("--gpus", daemon.gpus);
    command->add_option("--first-gpu", daemon.first_gpu, "The machine's number of the first");
    command->add_option("--memory-mib", daemon.memory_mib, "Memory of this worker");
    command->add_option("--memory-high", daemon.memory_high);
    command->add_option("--store-mib", daemon.store_mib);
    command->add_option("--spill-dir", daemon.spill_dir, "Folder for spilled objects");
    command->add_option("--log-mib", daemon.log_mib, "How much of ended processes' logs is kept");
    command->add_option("--spill-mib", daemon.spill_mib, "How much is spilled; 0: nothing");
    command->add_option("--package-mib", daemon.package_mib, "How much of jobs' files is kept");
    command->add_option("--checkpoint-mib", daemon.checkpoint_mib, "The largest checkpoint");
    command->add_option("--lease", daemon.lease_s, "Seconds that a head's lead lasts")
        ->check(CLI::Range(1, 60));
    command->add_option("--resource", daemon.resources, "NAME=AMOUNT of a resource of your own")
        ->allow_extra_args(false);
    command->add_option("--label", daemon.labels, "KEY=VALUE")->allow_extra_args(false);
    command->callback([&, command, run] {
      if (command->get_subcommands().empty()) status = run(common, daemon);
    });
    return command;
  };
  add_daemon("etcd", "Where several heads agree on which of them leads", &run_etcd);
  auto* head_command = add_daemon("head", "The head", &run_head);
  auto* transfer_command = head_command->add_subcommand(
      "transfer", "Hand the lead over to another head, which has everything");
  add_common(*transfer_command, common);
  transfer_command->add_option("to", name, "Its name (default: any)");
  transfer_command->callback([&] { status = run_transfer(common, name); });
  add_daemon("worker", "A worker", &run_worker);
  add_daemon("gateway", "The gateway", &run_gateway);
  add_daemon("keeper", "Starts again what dies of a cluster on this machine", &run_keeper);

  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& caught) {
    return app.exit(caught) == 0 ? 0 : usage_error;
  }
  return status;
}
