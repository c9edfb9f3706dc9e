#include "head/named_files.h"

#include <fmt/format.h>

#include "protocol/codec.h"

namespace troupe::head {

namespace {

template <class T>
Result<T> decode_row(const std::string& key, const std::string& value) {
  auto row = protocol::decode<T>(as_bytes(value));
  if (row) return row;
  return error(Code::data_loss, fmt::format("row {}: {}", key, row.error().message()));
}

}  // namespace

Result<std::optional<FilesOfRow>> files_of_row(Table table, const std::string& key,
                                               const std::optional<std::string>& value) {
  FilesOfRow found;
  if (table == Table::actors) {
    const auto actor = ActorId::parse(key);
    if (!actor) return std::optional<FilesOfRow>{};  // A row beside that of its actor.
    found.actor = *actor;
    if (!value) return std::optional{std::move(found)};
    TROUPE_TRY(const auto record, decode_row<protocol::ActorRecord>(key, *value));
    const protocol::Checkpoint& checkpoint = record.info.checkpoint;
    if (!checkpoint.hash.empty()) {
      found.checkpoint = NamedFile{{true, checkpoint.hash}, checkpoint.size_bytes, *actor};
    }
    if (record.spec.detached && record.info.state != "dead") found.outlives = record.spec.job;
    return std::optional{std::move(found)};
  }
  if (table == Table::jobs) {
    TROUPE_TRY(found.job, JobId::parse(key));
    if (!value) return std::optional{std::move(found)};
    TROUPE_TRY(const auto info, decode_row<protocol::JobInfo>(key, *value));
    for (const protocol::Package& package : info.environment.packages) {
      found.packages.push_back({{false, package.hash}, package.size_bytes, {}});
    }
    return std::optional{std::move(found)};
  }
  return std::optional<FilesOfRow>{};
}

Result<std::vector<FilesOfRow>> files_of(const Batch& rows) {
  std::vector<FilesOfRow> found;
  for (const Mutation& row : rows.mutations()) {
    TROUPE_TRY(auto files, files_of_row(row.table, row.key, row.value));
    if (files) found.push_back(std::move(*files));
  }
  return found;
}

void NamedFiles::clear() {
  uses_.clear();
  actors_.clear();
  jobs_.clear();
  outlived_.clear();
}

const NamedFile* NamedFiles::find(const FileName& name) const {
  const auto found = uses_.find(name);
  return found != uses_.end() ? &found->second.file : nullptr;
}

std::vector<FileName> NamedFiles::names() const {
  std::vector<FileName> names;
  for (const auto& [name, use] : uses_) names.push_back(name);
  return names;
}

const std::vector<NamedFile>& NamedFiles::packages_of(JobId job) const {
  static const std::vector<NamedFile> none;
  const auto found = jobs_.find(job);
  return found != jobs_.end() ? found->second : none;
}

std::vector<NamedFile> NamedFiles::named_by(const std::vector<FilesOfRow>& rows) const {
  std::map<FileName, NamedFile> named;
  std::map<JobId, const std::vector<NamedFile>*> jobs;
  std::set<JobId> outlived;
  for (const FilesOfRow& row : rows) {
    if (row.checkpoint) named[row.checkpoint->name] = *row.checkpoint;
    if (!row.outlives.is_nil()) outlived.insert(row.outlives);
    if (row.job.is_nil()) continue;
    jobs[row.job] = &row.packages;
    if (outlived_.contains(row.job)) outlived.insert(row.job);
  }
  for (const JobId job : outlived) {
    const auto found = jobs.find(job);
    for (const NamedFile& file : found != jobs.end() ? *found->second : packages_of(job)) {
      named[file.name] = file;
    }
  }
  std::vector<NamedFile> files;
  for (auto& [name, file] : named) files.push_back(std::move(file));
  return files;
}

void NamedFiles::add(const NamedFile& file, std::set<FileName>& touched) {
  touched.insert(file.name);
  Use& use = uses_[file.name];
  use.file = file;
  ++use.rows;
}

void NamedFiles::remove(const NamedFile& file, std::set<FileName>& touched) {
  touched.insert(file.name);
  const auto found = uses_.find(file.name);
  if (--found->second.rows == 0) uses_.erase(found);
}

std::set<FileName> NamedFiles::apply(const std::vector<FilesOfRow>& rows) {
  std::set<FileName> touched;
  for (const FilesOfRow& row : rows) {
    if (row.actor.is_nil()) {
      apply_job(row, touched);
    } else {
      apply_actor(row, touched);
    }
  }
  return touched;
}

void NamedFiles::apply_actor(const FilesOfRow& row, std::set<FileName>& touched) {
  OfActor before;
  if (const auto old = actors_.find(row.actor); old != actors_.end()) {
    before = std::move(old->second);
    actors_.erase(old);
  }
  if (row.says_something()) actors_[row.actor] = {row.checkpoint, row.outlives};
  if (row.checkpoint) add(*row.checkpoint, touched);
  if (before.checkpoint) remove(*before.checkpoint, touched);
  if (!row.outlives.is_nil()) {
    const bool is_first = ++outlived_[row.outlives] == 1;
    for (const NamedFile& file : packages_of(row.outlives)) {
      touched.insert(file.name);
      if (is_first) add(file, touched);
    }
  }
  if (before.outlives.is_nil()) return;
  const auto outlived = outlived_.find(before.outlives);
  if (--outlived->second > 0) return;
  outlived_.erase(outlived);
  for (const NamedFile& file : packages_of(before.outlives)) remove(file, touched);
}

void NamedFiles::apply_job(const FilesOfRow& row, std::set<FileName>& touched) {
  const std::vector<NamedFile> before = packages_of(row.job);
  if (outlived_.contains(row.job)) {
    for (const NamedFile& file : row.packages) add(file, touched);
    for (const NamedFile& file : before) remove(file, touched);
  }
  if (row.packages.empty()) {
    jobs_.erase(row.job);
  } else {
    jobs_[row.job] = row.packages;
  }
}

}  // namespace troupe::head
