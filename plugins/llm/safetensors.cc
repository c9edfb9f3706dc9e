#include "llm/safetensors.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <bit>
#include <boost/json/basic_parser_impl.hpp>
#include <boost/json/object.hpp>
#include <boost/json/parse.hpp>
#include <boost/json/serialize.hpp>
#include <cerrno>
#include <cstring>
#include <optional>
#include <set>
#include <utility>

#include "llm/atomic_file.h"

namespace troupe::llm {
namespace {

namespace json = boost::json;
static_assert(std::endian::native == std::endian::little, "the format is little-endian");

constexpr size_t length_bytes = 8;
// The reference implementation's bound.
constexpr size_t header_bytes_max = 100'000'000;
constexpr std::string_view metadata_key = "__metadata__";

struct DtypeRow {
  std::string_view name;
  int64_t size_bytes;
};
// In the order of Dtype.
constexpr std::array<DtypeRow, 10> dtypes{{{"F64", 8},
                                           {"F32", 4},
                                           {"F16", 2},
                                           {"BF16", 2},
                                           {"I64", 8},
                                           {"I32", 4},
                                           {"I16", 2},
                                           {"I8", 1},
                                           {"U8", 1},
                                           {"BOOL", 1}}};

Error damaged(std::string why) {
  return error(Code::data_loss, "damaged safetensors file: " + std::move(why) +
                                    "; fetch it again or restore it from a copy");
}

// Finds a key that occurs twice in one object. Boost.JSON's own objects keep the last one silently.
struct DuplicateFinder {
  static constexpr size_t max_object_size = size_t(-1);
  static constexpr size_t max_array_size = size_t(-1);
  static constexpr size_t max_key_size = size_t(-1);
  static constexpr size_t max_string_size = size_t(-1);
  using Code = boost::json::error_code;

  std::vector<std::set<std::string, std::less<>>> open_objects;
  std::string partial_key;
  std::optional<std::string> duplicate;

  bool on_document_begin(Code&) { return true; }
  bool on_document_end(Code&) { return true; }
  bool on_object_begin(Code&) { return open_objects.emplace_back(), true; }
  bool on_object_end(size_t, Code&) { return open_objects.pop_back(), true; }
  bool on_array_begin(Code&) { return true; }
  bool on_array_end(size_t, Code&) { return true; }
  bool on_key_part(json::string_view part, size_t, Code&) {
    return partial_key.append(part.data(), part.size()), true;
  }
  bool on_key(json::string_view part, size_t, Code& code) {
    partial_key.append(part.data(), part.size());
    if (!open_objects.back().insert(partial_key).second) {
      duplicate = partial_key;
      code = json::make_error_code(json::error::extra_data);
      return false;
    }
    return partial_key.clear(), true;
  }
  bool on_string_part(json::string_view, size_t, Code&) { return true; }
  bool on_string(json::string_view, size_t, Code&) { return true; }
  bool on_number_part(json::string_view, Code&) { return true; }
  bool on_int64(int64_t, json::string_view, Code&) { return true; }
  bool on_uint64(uint64_t, json::string_view, Code&) { return true; }
  bool on_double(double, json::string_view, Code&) { return true; }
  bool on_bool(bool, Code&) { return true; }
  bool on_null(Code&) { return true; }
  bool on_comment_part(json::string_view, Code&) { return true; }
  bool on_comment(json::string_view, Code&) { return true; }
};

Status check_no_duplicate_keys(std::string_view text) {
  json::basic_parser<DuplicateFinder> parser{json::parse_options{}};
  json::error_code code;
  parser.write_some(false, text.data(), text.size(), code);
  if (const auto& duplicate = parser.handler().duplicate) {
    return damaged(fmt::format("the header has '{}' twice", *duplicate));
  }
  return ok();
}

struct Entry {
  TensorView view;
  uint64_t begin = 0;  // In the data, which starts after the header.
  uint64_t end = 0;
};

struct Header {
  std::vector<Entry> entries;
  std::map<std::string, std::string> metadata;
};

// A JSON array of non-negative integers.
Result<std::vector<int64_t>> parse_integers(const json::value* value) {
  if (value == nullptr || !value->is_array()) return damaged("an array of integers is missing");
  std::vector<int64_t> integers;
  for (const json::value& item : value->get_array()) {
    if (!item.is_int64() || item.get_int64() < 0) {
      return damaged("a number is negative, too large or not an integer");
    }
    integers.push_back(item.get_int64());
  }
  return integers;
}

// Bytes of a tensor, or nothing if they do not fit 63 bits.
std::optional<int64_t> tensor_size_bytes(Dtype dtype, const std::vector<int64_t>& shape) {
  int64_t size = dtype_size_bytes(dtype);
  for (const int64_t dimension : shape) {
    if (dimension < 0 || __builtin_mul_overflow(size, dimension, &size)) return std::nullopt;
  }
  return size;
}

Result<Entry> parse_entry(std::string_view name, const json::value& value) {
  if (!value.is_object()) return damaged("it is not a JSON object");
  const json::object& fields = value.get_object();
  const json::value* dtype = fields.if_contains("dtype");
  if (dtype == nullptr || !dtype->is_string()) return damaged("it has no dtype");
  if (fields.size() != 3) return damaged("it has fields besides dtype, shape and data_offsets");

  Entry entry;
  entry.view.name = name;
  TROUPE_TRY(entry.view.dtype, dtype_from_name(std::string_view(dtype->get_string())));
  TROUPE_TRY(entry.view.shape, parse_integers(fields.if_contains("shape")));
  TROUPE_TRY(const auto offsets, parse_integers(fields.if_contains("data_offsets")));
  if (offsets.size() != 2 || offsets[0] > offsets[1]) {
    return damaged("data_offsets is not a begin and an end");
  }
  entry.begin = static_cast<uint64_t>(offsets[0]);
  entry.end = static_cast<uint64_t>(offsets[1]);
  const auto size = tensor_size_bytes(entry.view.dtype, entry.view.shape);
  if (size != offsets[1] - offsets[0]) {
    return damaged(fmt::format("shape [{}] of {} does not make {} bytes",
                               fmt::join(entry.view.shape, ","), dtype_name(entry.view.dtype),
                               offsets[1] - offsets[0]));
  }
  return entry;
}

Result<std::map<std::string, std::string>> parse_metadata(const json::value& value) {
  std::map<std::string, std::string> metadata;
  if (!value.is_object()) return damaged("__metadata__ is not a JSON object");
  for (const auto& [key, text] : value.get_object()) {
    if (!text.is_string()) return damaged("a value in __metadata__ is not a string");
    metadata.emplace(key, text.get_string());
  }
  return metadata;
}

// The header's text, checked on its own; entries in the order of their bytes.
Result<Header> parse_header(std::string_view text) {
  if (!text.starts_with('{')) return damaged("the header does not start with '{'");
  json::error_code code;
  const json::value root = json::parse(json::string_view(text.data(), text.size()), code);
  if (code) return damaged("the header is not JSON (" + code.message() + ")");
  if (!root.is_object()) return damaged("the header is not a JSON object");
  TROUPE_CHECK(check_no_duplicate_keys(text));

  Header header;
  for (const auto& [key, value] : root.get_object()) {
    const std::string_view name(key.data(), key.size());
    if (name == metadata_key) {
      TROUPE_TRY(header.metadata, parse_metadata(value));
      continue;
    }
    auto entry = parse_entry(name, value);
    if (!entry) return std::move(entry).error().context(fmt::format("tensor '{}'", name));
    header.entries.push_back(std::move(*entry));
  }
  // Empty tensors sort before the one that starts where they do.
  std::stable_sort(header.entries.begin(), header.entries.end(),
                   [](const Entry& a, const Entry& b) {
                     return std::pair(a.begin, a.end) < std::pair(b.begin, b.end);
                   });
  return header;
}

// Each tensor begins where the one before it ends, and the last ends with the file.
Status check_layout(const std::vector<Entry>& entries, uint64_t data_bytes) {
  uint64_t expected = 0;
  for (const Entry& entry : entries) {
    if (entry.begin != expected) {
      return damaged(fmt::format(
          "tensor '{}' {} (it starts at byte {}, the one before ends at {})", entry.view.name,
          entry.begin < expected ? "overlaps another" : "follows a hole", entry.begin, expected));
    }
    expected = entry.end;
  }
  if (expected == data_bytes) return ok();
  return damaged(fmt::format("the tensors take {} bytes, the file has {}: {}", expected, data_bytes,
                             expected > data_bytes ? "it is truncated" : "it has bytes too many"));
}

// The header's text with its length before it and spaces after it, up to a multiple of 8 bytes.
Result<std::string> make_header(std::span<const TensorView* const> tensors,
                                const std::map<std::string, std::string>& metadata) {
  json::object root;
  if (!metadata.empty()) {
    json::object& object = root[metadata_key].emplace_object();
    for (const auto& [key, value] : metadata) object[key] = value;
  }
  uint64_t offset = 0;
  for (const TensorView* tensor : tensors) {
    const auto size = tensor_size_bytes(tensor->dtype, tensor->shape);
    if (!size || static_cast<uint64_t>(*size) != tensor->bytes.size()) {
      return error(Code::invalid, fmt::format("tensor '{}': shape [{}] of {} is not {} bytes",
                                              tensor->name, fmt::join(tensor->shape, ","),
                                              dtype_name(tensor->dtype), tensor->bytes.size()));
    }
    json::object fields;
    fields["dtype"] = dtype_name(tensor->dtype);
    fields["shape"] = json::array(tensor->shape.begin(), tensor->shape.end());
    fields["data_offsets"] = json::array{offset, offset + tensor->bytes.size()};
    const bool is_new = root.emplace(tensor->name, std::move(fields)).second;
    if (!is_new || tensor->name == metadata_key) {
      return error(Code::invalid, fmt::format("tensor name '{}' is taken", tensor->name));
    }
    offset += tensor->bytes.size();
  }
  std::string text = json::serialize(root);
  text.resize((text.size() + length_bytes - 1) / length_bytes * length_bytes, ' ');
  if (text.size() > header_bytes_max) {
    return error(Code::invalid, fmt::format("the header takes {} bytes, more than {}", text.size(),
                                            header_bytes_max));
  }
  // What the reader would refuse must not be written: names that are not UTF-8, for example.
  if (!parse_header(text)) {
    return error(Code::invalid, "tensor names and metadata must be UTF-8 text");
  }
  const uint64_t length = text.size();
  std::string prefix(length_bytes, '\0');
  std::memcpy(prefix.data(), &length, length_bytes);
  return prefix + text;
}

std::span<const uint8_t> as_bytes(std::string_view text) {
  return {reinterpret_cast<const uint8_t*>(text.data()), text.size()};
}

// Closes on scope exit; the mapping outlives its descriptor.
struct Descriptor {
  int number;
  ~Descriptor() {
    if (number >= 0) ::close(number);
  }
};

}  // namespace

int64_t dtype_size_bytes(Dtype dtype) {
  return dtypes[static_cast<size_t>(dtype)].size_bytes;
}

std::string_view dtype_name(Dtype dtype) {
  return dtypes[static_cast<size_t>(dtype)].name;
}

Result<Dtype> dtype_from_name(std::string_view name) {
  for (size_t i = 0; i < dtypes.size(); ++i) {
    if (dtypes[i].name == name) return static_cast<Dtype>(i);
  }
  return error(Code::unimplemented,
               fmt::format("dtype '{}' is not one of F64 F32 F16 BF16 I64 I32 I16 I8 U8 BOOL; "
                           "convert the tensor, or fetch the file again if it is damaged",
                           name));
}

void SafetensorsFile::Unmap::operator()(const uint8_t* data) const {
  ::munmap(const_cast<uint8_t*>(data), size_bytes);
}

Result<SafetensorsFile> SafetensorsFile::open(const std::filesystem::path& path) {
  const Descriptor file{::open(path.c_str(), O_RDONLY | O_CLOEXEC)};
  if (file.number < 0) return file_error(path, "open", errno);
  struct stat status;
  if (::fstat(file.number, &status) != 0) return file_error(path, "stat", errno);
  if (!S_ISREG(status.st_mode)) {
    return error(Code::invalid, path.string() + ": not a regular file; name a .safetensors file");
  }
  const auto in_file = [&](Error failed) { return std::move(failed).context(path.string()); };
  const auto size = static_cast<size_t>(status.st_size);
  if (size < length_bytes) {
    return in_file(damaged(fmt::format("it has {} bytes, fewer than its length field", size)));
  }
  void* data = ::mmap(nullptr, size, PROT_READ, MAP_SHARED, file.number, 0);
  if (data == MAP_FAILED) return file_error(path, "map", errno);

  SafetensorsFile result;
  result.path_ = path.string();
  result.mapping_ = {static_cast<const uint8_t*>(data), Unmap{size}};
  uint64_t header_bytes = 0;
  std::memcpy(&header_bytes, data, length_bytes);
  if (header_bytes > header_bytes_max) {
    return in_file(damaged(fmt::format("it claims a header of {} bytes, more than {}", header_bytes,
                                       header_bytes_max)));
  }
  if (header_bytes > size - length_bytes) {
    return in_file(damaged(fmt::format("it is truncated inside its header ({} of {} bytes)",
                                       size - length_bytes, header_bytes)));
  }
  const uint8_t* const bytes = result.mapping_.get() + length_bytes;
  auto header = parse_header({reinterpret_cast<const char*>(bytes), header_bytes});
  if (!header) return in_file(std::move(header).error());
  const size_t data_bytes = size - length_bytes - header_bytes;
  if (auto laid_out = check_layout(header->entries, data_bytes); !laid_out) {
    return in_file(std::move(laid_out).error());
  }

  result.metadata_ = std::move(header->metadata);
  for (Entry& entry : header->entries) {
    entry.view.bytes = {bytes + header_bytes + entry.begin, entry.end - entry.begin};
    result.index_.emplace(entry.view.name, result.tensors_.size());
    result.tensors_.push_back(std::move(entry.view));
  }
  return result;
}

Result<TensorView> SafetensorsFile::find(std::string_view name) const {
  const auto found = index_.find(name);
  if (found == index_.end()) {
    return error(Code::not_found, fmt::format("{}: no tensor '{}'", path_, name));
  }
  return tensors_[found->second];
}

Status write_safetensors(const std::filesystem::path& path, std::span<const TensorView> tensors,
                         const std::map<std::string, std::string>& metadata) {
  std::vector<const TensorView*> order;
  for (const TensorView& tensor : tensors) order.push_back(&tensor);
  std::stable_sort(order.begin(), order.end(), [](const TensorView* a, const TensorView* b) {
    return dtype_size_bytes(a->dtype) > dtype_size_bytes(b->dtype);
  });
  auto header = make_header(order, metadata);
  if (!header) return std::move(header).error().context(path.string());

  TROUPE_TRY(AtomicFile file, AtomicFile::create(path));
  TROUPE_CHECK(file.append(as_bytes(*header)));
  for (const TensorView* tensor : order) TROUPE_CHECK(file.append(tensor->bytes));
  return file.commit();
}

}  // namespace troupe::llm
