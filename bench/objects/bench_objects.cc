// What an object costs beside the copy of its bytes. One process plays producer, worker and reader,
// so no row holds a call between processes. Prints JSON rows, medians of several rounds.
#include <fcntl.h>
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string_view>
#include <utility>
#include <vector>

#include "base/ids.h"
#include "base/random.h"
#include "object_store/object_table.h"
#include "object_store/segment.h"
#include "object_store/transfer.h"

namespace troupe::object_store {
namespace {

constexpr uint64_t large_bytes = 100'000'000;
constexpr uint64_t store_bytes = uint64_t{1} << 30;
constexpr int rounds = 15;

double seconds_of(const std::function<void()>& work) {
  const auto start = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

double median_seconds(const std::function<void()>& work) {
  std::vector<double> times;
  for (int i = 0; i < rounds; ++i) times.push_back(seconds_of(work));
  std::ranges::nth_element(times, times.begin() + rounds / 2);
  return times[rounds / 2];
}

void row(std::string_view name, double value, std::string_view unit) {
  fmt::print("{{\"name\":\"objects/{}\",\"value\":{:.4g},\"unit\":\"{}\"}}\n", name, value, unit);
}

// Keeps the compiler from dropping what nobody reads.
void keep(const void* data) {
  asm volatile("" : : "r"(data) : "memory");
}

ReaderSegment reader_of(const ProducerSegment& producer) {
  return ReaderSegment::open(FileDescriptor{::fcntl(producer.fd(), F_DUPFD_CLOEXEC, 0)}).value();
}

// A store with one producer and one reader of a job.
struct Store {
  Random& random;
  Caller producer{ProcessId::random(random), JobId::random(random)};
  Caller reader{ProcessId::random(random), producer.job};
  ObjectTable table{store_bytes, random};
  ProducerSegment writable = ProducerSegment::create(store_bytes).value();
  ReaderSegment readable = reader_of(writable);

  explicit Store(Random& r) : random(r) {
    table.attach(producer).value();
    table.attach(reader).value();
    (void)table.add_segment(producer, store_bytes).value();
  }
  std::span<uint8_t> create(ObjectId id, uint64_t size_bytes) {
    const CreateRequest request{.object = id, .owner = reader.process, .size_bytes = size_bytes};
    const Block block = table.create(producer, request, Instant{}).value();
    return writable.prepare(block.offset_bytes, block.size_bytes).value();
  }
  BytesView get(ObjectId id) {
    table.pin(reader, id).value();
    const Block block = table.get(reader, id).value().value();
    return readable.view(block.offset_bytes, block.size_bytes).value();
  }
  void drop(ObjectId id) {
    table.release(reader, id, 1).value();
    table.release_owner(reader.process, id).value();
  }
};

// create, copy in, seal, pin, get, view, release, for objects of a few sizes.
void bench_small(Random& random) {
  constexpr int count = 20'000;
  for (const uint64_t size : {uint64_t{64}, uint64_t{4096}, uint64_t{65536}}) {
    Store store{random};
    std::vector<ObjectId> ids;
    for (int i = 0; i < count; ++i) ids.push_back(ObjectId::random(random));
    const Bytes source(size, 1);
    const double round_trip = median_seconds([&] {
      for (const ObjectId id : ids) {
        std::memcpy(store.create(id, size).data(), source.data(), size);
        store.table.seal(store.producer, id).value();
        keep(store.get(id).data());
        store.drop(id);
      }
    });
    Bytes target(size);
    const double copy = median_seconds([&] {
      for (int i = 0; i < count; ++i) {
        std::memcpy(target.data(), source.data(), size);
        keep(target.data());
      }
    });
    row(fmt::format("put_get_drop_{}B", size), round_trip / count * 1e9, "ns");
    row(fmt::format("memcpy_{}B", size), copy / count * 1e9, "ns");
  }
}

// The table alone, with many objects alive: its look-ups miss the cache as they do in life.
void bench_table(Random& random) {
  constexpr uint64_t live = 100'000;
  Store store{random};
  std::vector<ObjectId> ids;
  for (uint64_t i = 0; i < live; ++i) ids.push_back(ObjectId::random(random));
  const double fill = seconds_of([&] {
    for (const ObjectId id : ids) {
      const CreateRequest request{.object = id, .owner = store.reader.process, .size_bytes = 4096};
      (void)store.table.create(store.producer, request, Instant{}).value();
      store.table.seal(store.producer, id).value();
    }
  });
  const double look = median_seconds([&] {
    for (const ObjectId id : ids) {
      const auto block = store.table.get(store.reader, id).value();
      keep(&block);
    }
  });
  const double death = seconds_of([&] { store.table.process_died(store.reader.process); });
  row("table_create_seal_100k", fill / live * 1e9, "ns");
  row("table_get_100k", look / live * 1e9, "ns");
  row("table_owner_death_100k", death * 1e3, "ms");
}

void bench_large(Random& random) {
  Store store{random};
  const Bytes source(large_bytes, 1);
  Bytes target(large_bytes, 2);  // Touched: the copy below is warm.
  const double copy = median_seconds([&] {
    std::memcpy(target.data(), source.data(), large_bytes);
    keep(target.data());
  });
  const auto put = [&](ObjectId id) {
    std::memcpy(store.create(id, large_bytes).data(), source.data(), large_bytes);
    store.table.seal(store.producer, id).value();
  };
  const ObjectId id = ObjectId::random(random);
  const double cold = seconds_of([&] { put(id); });
  const double first_view = seconds_of([&] { keep(store.get(id).data()); });
  store.drop(id);
  const double warm = median_seconds([&] {
    put(id);
    keep(store.get(id).data());
    store.drop(id);
  });
  // Built in place: what is left when the copy is the producer's own work.
  const double in_place = median_seconds([&] {
    keep(store.create(id, large_bytes).data());
    store.table.seal(store.producer, id).value();
    keep(store.get(id).data());
    store.drop(id);
  });
  row("memcpy_warm_100MB", copy * 1e3, "ms");
  row("put_cold_100MB", cold * 1e3, "ms");
  row("first_view_100MB", first_view * 1e3, "ms");
  row("put_get_drop_warm_100MB", warm * 1e3, "ms");
  row("put_get_drop_warm_100MB_to_memcpy", warm / copy, "ratio");
  row("in_place_get_drop_warm_100MB", in_place * 1e6, "us");
}

void bench_transfer(Random& random) {
  Bytes object(large_bytes);
  for (uint64_t i = 0; i + 8 <= object.size(); i += 8) {
    const uint64_t word = random.next();
    std::memcpy(object.data() + i, &word, 8);
  }
  Bytes target(large_bytes, 1);
  const ChunkPlan plan = ChunkPlan::make(object.size()).value();
  const double seconds = median_seconds([&] {
    ChunkLedger ledger{plan};
    while (const auto chunk = ledger.take()) {
      const BytesView part = BytesView{object}.subspan(chunk->offset_bytes, chunk->size_bytes);
      const auto packed = pack_chunk([&]() -> Result<BytesView> { return part; }, false).value();
      unpack_chunk("", packed.checksum, packed.raw,
                   std::span{target}.subspan(chunk->offset_bytes, chunk->size_bytes))
          .value();
      (void)ledger.arrived(*chunk);
    }
    if (!ledger.complete()) std::abort();
  });
  row("transfer_cut_and_assemble_100MB", static_cast<double>(large_bytes) / seconds / 1e9, "GB/s");
}

}  // namespace
}  // namespace troupe::object_store

int main() {
  troupe::SeededRandom random{1};
  troupe::object_store::bench_small(random);
  troupe::object_store::bench_table(random);
  troupe::object_store::bench_large(random);
  troupe::object_store::bench_transfer(random);
}
