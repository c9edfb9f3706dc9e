// An actor process for tests: obeys the class name that it is assigned.
#include <sys/mman.h>
#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "actor/fork_server.h"
#include "transport/asio_network.h"
#include "transport/real_environment.h"
#include "transport/router.h"

namespace troupe {
namespace {

using namespace transport;
using namespace std::chrono_literals;

class TestActor {
 public:
  TestActor() {
    router_.on(Method::assign_actor, *this, &TestActor::assign_actor);
    router_.on(Method::assign_slot, *this, &TestActor::assign_slot);
    router_.on(Method::stop_process, *this, &TestActor::stop_process);
    router_.on(Method::stay_until, *this, &TestActor::stay_until);
    router_.on(Method::end_actors, *this, &TestActor::end_actors);
    router_.on_stream(Method::assign_actors,
                      [this](Message message, CallContext, OutgoingStream& out) {
                        return assign_actors(std::move(message), out);
                      });
  }

  void run() {
    spawn(scope_, serve());
    real_.io().run();
  }

 private:
  Async<void> serve() {
    protocol::Hello self;
    self.kind = "actor";
    self.address.process = ProcessId::parse(::getenv("TROUPE_PROCESS_ID")).value();
    self.pid = static_cast<uint32_t>(::getpid());
    address_ = self.address;
    auto connection = adopt_unix_socket(scope_, real_.io(), FileDescriptor{3});
    auto peer = co_await Peer::start(scope_, real_.environment(), std::move(connection), router_,
                                     self, real_.environment().clock.now() + 10s);
    if (!peer) std::_Exit(9);
    peer_ = *peer;
    co_await (*peer)->closed().wait();
    std::_Exit(0);
  }

  Async<Result<protocol::ProcessStarted>> assign_actor(protocol::AssignActor request, CallContext) {
    const std::string& what = request.spec.class_name;
    std::printf("assigned %s, devices [%s], extra [%s]\n", what.c_str(),
                ::getenv("CUDA_VISIBLE_DEVICES"), ::getenv("EXTRA") ? ::getenv("EXTRA") : "");
    if (what == "around") look_around();
    if (what == "restore") look_at_checkpoint(request);
    std::fflush(stdout);
    if (what == "exit") std::_Exit(3);
    if (request.spec.isolation_limit_us != 0 && until_ == Instant{}) std::_Exit(8);
    if (what == "save") spawn(scope_, save(std::move(request)));
    if (what == "gauges") spawn(scope_, report(request.spec.actor, request.incarnation));
    if (what == "fail") co_return error(Code::not_found, "no class of this name");
    if (what == "hang") co_await sleep_for(real_.environment().clock, 1h);
    if (what == "stubborn") {
      stubborn_ = true;
      std::signal(SIGTERM, SIG_IGN);
    }
    co_return protocol::ProcessStarted{address_, 0};
  }
  Async<Result<protocol::Empty>> stay_until(protocol::StayUntil request, CallContext) {
    const bool is_first = until_ == Instant{};
    until_ = Instant{Duration{request.monotonic_ns}};
    if (is_first) spawn(scope_, end_when_isolated());
    co_return protocol::Empty{};
  }
  Async<void> end_when_isolated() {
    while (real_.environment().clock.now() < until_) {
      co_await sleep_until(real_.environment().clock, until_);
    }
    std::_Exit(7);
  }
  static void look_around() {
    const auto value = [](const char* name) { return ::getenv(name) ? ::getenv(name) : ""; };
    char folder[4096] = "";
    std::printf("A=%s\nnamespace=%s\nmodule=%s\nmodule file=%s\nfolder=%s\nlast", value("A"),
                value("TROUPE_NAMESPACE"), value("TROUPE_MODULE"), value("TROUPE_MODULE_FILE"),
                ::getcwd(folder, sizeof folder));
  }
  static void look_at_checkpoint(const protocol::AssignActor& request) {
    std::string state;
    std::ifstream{request.restore_from + "/state"} >> state;
    std::filesystem::create_directories(request.checkpoint_folder + "/1");
    std::printf("number=%d\nstate=%s\nstates=%s\nlast", static_cast<int>(request.checkpoint.number),
                state.c_str(), request.checkpoint_folder.c_str());
  }
  // A file of five bytes, whose hash the test gave.
  Async<void> save(protocol::AssignActor request) {
    const FileDescriptor file{::memfd_create("state", MFD_CLOEXEC)};
    if (::write(file.get(), "state", 5) != 5) std::_Exit(9);
    protocol::StoreCheckpoint state;
    state.actor = request.spec.actor;
    state.incarnation = request.incarnation;
    state.hash = ::getenv("EXTRA");
    Message message{protocol::encode(state), {}};
    message.descriptors.emplace_back(::dup(file.get()));
    auto stored = co_await peer_->call(Method::store_checkpoint, std::move(message), 20s);
    std::printf("stored=%s\nlast", stored ? "yes" : stored.error().to_string().c_str());
    std::fflush(stdout);
  }
  Async<void> report(ActorId actor, uint32_t incarnation) {
    for (;;) {  // Refused until the worker has this process's answer.
      protocol::ActorGauges gauges{actor, incarnation, {{"depth", 2.5}}};
      auto taken = co_await call<protocol::Empty>(peer_, Method::report_gauges, gauges, 5s);
      if (taken) co_return;
      co_await sleep_for(real_.environment().clock, 1ms);
    }
  }
  Async<Result<protocol::ProcessStarted>> assign_slot(protocol::AssignSlot request, CallContext) {
    std::printf("slot of %s, devices [%s]\n", request.module.c_str(),
                ::getenv("CUDA_VISIBLE_DEVICES"));
    std::fflush(stdout);
    needed_ = request.module == "needed";
    if (request.module == "hang") co_await sleep_for(real_.environment().clock, 1h);
    if (request.module == "stubborn") {
      stubborn_ = true;
      std::signal(SIGTERM, SIG_IGN);
    }
    co_return protocol::ProcessStarted{address_, 0};
  }
  // An outcome at a time.
  Async<Status> assign_actors(Message message, OutgoingStream& out) {
    auto request = protocol::decode<protocol::AssignActors>(message.body);
    for (const auto& item : request->items) {
      const std::string& what = item.spec.class_name;
      if (what == "exit") std::_Exit(3);
      if (what == "silent") continue;
      if (what == "stubborn") stubborn_ = true;
      protocol::StartedActor outcome{item.spec.actor, item.incarnation, {address_, 0}, {}};
      if (what == "fail") outcome.error = protocol::to_info(error(Code::not_found, "no class"));
      protocol::ActorsStarted report;
      report.items.push_back(std::move(outcome));
      TROUPE_CO_CHECK(co_await out.send(protocol::encode(report)));
    }
    co_return ok();
  }
  Async<Result<protocol::Empty>> end_actors(protocol::EndActors, CallContext) {
    if (stubborn_) co_return error(Code::deadline_exceeded, "it does not end");
    co_return protocol::Empty{};
  }
  Async<Result<protocol::Empty>> stop_process(protocol::StopProcess request, CallContext) {
    if (request.if_unneeded && needed_) co_return error(Code::conflict, "it is needed");
    if (!stubborn_) std::_Exit(0);
    co_return protocol::Empty{};
  }

  RealEnvironment real_;
  Scope scope_{real_.io().get_executor()};
  Router router_;
  std::shared_ptr<Peer> peer_;
  protocol::ProcessAddress address_;
  bool stubborn_ = false;
  bool needed_ = false;
  Instant until_;
};

}  // namespace
}  // namespace troupe

int main(int argc, char** argv) {
  troupe::actor::serve_forks(argc, argv);
  troupe::TestActor actor;
  actor.run();
}
