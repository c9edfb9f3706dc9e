#include "actor/host_table.h"

#include <cstring>

#include "actor/call_table.h"
#include "base/log.h"

using namespace troupe;
using namespace troupe::actor;

troupe_context::troupe_context(Identity who, Services& cluster)
    : identity(std::move(who)),
      services(cluster),
      actor_text(identity.actor.is_nil() ? "" : identity.actor.to_string()),
      job_text(identity.job.to_string()),
      info{sizeof(troupe_actor_info), actor_text.c_str(),         job_text.c_str(),
           identity.name.c_str(),     identity.node_name.c_str(), identity.incarnation} {}

namespace {

BytesView view_of(troupe_bytes bytes) {
  return {bytes.data, bytes.size};
}

int32_t number(Code code) {
  return static_cast<int32_t>(code);
}

void put_text(troupe_text* out, std::string_view text) {
  if (out == nullptr || out->data == nullptr) return;
  out->size = std::min(out->capacity, text.size());
  std::memcpy(out->data, text.data(), out->size);
}

int32_t fail(const Error& error, troupe_text* message) {
  put_text(message, error.message());
  return number(error.code());
}

int32_t answer(const Status& outcome, troupe_text* message) {
  return outcome ? TROUPE_OK : fail(outcome.error(), message);
}

void host_log(troupe_context* context, int32_t level, const char* event, const char* fields) {
  const auto to = level <= TROUPE_LOG_DEBUG     ? log::Level::debug
                  : level == TROUPE_LOG_INFO    ? log::Level::info
                  : level == TROUPE_LOG_WARNING ? log::Level::warning
                                                : log::Level::error;
  const std::string_view name = event != nullptr ? event : "unnamed";
  const std::string_view who = context != nullptr ? context->info.actor_id : "";
  if (fields == nullptr || *fields == '\0') {
    log::write(to, name, {{"actor", who}});
  } else {
    log::write(to, name, {{"actor", who}, {"fields", fields}});
  }
}

void host_metric_set(troupe_context* context, const char* name, double value) {
  if (context == nullptr || name == nullptr) return;
  if (!context->gauges.set(name, value)) {
    log::warning("gauge_refused", {{"actor", context->info.actor_id},
                                   {"gauge", name},
                                   {"why", "its name is too long, or the actor has too many"}});
  }
}

const troupe_actor_info* host_actor_info(troupe_context* context) {
  return &context->info;
}

void host_call_reply(troupe_call* call, troupe_bytes value) {
  auto refs = client::take_result_refs();
  if (!refs.empty()) {
    if (const auto found = call->table->find(call)) found->held = std::move(refs);
  }
  call->table->finish_value(call, view_of(value));
}

void host_call_fail(troupe_call* call, int32_t code, const char* message) {
  // A failure that claims success is the module's bug, and a failure still.
  const Code what =
      code == TROUPE_OK ? Code::internal : code_from_number(static_cast<uint32_t>(code));
  call->table->finish(call, error(what, message != nullptr ? message : ""));
}

int32_t host_call_emit(troupe_call* call, troupe_bytes item) {
  auto refs = client::take_result_refs();
  const auto found = call->table->find(call);
  if (!found) {
    log::error("item_after_finish", {});
    return TROUPE_INVALID;
  }
  return number(found->emit(view_of(item), std::move(refs)));
}

int32_t host_call_cancelled(const troupe_call* call) {
  const auto found = call->table->find(call);
  return !found || found->should_stop() ? 1 : 0;
}

int32_t host_call_streams(const troupe_call* call) {
  const auto found = call->table->find(call);
  return found && found->request().streams ? 1 : 0;
}

void host_call_on_stop(troupe_call* call, StopHook::Run run, void* argument) {
  const auto hook = std::make_shared<const StopHook>(run, argument);
  if (const auto found = call->table->find(call)) found->on_stop(hook);
}

uint32_t host_call_results(const troupe_call* call) {
  const auto found = call->table->find(call);
  return found ? found->results() : 0;
}

int32_t host_call_reply_many(troupe_call* call, const troupe_bytes* values, size_t count) {
  auto refs = client::take_result_refs();
  const auto found = call->table->find(call);
  if (!found) return TROUPE_INVALID;
  const size_t wanted = std::max<uint32_t>(found->results(), 1);
  if (count != wanted || count == 0) {
    call->table->finish(call, error(Code::invalid, "it gave " + std::to_string(count) +
                                                       " results where its caller wants " +
                                                       std::to_string(wanted)));
    return TROUPE_INVALID;
  }
  found->held = std::move(refs);
  for (size_t i = 1; i < count; ++i) {
    found->more.emplace_back(values[i].data, values[i].data + values[i].size);
  }
  call->table->finish_value(call, view_of(values[0]));
  return TROUPE_OK;
}

int32_t host_call_on_room(troupe_call* call, size_t item_size, void (*run)(void*), void* argument) {
  const auto found = call->table->find(call);
  if (!found) return TROUPE_OK;
  return found->on_room(item_size, [run, argument] { run(argument); }) ? TROUPE_EXHAUSTED
                                                                       : TROUPE_OK;
}

int32_t host_object_put(troupe_context* context, troupe_bytes value, uint8_t* id,
                        troupe_text* message) {
  const auto made = context->services.put(view_of(value), context->stopping.get_token());
  if (!made) return fail(made.error(), message);
  made->to_bytes(id);
  return TROUPE_OK;
}

int32_t host_object_get(troupe_context* context, const uint8_t* id, troupe_bytes* value,
                        troupe_text* message) {
  const auto object = ObjectId::from_bytes({id, 16});
  auto held = context->views.find(object);
  if (held == context->views.end()) {
    auto got = context->services.get(object, context->stopping.get_token());
    if (!got) return fail(got.error(), message);
    held = context->views.emplace(object, troupe_context::View{std::move(*got), 0}).first;
  }
  ++held->second.count;
  *value = {held->second.value.bytes.data(), held->second.value.bytes.size()};
  return TROUPE_OK;
}

void host_object_release(troupe_context* context, const uint8_t* id) {
  const auto held = context->views.find(ObjectId::from_bytes({id, 16}));
  if (held == context->views.end()) return;
  if (--held->second.count == 0) context->views.erase(held);
}

int32_t host_actor_call(troupe_context* context, const char* actor_id, const char* method,
                        const troupe_bytes* arguments, size_t argument_count, uint64_t timeout_us,
                        troupe_bytes* reply, troupe_text* message) {
  if (actor_id == nullptr || method == nullptr) {
    return fail(error(Code::invalid, "actor_call: no actor or no method"), message);
  }
  const auto actor = ActorId::parse(actor_id);
  if (!actor) return fail(actor.error(), message);
  client::ActorCallSpec spec;
  spec.actor = *actor;
  spec.method = method;
  for (size_t i = 0; i < argument_count; ++i) {
    const BytesView bytes = view_of(arguments[i]);
    spec.arguments.emplace_back().inline_value.assign(bytes.begin(), bytes.end());
  }
  constexpr uint64_t timeout_us_max = 1'000'000ull * 3600 * 24;
  spec.budget = std::chrono::microseconds(std::min(timeout_us, timeout_us_max));
  auto outcome = context->services.call_actor(std::move(spec), context->stopping.get_token());
  if (!outcome) return fail(outcome.error(), message);
  context->last_reply = std::move(*outcome);
  if (reply != nullptr)
    *reply = {context->last_reply.bytes.data(), context->last_reply.bytes.size()};
  return TROUPE_OK;
}

Result<GroupSpec> read_spec(const troupe_group_spec* spec) {
  if (spec == nullptr || spec->size < sizeof(troupe_group_spec)) {
    return error(Code::invalid, "group_join: no spec, or one that is too small");
  }
  constexpr uint32_t world_max = 4096;
  if (spec->name == nullptr || *spec->name == '\0' || spec->member_ids == nullptr ||
      spec->world == 0 || spec->world > world_max || spec->rank >= spec->world) {
    return error(Code::invalid,
                 "group_join: a name, member ids and rank < world <= 4096 are needed");
  }
  GroupSpec read;
  read.name = spec->name;
  read.generation = spec->generation;
  read.rank = spec->rank;
  constexpr uint64_t timeout_us_max = 1'000'000ull * 3600 * 24;
  read.timeout = std::chrono::microseconds(std::min(spec->timeout_us, timeout_us_max));
  for (uint32_t i = 0; i < spec->world; ++i) {
    TROUPE_TRY(const auto id, ActorId::parse(spec->member_ids[i]));
    read.members.push_back(id);
  }
  return read;
}

int32_t host_group_join(troupe_context* context, const troupe_group_spec* spec,
                        troupe_group** group, troupe_text* message) {
  auto read = read_spec(spec);
  if (!read) return fail(read.error(), message);
  const uint32_t rank = read->rank;
  const uint32_t world = read->world();
  if (read->members[rank] != context->identity.actor) {
    return fail(error(Code::invalid, "group_join: member_ids[rank] is not this actor"), message);
  }
  auto channel = context->services.open_channel(std::move(*read), context->stopping.get_token());
  if (!channel) return fail(channel.error(), message);
  auto made = std::make_unique<troupe_group>(troupe_group{Group{rank, world, std::move(*channel)}});
  // Once all are here, no later operation can meet a member that has not joined.
  const Status met = made->members.barrier();
  if (!met) return fail(met.error(), message);
  *group = made.release();
  return TROUPE_OK;
}

int32_t host_group_all_reduce_f32(troupe_group* group, float* data, size_t count,
                                  troupe_text* message) {
  return answer(group->members.all_reduce({data, count}), message);
}

int32_t host_group_broadcast(troupe_group* group, uint32_t root, void* data, size_t size_bytes,
                             troupe_text* message) {
  return answer(group->members.broadcast(root, {static_cast<uint8_t*>(data), size_bytes}), message);
}

int32_t host_group_barrier(troupe_group* group, troupe_text* message) {
  return answer(group->members.barrier(), message);
}

void host_group_leave(troupe_group* group) {
  delete group;
}

int32_t host_stopping(troupe_context* context) {
  return context->stopping.stop_requested() ? 1 : 0;
}

troupe_context* host_current() {
  return CurrentContext::get();
}

int32_t host_defer(troupe_context* context, void (*run)(void*), void* argument) {
  if (context == nullptr || run == nullptr) return TROUPE_INVALID;
  return context->defer([run, argument] { run(argument); }) ? TROUPE_OK : TROUPE_UNAVAILABLE;
}

void host_context_retain(troupe_context* context) {
  context->retain();
}

void host_context_release(troupe_context* context) {
  context->release();
}

int32_t host_checkpoint_soon(troupe_context* context) {
  return context != nullptr ? context->checkpoint_soon() : TROUPE_INVALID;
}

}  // namespace

namespace troupe::actor {

const troupe_host& host_table() {
  static const troupe_host table = {
      .size = sizeof(troupe_host),
      .abi_major = TROUPE_ABI_MAJOR,
      .abi_minor = TROUPE_ABI_MINOR,
      .log = host_log,
      .metric_set = host_metric_set,
      .actor_info = host_actor_info,
      .call_reply = host_call_reply,
      .call_fail = host_call_fail,
      .call_emit = host_call_emit,
      .call_cancelled = host_call_cancelled,
      .call_streams = host_call_streams,
      .object_put = host_object_put,
      .object_get = host_object_get,
      .object_release = host_object_release,
      .actor_call = host_actor_call,
      .group_join = host_group_join,
      .group_all_reduce_f32 = host_group_all_reduce_f32,
      .group_broadcast = host_group_broadcast,
      .group_barrier = host_group_barrier,
      .group_leave = host_group_leave,
      .stopping = host_stopping,
      .current = host_current,
      .defer = host_defer,
      .call_on_stop = host_call_on_stop,
      .call_results = host_call_results,
      .call_reply_many = host_call_reply_many,
      .call_on_room = host_call_on_room,
      .context_retain = host_context_retain,
      .context_release = host_context_release,
      .checkpoint_soon = host_checkpoint_soon,
  };
  return table;
}

std::string TextRoom::read(std::string_view otherwise) const {
  if (text_.size == 0) return std::string(otherwise);
  return {data_, std::min(text_.size, sizeof data_)};
}

}  // namespace troupe::actor
