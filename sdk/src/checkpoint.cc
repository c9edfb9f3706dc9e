#include "troupe/checkpoint.h"

#include <fmt/format.h>

#include <cerrno>
#include <cstdio>
#include <system_error>

#include "session_impl.h"
#include "troupe/invoke.h"

namespace troupe {

namespace {

// In the file: for each value the hash of its type, its size, its bytes.
struct Head {
  uint64_t type = 0;
  uint64_t size_bytes = 0;
};

struct Close {
  void operator()(std::FILE* file) const { std::fclose(file); }
};
using File = std::unique_ptr<std::FILE, Close>;

std::filesystem::path values_of(const std::filesystem::path& folder) {
  return folder / "values";
}

[[noreturn]] void refuse(const std::filesystem::path& folder, const char* doing, int number) {
  throw error(number == ENOSPC || number == EDQUOT ? Code::exhausted : Code::internal,
              fmt::format("{} {}: {}", doing, values_of(folder).string(),
                          std::generic_category().message(number)));
}

}  // namespace

struct CheckpointWriter::Impl {
  File file;
};

CheckpointWriter::CheckpointWriter(std::filesystem::path folder)
    : folder_(std::move(folder)), impl_(std::make_unique<Impl>()) {
  impl_->file.reset(std::fopen(values_of(folder_).c_str(), "wbe"));
  if (!impl_->file) refuse(folder_, "make", errno);
}

CheckpointWriter::~CheckpointWriter() = default;

void CheckpointWriter::append(uint64_t type, const detail::Writer& value) {
  if (!value.refs.empty()) {
    throw error(Code::invalid, "a checkpoint holds no refs of objects: keep the values themselves");
  }
  const Head head{type, value.bytes.size()};
  std::FILE* file = impl_->file.get();
  if (std::fwrite(&head, sizeof head, 1, file) != 1 ||
      std::fwrite(value.bytes.data(), 1, value.bytes.size(), file) != value.bytes.size()) {
    refuse(folder_, "write", errno);
  }
}

void CheckpointWriter::finish() {
  if (std::fclose(impl_->file.release()) != 0) refuse(folder_, "write", errno);
}

struct CheckpointReader::Impl {
  File file;
  uint64_t left = 0;  // Bytes that were not read.
  uint32_t read = 0;  // Values that were.
  Bytes value;
};

CheckpointReader::CheckpointReader(std::filesystem::path folder)
    : folder_(std::move(folder)), impl_(std::make_unique<Impl>()) {
  std::error_code failed;
  impl_->left = std::filesystem::file_size(values_of(folder_), failed);
  impl_->file.reset(std::fopen(values_of(folder_).c_str(), "rbe"));
  if (!impl_->file) refuse(folder_, "open", errno);
}

CheckpointReader::~CheckpointReader() = default;

bool CheckpointReader::at_end() const {
  return impl_->left == 0;
}

detail::Reader CheckpointReader::next(uint64_t type) {
  const uint32_t number = ++impl_->read;
  Head head;
  if (impl_->left < sizeof head || std::fread(&head, sizeof head, 1, impl_->file.get()) != 1) {
    throw error(
        Code::data_loss,
        fmt::format("the checkpoint has no value {}: load reads more than save wrote", number));
  }
  impl_->left -= sizeof head;
  if (head.type != type) {
    throw error(
        Code::data_loss,
        fmt::format("value {} of the checkpoint has another type than load reads there", number));
  }
  Bytes& value = impl_->value;
  if (head.size_bytes <= impl_->left) value.resize(head.size_bytes);
  if (head.size_bytes > impl_->left ||
      std::fread(value.data(), 1, value.size(), impl_->file.get()) != value.size()) {
    throw error(Code::data_loss, fmt::format("value {} of the checkpoint is cut short", number));
  }
  impl_->left -= head.size_bytes;
  return {value, detail::process_session()};
}

void CheckpointReader::check(const detail::Reader& in) const {
  if (!in.failed && in.bytes.empty()) return;
  throw error(Code::data_loss, fmt::format("value {} of the checkpoint is malformed", impl_->read));
}

Status checkpoint_soon() {
  troupe_context* const context = detail::process_session() ? detail::host().current() : nullptr;
  if (context == nullptr) {
    return error(Code::invalid, "checkpoint_soon() is for the code that an actor runs");
  }
  const int32_t code = detail::host().checkpoint_soon(context);
  if (code == TROUPE_OK) return ok();
  return error(code_from_number(static_cast<uint32_t>(code)),
               "this actor cannot be checkpointed: its class has no save and load, or several "
               "threads or coroutines");
}

}  // namespace troupe
