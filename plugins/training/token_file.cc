#include "training/token_file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <bit>
#include <cerrno>
#include <cstring>
#include <vector>

#include "base/bytes.h"
#include "base/file_descriptor.h"
#include "llm/atomic_file.h"

namespace troupe::training {
namespace {

static_assert(std::endian::native == std::endian::little, "ids are written as they lie in memory");

struct Header {
  char magic[8];
  uint32_t id_bytes;
  int32_t vocab_size;
  uint64_t count;
  uint64_t reserved;
};
static_assert(sizeof(Header) == 32);
constexpr char magic[8] = {'T', 'R', 'P', 'T', 'O', 'K', '1', '\n'};
constexpr int32_t vocab_size_max_u16 = 65536;

}  // namespace

void TokenFile::Unmap::operator()(const uint8_t* data) const {
  ::munmap(const_cast<uint8_t*>(data), size_bytes);
}

Result<TokenFile> TokenFile::open(const std::filesystem::path& path) {
  const FileDescriptor file{::open(path.c_str(), O_RDONLY | O_CLOEXEC)};
  if (!file.is_open()) return llm::file_error(path, "open", errno);
  struct stat about {};
  if (::fstat(file.get(), &about) != 0) return llm::file_error(path, "look at", errno);
  const auto size_bytes = static_cast<size_t>(about.st_size);
  if (!S_ISREG(about.st_mode) || size_bytes < sizeof(Header)) {
    return error(Code::invalid, fmt::format("{} is not a token file", path.string()));
  }
  void* mapped = ::mmap(nullptr, size_bytes, PROT_READ, MAP_SHARED, file.get(), 0);
  if (mapped == MAP_FAILED) return llm::file_error(path, "map", errno);

  TokenFile made;
  made.path_ = path;
  made.mapping_ = {static_cast<const uint8_t*>(mapped), Unmap{size_bytes}};
  Header header;
  std::memcpy(&header, mapped, sizeof header);
  if (std::memcmp(header.magic, magic, sizeof magic) != 0 || header.vocab_size <= 0 ||
      (header.id_bytes != 2 && header.id_bytes != 4)) {
    return error(Code::invalid, fmt::format("{} is not a token file", path.string()));
  }
  const uint64_t present = (size_bytes - sizeof header) / header.id_bytes;
  if (header.count != present) {
    return error(Code::data_loss, fmt::format("{} is damaged: it should hold {} tokens, not {}",
                                              path.string(), header.count, present));
  }
  made.count_ = header.count;
  made.vocab_size_ = header.vocab_size;
  made.id_bytes_ = header.id_bytes;
  return made;
}

Status TokenFile::read(uint64_t begin, std::span<int32_t> out) const {
  TROUPE_ASSERT(begin <= count_ && out.size() <= count_ - begin, "tokens past the file's end");
  const uint8_t* from = mapping_.get() + sizeof(Header) + begin * id_bytes_;
  if (id_bytes_ == 4) {
    std::memcpy(out.data(), from, out.size_bytes());
  } else {
    for (size_t i = 0; i < out.size(); ++i) {
      uint16_t id;
      std::memcpy(&id, from + 2 * i, 2);
      out[i] = id;
    }
  }
  for (const int32_t id : out) {
    if (id < 0 || id >= vocab_size_) {
      return error(Code::data_loss, fmt::format("{} is damaged: token {} in a vocabulary of {}",
                                                path_.string(), id, vocab_size_));
    }
  }
  return ok();
}

Status write_token_file(const std::filesystem::path& path, std::span<const int32_t> tokens,
                        int32_t vocab_size) {
  Header header{};
  std::memcpy(header.magic, magic, sizeof magic);
  header.id_bytes = vocab_size <= vocab_size_max_u16 ? 2 : 4;
  header.vocab_size = vocab_size;
  header.count = tokens.size();
  Bytes bytes(sizeof header + tokens.size() * header.id_bytes);
  std::memcpy(bytes.data(), &header, sizeof header);
  uint8_t* to = bytes.data() + sizeof header;
  for (const int32_t id : tokens) {
    if (id < 0 || id >= vocab_size) {
      return error(Code::invalid,
                   fmt::format("token {} is outside the vocabulary of {}", id, vocab_size));
    }
    std::memcpy(to, &id, header.id_bytes);  // Little-endian: the low bytes come first.
    to += header.id_bytes;
  }
  TROUPE_TRY(llm::AtomicFile file, llm::AtomicFile::create(path));
  TROUPE_CHECK(file.append(bytes));
  return file.commit();
}

}  // namespace troupe::training
