#include "actor/instance.h"

#include <fmt/format.h>

#include <boost/asio/post.hpp>
#include <boost/container/small_vector.hpp>
#include <cstddef>
#include <filesystem>

#include "actor/host_table.h"
#include "base/log.h"

namespace troupe::actor {

namespace {

constexpr uint32_t coroutines_default = 1000;
constexpr uint32_t threads_max = 1024;  // Of one actor.
constexpr size_t calls_a_turn = 64;
constexpr std::string_view checkpoint_method = TROUPE_CHECKPOINT_METHOD;
constexpr size_t service_times_max = 1024;  // Methods.

using Views = boost::container::small_vector<troupe_bytes, 8>;

Views views_of(const std::vector<client::ObjectBytes>& arguments) {
  Views views;
  views.reserve(arguments.size());
  for (const auto& argument : arguments) {
    views.push_back({argument.bytes.data(), argument.bytes.size()});
  }
  return views;
}

}  // namespace

Instance::Instance(transport::Environment environment, Services& services, InstanceSpec spec,
                   InstanceOptions options)
    : environment_(environment),
      options_(options),
      type_(spec.type),
      signature_(spec.signature),
      arguments_(std::move(spec.arguments)),
      context_(new troupe_context{std::move(spec.identity), services}),
      doorbell_(std::make_shared<Doorbell>(environment.loop)),
      lanes_found_(find_lanes(spec)),
      checkpoints_(std::move(spec.checkpoints)),
      takes_checkpoints_(can_checkpoint().has_value()),
      mailbox_(spec.mailbox_calls_max != 0 ? spec.mailbox_calls_max : options.mailbox_calls_max,
               environment.rings, mailbox_lanes(),
               crew_ != nullptr ? std::function<void()>{[this] { crew_->ready(*this); }}
                                : std::function<void()>{}),
      created_(environment.loop),
      ended_(environment.loop) {
  context_->set_defer([this](std::function<void()> work) { return defer(std::move(work)); });
  context_->set_checkpoint_soon([this] { return wish_checkpoint(); });
  if (defers()) {
    calls_.on_finish([this](const Call& call) {
      --lanes_[call.request().lane].open;
      mailbox_.admit();
    });
  }
}

Status Instance::find_lanes(const InstanceSpec& spec) {
  Status found_all;
  Lane& first = lanes_.emplace_back();
  first.limit = spec.concurrency != 0 ? spec.concurrency : defers() ? coroutines_default : 1;
  size_t count = 0;
  const bool has_groups = has(offsetof(troupe_actor_class, groups)) && type_->groups != nullptr;
  const troupe_method_group* groups = has_groups ? type_->groups(&count) : nullptr;
  for (size_t i = 0; i < count; ++i) {
    const auto number = static_cast<uint32_t>(lanes_.size());
    Lane& lane = lanes_.emplace_back();
    lane.name = groups[i].name;
    lane.limit = std::max<uint32_t>(groups[i].limit, 1);
    for (size_t m = 0; m < groups[i].method_count; ++m) lane_of_[groups[i].methods[m]] = number;
  }
  for (const ConcurrencyGroup& wanted : spec.groups) {
    const auto found = std::ranges::find(lanes_, wanted.name, &Lane::name);
    if (wanted.name.empty() || found == lanes_.end() || wanted.limit == 0) {
      found_all = error(Code::invalid,
                        fmt::format("the class {} has no concurrency group \"{}\" that could have "
                                    "a limit of {}",
                                    type_->name, wanted.name, wanted.limit));
    } else {
      found->limit = wanted.limit;
    }
  }
  uint64_t threads = 0;
  for (const Lane& lane : lanes_) threads += lane.limit;
  if (!defers() && threads > threads_max) {
    found_all = error(Code::invalid, fmt::format("{} threads for one actor, at most {} are "
                                                 "allowed: lower its max_concurrency",
                                                 threads, threads_max));
  }
  const bool one_thread = defers() || threads == 1;
  if (one_thread && type_->step == nullptr) crew_ = spec.crew;
  return found_all;
}

std::vector<Mailbox::Lane> Instance::mailbox_lanes() {
  std::vector<Mailbox::Lane> lanes;
  for (Lane& lane : lanes_) {
    if (defers()) {
      lanes.push_back({[&lane] { return lane.open.load() < lane.limit; }, 0});
    } else {
      lanes.push_back({{}, lanes.size()});
    }
  }
  return lanes;
}

uint32_t Instance::type_flags() const {
  // A module of an older ABI has a shorter table.
  const bool has_flags = type_->size >= offsetof(troupe_actor_class, flags) + sizeof type_->flags;
  return has_flags ? type_->flags : 0;
}

Instance::~Instance() {
  TROUPE_ASSERT((!thread_.joinable() && crew_ == nullptr) || ended_.is_set() || !started_,
                "an instance is destroyed before its end");
  context_->set_defer({});
  context_->set_checkpoint_soon({});
  if (thread_.joinable()) thread_.join();
}

Async<Status> Instance::start() {
  if (!lanes_found_) co_return lanes_found_;
  if (checkpoints_.is_regular && !takes_checkpoints_) {
    co_return error(Code::invalid, can_checkpoint().error().message());
  }
  started_ = true;
  if (crew_ != nullptr) {
    crew_->ready(*this);
  } else {
    thread_ = std::thread([this] { run(); });
  }
  co_await created_.wait();
  co_return create_outcome_;
}

std::shared_ptr<Call> Instance::make_call(CallRequest request,
                                          std::shared_ptr<transport::CancelEvent> abandoned,
                                          ObjectId result) {
  return std::make_shared<Call>(std::move(request), std::move(abandoned), doorbell_, result);
}

std::vector<std::shared_ptr<Call>> Instance::withdraw(const transport::CallChannel& channel) {
  std::vector<std::shared_ptr<Call>> withdrawn;
  mailbox_.for_each([&](const std::shared_ptr<Call>& call) {
    if (call->origin().channel.get() == &channel && call->withdraw()) withdrawn.push_back(call);
  });
  return withdrawn;
}

uint32_t Instance::choose_lane(Call& call) const {
  uint32_t lane = 0;
  if (!lane_of_.empty()) {
    if (const auto found = lane_of_.find(call.request().method); found != lane_of_.end()) {
      lane = found->second;
    }
  }
  call.request().lane = lane;
  return lane;
}

Status Instance::submit(std::shared_ptr<Call> call) {
  const uint32_t lane = choose_lane(*call);
  return mailbox_.put(std::move(call), lane);
}

Status Instance::submit_own(std::shared_ptr<Call> call) {
  const uint32_t lane = choose_lane(*call);
  return mailbox_.put_beyond_limit(std::move(call), lane);
}

void Instance::request_stop(bool save) {
  if (save) saves_at_end_ = true;
  context_->stopping.request_stop();
  mailbox_.close();
}

Async<bool> Instance::wait_ended(Instant deadline) {
  co_return co_await wait_until(environment_.clock, deadline, ended_);
}

bool Instance::take_some(size_t calls, size_t lane) noexcept {
  bool worked = false;
  for (size_t i = 0; i < calls && !stop_requested(); ++i) {
    if (const auto work = lane == 0 ? mailbox_.take_deferred() : nullptr) {
      work();
    } else if (auto call = mailbox_.take(lane)) {
      deliver(std::move(call));
    } else {
      break;
    }
    worked = true;
  }
  return worked;
}

void Instance::help(size_t lane) noexcept {
  const CurrentContext current{context_.get()};
  while (!stop_requested()) {
    mailbox_.wait(lane);
    take_some(options_.calls_a_step, lane);
  }
}

bool Instance::defer(std::function<void()> work) {
  return mailbox_.defer(std::move(work));
}

void Instance::tell_created(Status created) {
  boost::asio::post(environment_.loop, [this, outcome = std::move(created)]() mutable {
    create_outcome_ = std::move(outcome);
    created_.set();
  });
}

void Instance::run() noexcept {
  const CurrentContext current{context_.get()};
  Status created = create();
  const bool alive = created.has_value();
  tell_created(std::move(created));
  std::optional<Error> death;
  bool more = false;  // A step said so.
  if (alive && !defers() && type_->step == nullptr) {
    for (size_t lane = 0; lane < lanes_.size(); ++lane) {
      for (uint32_t i = lane == 0 ? 1 : 0; i < lanes_[lane].limit; ++i) {
        helpers_.emplace_back([this, lane] { help(lane); });
      }
    }
  }
  while (alive && !stop_requested() && !death) {
    if (!more) mailbox_.wait();
    const bool worked = take_some(options_.calls_a_step);
    if (type_->step == nullptr || !(worked || more) || stop_requested()) continue;
    auto outcome = step();
    if (outcome) {
      more = *outcome;
    } else {
      death = outcome.error();
    }
  }
  for (std::thread& helper : helpers_) helper.join();
  if (alive && !death) save_at_end();
  if (alive) destroy();
  finish(death);
}

Crew::Member::After Instance::turn() noexcept {
  {
    const CurrentContext current{context_.get()};
    if (std::exchange(fresh_, false)) {
      Status created = create();
      const bool alive = created.has_value();
      tell_created(std::move(created));
      if (!alive) {
        finish(std::nullopt);
        return After::gone;
      }
    }
    take_some(calls_a_turn);
    if (!stop_requested()) return mailbox_.has_something() ? After::again : After::idle;
    save_at_end();
    destroy();
  }
  finish(std::nullopt);
  return After::gone;
}

void Instance::destroy() noexcept {
  if (has(offsetof(troupe_actor_class, exiting)) && type_->exiting != nullptr) {
    type_->exiting(instance_);
  }
  type_->destroy(instance_);
}

Status Instance::create() noexcept {
  const auto views = views_of(arguments_);
  TextRoom room;
  const int32_t code = type_->create(context_.get(), signature_, views.data(), views.size(),
                                     &instance_, room.text());
  arguments_.clear();
  if (code != TROUPE_OK) {
    return error(code_from_number(static_cast<uint32_t>(code)), room.read("create failed"));
  }
  Status restored = restore();
  if (!restored) type_->destroy(instance_);
  return restored;
}

// --- Checkpoints

Status Instance::can_checkpoint() const {
  const auto no = [&](std::string_view why) {
    return error(Code::unimplemented,
                 fmt::format("the class {} cannot be checkpointed: {}", type_->name, why));
  };
  if (type_->checkpoint == nullptr || type_->restore == nullptr) {
    return no("it has no save and load");
  }
  if (defers()) return no("its methods are coroutines, of which some may be under way at any time");
  if (lanes_.size() > 1 || lanes_.front().limit > 1) {
    return no("its methods run on several threads");
  }
  if (checkpoints_.folder.empty()) return no("its node keeps no checkpoints");
  return ok();
}

Status Instance::restore() noexcept {
  if (checkpoints_.restore_from.empty()) return ok();
  const auto failed = [&](std::string_view why) {
    return error(Code::data_loss,
                 fmt::format("restore from checkpoint {}: {}", checkpoints_.number, why));
  };
  if (type_->restore == nullptr) {
    return failed(fmt::format("the class {} has no load any more", type_->name));
  }
  TextRoom room;
  const int32_t code = type_->restore(instance_, checkpoints_.restore_from.c_str(), room.text());
  if (code != TROUPE_OK) return failed(room.read("it failed"));
  log::info("actor_restored",
            {{"actor", context_->info.actor_id}, {"checkpoint", checkpoints_.number}});
  return ok();
}

int32_t Instance::wish_checkpoint() {
  if (!takes_checkpoints_) return TROUPE_UNIMPLEMENTED;
  if (!wished_.exchange(true)) checkpoints_.wished();
  return TROUPE_OK;
}

Result<std::string> Instance::write_state() noexcept {
  namespace fs = std::filesystem;
  const std::string path =
      fmt::format("{}/{}-{}", checkpoints_.folder, context_->info.actor_id, ++states_written_);
  std::error_code refused;
  fs::create_directories(path, refused);
  if (refused) {
    return error(refused == std::errc::no_space_on_device ? Code::exhausted : Code::internal,
                 fmt::format("make {}: {}", path, refused.message()));
  }
  TextRoom room;
  const int32_t code = type_->checkpoint(instance_, path.c_str(), room.text());
  if (code == TROUPE_OK) return path;
  fs::remove_all(path, refused);
  return error(code_from_number(static_cast<uint32_t>(code)),
               "save failed: " + room.read("it did not say why"));
}

void Instance::checkpoint(const std::shared_ptr<Call>& call) noexcept {
  wished_ = false;
  if (!takes_checkpoints_) {
    call->finish(can_checkpoint().error());
    return;
  }
  changed_ = false;
  troupe_call* const handle = calls_.open(call);
  auto path = write_state();
  if (!path) {
    changed_ = true;
    calls_.finish(handle, std::move(path).error());
    return;
  }
  checkpoints_.saved(std::move(*path), [this, handle, call](Result<Bytes> outcome) {
    if (!outcome) changed_ = true;
    // Those that were open when the instance ended have failed already.
    if (!call->is_finished()) calls_.finish(handle, std::move(outcome));
  });
}

void Instance::save_at_end() noexcept {
  if (!saves_at_end_ || !takes_checkpoints_ || !changed_) return;
  const auto failed = [actor = context_->info.actor_id](const Error& why) {
    log::warning("last_checkpoint_failed", {{"actor", actor}, {"why", why}});
  };
  auto path = write_state();
  if (!path) return failed(path.error());
  checkpoints_.saved(std::move(*path), [failed](const Result<Bytes>& outcome) {
    if (!outcome) failed(outcome.error());
  });
}

void Instance::deliver(std::shared_ptr<Call> call) noexcept {
  if (call->is_cancelled()) {
    call->finish(error(Code::cancelled, "the caller gave up before the call was run"));
    return;
  }
  const Instant now = environment_.clock.now();
  if (now >= call->request().deadline) {
    call->finish(error(Code::deadline_exceeded,
                       "the call waited in the mailbox past its deadline; "
                       "it was not run"));
    return;
  }
  const CallRequest& request = call->request();
  const bool has_deadline = request.deadline != Instant::max();
  if (has_deadline && is_late(request, now)) {
    call->finish(error(Code::deadline_exceeded,
                       "the call waited in the mailbox for most of its time, and the rest is less "
                       "than the method takes; it was not run"));
    return;
  }
  if (!call->begin(now)) return;
  if (request.method == checkpoint_method) return checkpoint(call);
  if (takes_checkpoints_) {
    has_work_ = true;
    if (!changed_.load(std::memory_order_relaxed)) changed_ = true;
  }
  if (defers()) ++lanes_[request.lane].open;
  const auto views = views_of(request.arguments);
  troupe_call* const handle = calls_.open(call);
  type_->call(instance_, handle, request.method.c_str(), request.signature, views.data(),
              views.size());
  // Valid during the call alone; a call that is kept must not keep the store's memory.
  call->request().arguments.clear();
  if (has_deadline && !defers()) note_run(request.method, environment_.clock.now() - now);
}

bool Instance::is_late(const CallRequest& request, Instant now) {
  if (!mailbox_.has_something(request.lane)) return false;
  const std::lock_guard lock{service_times_mutex_};
  const auto known = service_times_.find(request.method);
  return known != service_times_.end() &&
         known->second.is_late(now - request.arrived, request.deadline - now);
}

void Instance::note_run(const std::string& method, Duration took) {
  const std::lock_guard lock{service_times_mutex_};
  // Names come from callers, known or not.
  if (service_times_.size() >= service_times_max && !service_times_.contains(method)) return;
  service_times_[method].note(took);
}

Result<bool> Instance::step() noexcept {
  if (takes_checkpoints_ && has_work_) changed_ = true;
  const troupe_step_budget budget{
      sizeof(troupe_step_budget),
      static_cast<uint64_t>(options_.step_budget / std::chrono::microseconds(1))};
  TextRoom room;
  const int32_t outcome = type_->step(instance_, &budget, room.text());
  has_work_ = outcome != TROUPE_STEP_IDLE;
  if (outcome >= 0) return has_work_;
  return error(code_from_number(static_cast<uint32_t>(-int64_t{outcome})),
               room.read("step failed"));
}

void Instance::finish(const std::optional<Error>& death) noexcept {
  context_->stopping.request_stop();
  mailbox_.close();
  // Those that the instance kept may have had their effect; those in the mailbox never ran.
  const Error unfinished =
      death ? error(Code::outcome_unknown, "the actor died: " + death->message())
            : error(Code::cancelled, "the actor stopped before it finished the call");
  const size_t kept = calls_.fail_all(unfinished);
  size_t waiting = 0;
  while (auto call = mailbox_.take_any()) {
    call->finish(error(Code::unavailable, "the actor stopped; the call was not run"));
    ++waiting;
  }
  if (kept + waiting > 0) {
    log::info("calls_failed_at_end",
              {{"actor", context_->info.actor_id}, {"unfinished", kept}, {"not_run", waiting}});
  }
  // The loop may destroy this instance before post() returns.
  const Executor loop = environment_.loop;
  boost::asio::post(loop, [this, death] {
    death_ = death;
    ended_.set();
  });
}

}  // namespace troupe::actor
