// A ring whose memory the fuzzer writes as a hostile peer would, at both of its ends.
#include <algorithm>
#include <cstring>

#include "transport/ring.h"

namespace {

using namespace troupe::transport;

void check(bool holds) {
  if (!holds) __builtin_trap();
}

// Takes the input from its front; zeros once it is used up.
class Input {
 public:
  explicit Input(troupe::BytesView bytes) : left_(bytes) {}
  bool is_empty() const { return left_.empty(); }
  template <class T>
  T take() {
    T value{};
    const auto bytes = take_bytes(sizeof value);
    std::copy(bytes.begin(), bytes.end(), reinterpret_cast<uint8_t*>(&value));
    return value;
  }
  size_t up_to(size_t most) { return take<uint32_t>() % (most + 1); }
  troupe::BytesView take_bytes(size_t count) {
    const auto taken = left_.first(std::min(count, left_.size()));
    left_ = left_.subspan(taken.size());
    return taken;
  }

 private:
  troupe::BytesView left_;
};

class Ring {
 public:
  Ring() : memory_(RingMemory::open(create_ring_file(ring_bytes_min).value()).value()) {}

  void run(Input input) {
    std::memset(static_cast<void*>(&memory_.control()), 0, ring_page_bytes);
    std::memset(memory_.data(0), 0, memory_.ring_bytes());
    RingReader reader{memory_, 0};
    RingWriter writer{memory_, 1};
    auto& incoming = memory_.control().ring[0];
    auto& outgoing = memory_.control().ring[1];
    while (!input.is_empty()) {
      switch (input.take<uint8_t>() % 8) {
        case 0:
          incoming.written.store(input.take<uint64_t>());
          break;
        case 1:
          incoming.written.fetch_add(input.take<uint16_t>());
          break;
        case 2: {
          const size_t at = input.up_to(memory_.ring_bytes() - 1);
          const auto bytes = input.take_bytes(input.take<uint8_t>() % 65);
          // The mapping goes on behind the end.
          if (!bytes.empty()) std::memcpy(memory_.data(0) + at, bytes.data(), bytes.size());
          break;
        }
        case 3: {  // A record as an honest writer would put it, where the last one ended.
          const RecordHeader header{input.take<uint16_t>(), 1, 0, 1};
          std::memcpy(memory_.data(0) + incoming.written.load() % memory_.ring_bytes(), &header,
                      sizeof header);
          incoming.written.fetch_add(sizeof header + (header.payload_bytes + 15u) / 16 * 16);
          break;
        }
        case 4:
          read(reader);
          break;
        case 5:
          (void)reader.release();
          break;
        case 6:
          outgoing.read.store(input.take<uint64_t>());
          break;
        case 7:
          write(writer, input.up_to(writer.payload_max()));
          break;
      }
    }
  }

 private:
  void read(RingReader& reader) {
    const auto next = reader.next();
    if (!next || !*next) return;
    const auto payload = (*next)->payload;
    const uint8_t* const first = memory_.data(0);
    check(payload.data() >= first + sizeof(RecordHeader));
    check(payload.size() <= memory_.ring_bytes());
    check(payload.data() + payload.size() <= first + 2 * memory_.ring_bytes());
    uint8_t sum = 0;
    for (const uint8_t byte : payload) sum = static_cast<uint8_t>(sum + byte);
    sum_ = sum;
    reader.consume();
  }
  void write(RingWriter& writer, size_t bytes) {
    uint8_t* const room = writer.reserve(bytes);
    if (room == nullptr) return;
    check(room >= memory_.data(1) + sizeof(RecordHeader));
    check(room + bytes <= memory_.data(1) + 2 * memory_.ring_bytes());
    std::memset(room, 1, bytes);
    writer.publish({static_cast<uint32_t>(bytes), 1, 0, 0});
  }

  RingMemory memory_;
  volatile uint8_t sum_ = 0;
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static Ring ring;
  ring.run(Input{{data, size}});
  return 0;
}
