// Values of the SDK, read from bytes that any caller may have sent.
#include "troupe/serialize.h"

namespace {

struct Inner {
  double x = 0;
  bool flag = false;
  std::string text;
};
struct Packed {  // Copied as a whole.
  std::array<uint16_t, 3> numbers{};
  int8_t small = 0;
  uint8_t last = 0;
};
static_assert(troupe::detail::Dense<Packed> && !troupe::detail::Dense<Inner>);
struct Outer {
  std::vector<Inner> inners;
  std::map<std::string, std::vector<int32_t>> map;
  std::unordered_map<int16_t, std::string> hash;
  std::optional<std::pair<int8_t, Inner>> maybe;
  std::tuple<uint64_t, std::array<uint16_t, 3>, std::vector<bool>> tuple;
  std::vector<std::vector<std::vector<uint8_t>>> deep;
};

template <class T>
void try_read(const uint8_t* data, size_t size) {
  troupe::detail::Reader in{{data, size}, nullptr};
  T value{};
  troupe::detail::read<T>(in, value);
  if (in.failed) return;
  // What was read whole comes back from what it writes.
  troupe::detail::Writer out;
  troupe::detail::write<T>(out, value);
  troupe::detail::Reader again{out.bytes, nullptr};
  T second{};
  troupe::detail::read<T>(again, second);
  if (again.failed) __builtin_trap();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const uint8_t which = data[0] % 7;
  ++data, --size;
  switch (which) {
    case 0:
      try_read<Outer>(data, size);
      break;
    case 1:
      try_read<std::vector<Outer>>(data, size);
      break;
    case 2:
      try_read<std::map<int64_t, std::string>>(data, size);
      break;
    case 3:
      try_read<std::vector<std::optional<std::string>>>(data, size);
      break;
    case 4:
      try_read<std::vector<double>>(data, size);
      break;
    case 5:
      try_read<std::vector<Packed>>(data, size);
      break;
    default:
      try_read<std::tuple<std::string, std::vector<std::pair<int, bool>>>>(data, size);
  }
  return 0;
}
