#include "head/standby_files.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/log.h"
#include "head/journal.h"
#include "head/under_way.h"
#include "packages/transfer.h"

namespace troupe::head {

namespace {

constexpr size_t page_rows = 4096;

// What the leader says of a file that it cannot give. packages::fetch() says none of these of its
// own disk.
bool is_leaders(Code code) {
  return code == Code::not_found || code == Code::data_loss || code == Code::denied ||
         code == Code::invalid || code == Code::unimplemented;
}

Status scan_table(Store& store, Table table, NamedFiles& named) {
  Page page{{}, page_rows};
  for (;;) {
    TROUPE_TRY(Rows rows, store.scan(table, {}, page));
    const bool is_last = rows.size() < page_rows;
    if (!rows.empty()) page.after = rows.back().first;
    std::vector<FilesOfRow> found;
    for (auto& [key, value] : rows) {
      TROUPE_TRY(auto files, files_of_row(table, key, std::move(value)));
      if (files && files->says_something()) found.push_back(std::move(*files));
    }
    named.apply(found);
    if (is_last) return ok();
  }
}

Status open_folder(const std::string& path, std::optional<packages::Folder>& folder) {
  if (path.empty()) return ok();
  TROUPE_TRY(folder, packages::Folder::open(path));
  return ok();
}

// A file of another size than its row says is not that one: it was not on the disk when its machine
// failed.
void list_folder(const std::optional<packages::Folder>& folder, bool is_checkpoint,
                 const NamedFiles& named, std::set<FileName>& present) {
  if (!folder) return;
  for (const auto& entry : folder->list()) {
    if (entry.is_unpacked) continue;
    const FileName name{is_checkpoint, entry.hash};
    const NamedFile* const file = named.find(name);
    const bool is_other =
        file != nullptr && file->size_bytes != 0 && file->size_bytes != entry.size_bytes;
    if (!is_other) present.insert(name);
  }
}

}  // namespace

StandbyFiles::StandbyFiles(transport::Environment environment, Store& store, Scope& scope,
                           StandbyFilesOptions options)
    : environment_(environment),
      store_(store),
      scope_(scope),
      options_(std::move(options)),
      changed_(environment.loop) {}

bool StandbyFiles::is_used() const {
  return !options_.package_folder.empty() || !options_.checkpoint_folder.empty();
}

Async<Status> StandbyFiles::open() {
  if (!is_used() || is_open_) co_return ok();
  auto look = [this]() -> Status {
    TROUPE_CHECK(open_folder(options_.package_folder, folders_.packages));
    TROUPE_CHECK(open_folder(options_.checkpoint_folder, folders_.checkpoints));
    named_.clear();
    present_.clear();
    TROUPE_CHECK(scan_table(store_, Table::jobs, named_));
    TROUPE_CHECK(scan_table(store_, Table::actors, named_));
    list_folder(folders_.packages, false, named_, present_);
    list_folder(folders_.checkpoints, true, named_, present_);
    return ok();
  };
  const Status looked = co_await transport::run_blocking(environment_, look);
  if (!looked) {
    log::error("head_has_no_folders", {{"why", looked.error()}});
    co_await sleep_for(environment_.clock, options_.retry);
    co_return looked.error();
  }
  is_open_ = true;
  for (const FileName& name : named_.names()) look_at(name);
  co_return ok();
}

// --- What is wanted.

StandbyFiles::Need::Need(StandbyFiles& owner, std::vector<NamedFile> files)
    : owner_(owner), files_(std::move(files)) {
  owner_.needs_.push_back(this);
  for (const NamedFile& file : files_) {
    owner_.lost_.erase(file.name);
    owner_.look_at(file.name);
  }
  owner_.pump();
}

StandbyFiles::Need::~Need() {
  owner_.needs_.remove(this);
}

bool StandbyFiles::Need::is_met() const {
  return std::ranges::all_of(
      files_, [this](const NamedFile& file) { return owner_.is_settled(file.name); });
}

bool StandbyFiles::is_needed(const FileName& name) const {
  if (announced_.contains(name)) return true;
  return std::ranges::any_of(needs_, [&](const Need* need) {
    return std::ranges::any_of(need->files_,
                               [&](const NamedFile& file) { return file.name == name; });
  });
}

Async<Status> StandbyFiles::bring(std::vector<NamedFile> files, transport::CallContext call) {
  const Need need{*this, files};
  while (!need.is_met()) {
    if (need.failure()) co_return *need.failure();
    if (call.cancelled->is_set() || call.peer != leader_) {
      co_return error(Code::cancelled, "nobody waits for these files any more");
    }
    (void)co_await wait_either(changed_, *call.cancelled);
  }
  for (const NamedFile& file : files) {
    if (lost_.contains(file.name)) {
      co_return error(Code::not_found, "the head that leads has no file " + file.name.hash);
    }
    announced_[file.name] = environment_.clock.now() + options_.unnamed_max;
  }
  if (!std::exchange(drops_, true)) spawn(scope_, drop_announced());
  co_return ok();
}

Async<void> StandbyFiles::drop_announced() {
  while (!announced_.empty()) {
    co_await sleep_for(environment_.clock, options_.unnamed_max);
    const Instant now = environment_.clock.now();
    std::vector<FileName> over;
    for (const auto& [name, until] : announced_) {
      if (until <= now) over.push_back(name);
    }
    for (const FileName& name : over) {
      announced_.erase(name);
      look_at(name);
    }
  }
  drops_ = false;
}

void StandbyFiles::applied(const std::vector<FilesOfRow>& rows) {
  for (const FileName& name : named_.apply(rows)) {
    lost_.erase(name);
    if (named_.find(name) != nullptr) announced_.erase(name);
    look_at(name);
  }
  pump();
}

void StandbyFiles::begin_copy() {
  is_copying_ = true;
  named_.clear();
  missing_.clear();
  lost_.clear();
}

void StandbyFiles::sweep() {
  is_copying_ = false;
  const std::set<FileName> names = present_;
  for (const FileName& name : names) look_at(name);
}

void StandbyFiles::ask_anew() {
  const std::set<FileName> names = std::exchange(lost_, {});
  for (const FileName& name : names) look_at(name);
  pump();
}

// Decides anew about one.
void StandbyFiles::look_at(const FileName& name) {
  if (named_.find(name) != nullptr) {
    if (is_settled(name)) {
      missing_.erase(name);
    } else {
      missing_.insert(name);
    }
    return;
  }
  missing_.erase(name);
  if (!is_copying_ && !is_needed(name) && present_.erase(name) > 0) {
    removing_.insert(name);
    spawn(scope_, remove(name));
  }
}

Async<void> StandbyFiles::remove(FileName name) {
  auto remove = [folder = *folder_of(name), hash = name.hash] {
    folder.remove({.hash = hash});
    return true;
  };
  co_await transport::run_blocking(environment_, std::move(remove));
  log::debug("file_removed", {{"hash", name.hash}});
  removing_.erase(name);
  pump();  // It may be wanted again.
}

// --- How it comes.

void StandbyFiles::follow(std::shared_ptr<transport::Peer> leader) {
  leader_ = std::move(leader);
  ask_anew();  // Another head may have it.
}

void StandbyFiles::part() {
  leader_.reset();
  changed_.pulse();
}

const NamedFile* StandbyFiles::next_wanted() const {
  const auto can_be_fetched = [this](const FileName& name) {
    return !is_settled(name) && !fetching_.contains(name) && !removing_.contains(name);
  };
  for (const Need* need : needs_) {
    for (const NamedFile& file : need->files_) {
      if (can_be_fetched(file.name)) return &file;
    }
  }
  const auto next =
      std::find_if(missing_.upper_bound(last_fetched_), missing_.end(), can_be_fetched);
  if (next != missing_.end()) return named_.find(*next);
  const auto first = std::find_if(missing_.begin(), missing_.end(), can_be_fetched);
  return first != missing_.end() ? named_.find(*first) : nullptr;
}

void StandbyFiles::pump() {
  while (leader_ && fetching_.size() < fetches_max && environment_.clock.now() >= pause_until_) {
    const NamedFile* const next = next_wanted();
    if (next == nullptr) return;
    last_fetched_ = next->name;
    fetching_.insert(next->name);
    spawn(scope_, fetch(*next));
  }
}

Async<void> StandbyFiles::fetch(NamedFile file) {
  const FileName name = file.name;
  const auto leader = leader_;
  Status fetched = error(Code::unavailable, "no head leads");
  if (leader) fetched = co_await fetch_from(leader, file);
  fetching_.erase(name);
  const bool fails = !fetched && !is_leaders(fetched.error().code());
  if (fetched) {
    present_.insert(name);
    log::debug("file_copied", {{"hash", name.hash}, {"bytes", file.size_bytes}});
  } else if (!fails) {
    lost_.insert(name);
    log::warning("leader_lacks_file", {{"hash", name.hash}, {"why", fetched.error()}});
  } else if (leader == leader_) {
    note_failure(name, fetched.error());
  }
  look_at(name);
  if (fetched && missing_.empty() && !failure_.empty()) {
    failure_.clear();
    log::info("head_has_its_files");
  }
  pump();
  changed_.pulse();
  if (!fails) co_return;
  co_await sleep_until(environment_.clock, pause_until_);
  pump();
}

void StandbyFiles::note_failure(const FileName& name, const Error& why) {
  pause_until_ = environment_.clock.now() + options_.retry;
  for (Need* need : needs_) {
    const bool needs =
        std::ranges::any_of(need->files_, [&](const NamedFile& file) { return file.name == name; });
    if (needs) need->failure_ = why;
  }
  if (std::exchange(failure_, why.message()) == why.message()) return;
  log::error("head_lacks_files", {{"hash", name.hash}, {"missing", missing_.size()}, {"why", why}});
}

Async<Status> StandbyFiles::fetch_from(std::shared_ptr<transport::Peer> leader, NamedFile file) {
  const auto& folder = folder_of(file.name);
  if (!folder) co_return error(Code::internal, "this head has no folder for such files");
  const UnderWay under_way{fetching_bytes_, file.size_bytes};
  // Of the room that the tables need it must take nothing.
  TROUPE_CO_CHECK(store_.room(room_for_promises_bytes + fetching_bytes_));
  packages::FetchOptions options;
  options.request.hash = file.name.hash;
  options.request.actor = file.actor;
  options.silence_max = options_.silence_max;
  options.folder = &*folder;
  options.keep = packages::Keep::durable;
  if (file.size_bytes != 0) options.bytes_max = file.size_bytes;
  auto fetched = co_await packages::fetch(environment_, std::move(leader), std::move(options));
  if (!fetched) {
    co_return std::move(fetched).error().context("copy " + file.name.hash + " from the leader");
  }
  co_return ok();
}

}  // namespace troupe::head
