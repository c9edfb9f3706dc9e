#include "head/candidate.h"

namespace troupe::head {

Candidate::Candidate(transport::Environment environment, Store& store, Coordinator& coordinator,
                     HeadOptions head_options, StandbyOptions standby_options)
    : environment_(environment),
      store_(store),
      coordinator_(coordinator),
      head_options_(std::move(head_options)),
      name_(standby_options.name) {
  standby_options.files.package_folder = head_options_.package_folder;
  standby_options.files.checkpoint_folder = head_options_.checkpoint_folder;
  standby_ = std::make_unique<Standby>(environment, store, coordinator, std::move(standby_options));
}

Candidate::~Candidate() = default;

Status Candidate::listen() {
  TROUPE_CHECK(standby_->listen(head_options_.listen));
  head_options_.listen = standby_->endpoints();
  for (const transport::Endpoint& endpoint : head_options_.listen) {
    if (!endpoint.is_unix()) standby_->set_address(endpoint.to_string());
  }
  return ok();
}

Async<Error> Candidate::live() {
  auto lead = co_await standby_->wait_for_lead();
  if (!lead) co_return std::move(lead).error();
  ReplicatorOptions options;
  options.name = name_;
  replicator_ = std::make_unique<Replicator>(environment_, store_, coordinator_, std::move(options),
                                             std::move(*lead));
  replicator_->start();  // The lease runs.
  co_await standby_->stop();
  head_ = std::make_unique<Head>(environment_, store_, head_options_, replicator_.get());
  const Status started = co_await head_->start();
  if (!started) co_return started.error();
  is_up_ = true;
  const bool broke = co_await wait_either(head_->broken(), replicator_->lost());
  if (!broke) co_return error(Code::unavailable, "this head does not lead any more");
  co_return error(Code::unavailable, "a promise could not be made durable");
}

Async<void> Candidate::stop(bool resigns) {
  is_up_ = false;
  co_await standby_->stop();
  if (head_) co_await head_->stop();
  if (replicator_) co_await replicator_->stop(resigns);
}

}  // namespace troupe::head
