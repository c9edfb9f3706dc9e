#include <fcntl.h>
#include <sys/mount.h>

#include <algorithm>
#include <boost/asio/experimental/awaitable_operators.hpp>
#include <filesystem>
#include <fstream>

#include "object_store/segment.h"
#include "object_store/transfer.h"
#include "tests/worker/fixture.h"

namespace troupe::worker {
namespace {

using object_store::ProducerSegment;
using object_store::ReaderSegment;

// What a process does with its worker's store.
class Store {
 public:
  Store(std::shared_ptr<Peer> peer, uint64_t segment_bytes)
      : peer_(std::move(peer)), segment_(ProducerSegment::create(segment_bytes).value()) {}

  Async<Status> attach() {
    Message message;
    message.descriptors.emplace_back(::fcntl(segment_.fd(), F_DUPFD_CLOEXEC, 0));
    auto reply = co_await peer_->call(Method::attach_segment, std::move(message), 5s);
    if (!reply) co_return std::move(reply).error();
    TROUPE_CO_TRY(const auto attached, protocol::decode<protocol::SegmentAttached>(reply->body));
    number = attached.segment;
    co_return ok();
  }
  Async<Result<protocol::Block>> reserve(uint64_t size, Duration budget = 5s) {
    protocol::ReserveExtent request{size};
    co_return co_await transport::call<protocol::Block>(peer_, Method::reserve_extent, request,
                                                        budget);
  }
  // At the extent's beginning, of which the rest stays reserved.
  Async<Status> seal(ObjectId object, protocol::Block extent, uint64_t size) {
    protocol::SealBlocks seals;
    seals.segment = number;
    seals.items.push_back({object, owner, extent.offset_bytes, size, false});
    auto sealed = co_await transport::call<protocol::Empty>(peer_, Method::seal_blocks, seals, 5s);
    if (!sealed) co_return std::move(sealed).error();
    co_return ok();
  }
  Async<Status> give_back(protocol::Block extent) {
    protocol::ReturnExtents given;
    given.segment = number;
    given.items.push_back({extent.offset_bytes, extent.size_bytes});
    auto back = co_await transport::call<protocol::Empty>(peer_, Method::return_extents, given, 5s);
    if (!back) co_return std::move(back).error();
    co_return ok();
  }
  // An object in an extent that is given back but for it.
  Async<Status> put(ObjectId object, uint8_t fill, uint64_t size) {
    TROUPE_CO_TRY(const auto extent, co_await reserve(size));
    TROUPE_CO_TRY(const auto bytes, segment_.prepare(extent.offset_bytes, size));
    std::fill(bytes.begin(), bytes.end(), fill);
    TROUPE_CO_CHECK(co_await seal(object, extent, size));
    co_return co_await give_back(extent);
  }
  Async<Result<Message>> get(protocol::GetBlock request, Duration budget = 5s) {
    Message message{protocol::encode(request), {}};
    co_return co_await peer_->call(Method::get_block, std::move(message), budget);
  }
  // Reads all of it through a mapping of its own, and gives the pin back.
  Async<Result<Bytes>> read(protocol::GetBlock request, Duration budget = 20s) {
    const ObjectId object = request.object;
    auto reply = co_await get(std::move(request), budget);
    if (!reply) co_return std::move(reply).error();
    TROUPE_CO_TRY(const auto block, protocol::decode<protocol::Block>(reply->body));
    TROUPE_CO_TRY(auto segment, ReaderSegment::open(std::move(reply->descriptors.at(0))));
    TROUPE_CO_TRY(const auto view, segment.view(block.offset_bytes, block.size_bytes));
    Bytes bytes{view.begin(), view.end()};
    TROUPE_CO_TRY(const auto released, co_await release(object));
    (void)released;
    co_return bytes;
  }
  Async<Result<protocol::Empty>> release(ObjectId object, ProcessId as_owner = {}) {
    protocol::ReleaseBlocks request{{object}, as_owner};
    co_return co_await transport::call<protocol::Empty>(peer_, Method::release_blocks, request, 5s);
  }

  ProcessId owner;      // Of what it creates; nil: itself.
  uint64_t number = 0;  // Of its segment.

 private:
  std::shared_ptr<Peer> peer_;
  ProducerSegment segment_;
};

Async<Result<Message>> note_dropped(Message message, std::vector<uint64_t>& dropped) {
  auto request = protocol::decode<protocol::DropSegments>(message.body);
  for (const uint64_t segment : request.value().segments) dropped.push_back(segment);
  Message reply{protocol::encode(protocol::Empty{}), {}};
  co_return reply;
}

Async<Result<Message>> give_and_answer(Store& store, protocol::Block extent) {
  (void)co_await store.give_back(extent);
  Message reply{protocol::encode(protocol::Empty{}), {}};
  co_return reply;
}

protocol::GetBlock get_request(ObjectId object) {
  protocol::GetBlock request;
  request.object = object;
  return request;
}

TEST_F(WorkerTest, AnObjectIsReadByAnotherProcessOfItsJobOnly) {
  with_worker([this]() -> Async<void> {
    const ProcessId producer = ProcessId::random(random);
    const ObjectId object = ObjectId::random(random);
    auto maker_peer = co_await connect(producer, job);
    Store maker{maker_peer, 1 << 20};
    auto reader_peer = co_await connect(ProcessId::random(random), job);
    Store reader{reader_peer, 4096};
    auto stranger_peer = co_await connect(ProcessId::random(random), JobId::random(random));
    Store stranger{stranger_peer, 4096};
    EXPECT_TRUE(co_await maker.attach());
    EXPECT_TRUE(co_await maker.put(object, 42, 100'000));
    auto message = co_await reader.get(get_request(object));
    const auto block = protocol::decode<protocol::Block>(message.value().body).value();
    EXPECT_EQ(block.segment, maker.number);
    EXPECT_EQ(message.value().descriptors.size(), 1u);
    auto segment = ReaderSegment::open(std::move(message.value().descriptors[0]));
    const auto view = segment.value().view(block.offset_bytes, block.size_bytes).value();
    EXPECT_EQ(view.size(), 100'000u);
    EXPECT_EQ(view[99'999], 42);
    auto held = get_request(object);
    held.segments_held = {maker.number};
    auto second = co_await reader.get(held);
    EXPECT_TRUE(second.value().descriptors.empty());
    auto denied = co_await stranger.get(get_request(object));
    EXPECT_EQ(denied.error().code(), Code::denied);
    auto absent = co_await reader.get(get_request(ObjectId::random(random)));
    EXPECT_EQ(absent.error().code(), Code::not_found);
    auto lost = get_request(ObjectId::random(random));
    lost.source.process = ProcessId::random(random);  // An earlier worker of this node.
    lost.source.node = options.node;
    auto gone = co_await reader.get(lost);
    EXPECT_EQ(gone.error().code(), Code::data_loss);
  });
}

TEST_F(WorkerTest, AFullStoreMakesCreatorsWaitAndThenGivesUp) {
  with_worker([this]() -> Async<void> {
    const ProcessId owner = ProcessId::random(random);
    auto peer = co_await connect(owner, job);
    Store maker{peer, 1 << 20};
    EXPECT_TRUE(co_await maker.attach());
    const ObjectId first = ObjectId::random(random);
    EXPECT_TRUE(co_await maker.put(first, 1, 900'000));
    auto full = co_await maker.reserve(900'000, 500ms);
    EXPECT_EQ(full.error().code(), Code::exhausted);
    std::optional<bool> created;
    auto wait = [](Store& store, std::optional<bool>& out, Event& changed) -> Async<void> {
      auto outcome = co_await store.reserve(900'000, 10s);
      out = outcome.has_value();
      changed.pulse();
    };
    spawn(scope, wait(maker, created, head->changed));
    EXPECT_TRUE(co_await maker.release(first, owner));
    co_await head->until([&] { return created.has_value(); });
    EXPECT_TRUE(*created);
  });
}

TEST_F(WorkerTest, MemoryBehindEmptySegmentsGoesToWhoeverNeedsIt) {
  with_worker([this]() -> Async<void> {
    std::vector<uint64_t> dropped;
    client_service.on_message(Method::drop_segments, [&dropped](Message message, CallContext) {
      return note_dropped(std::move(message), dropped);
    });
    const ProcessId owner = ProcessId::random(random);
    auto peer = co_await connect(owner, job);
    Store first{peer, 1 << 20};
    EXPECT_TRUE(co_await first.attach());
    const ObjectId object = ObjectId::random(random);
    EXPECT_TRUE(co_await first.put(object, 1, 900'000));
    EXPECT_TRUE(co_await first.release(object, owner));
    auto other_peer = co_await connect(ProcessId::random(random), job);
    Store second{other_peer, 1 << 20};
    EXPECT_TRUE(co_await second.attach());
    const ObjectId wanted = ObjectId::random(random);
    EXPECT_TRUE(co_await second.put(wanted, 2, 900'000));
    EXPECT_EQ(dropped, std::vector{first.number});
    // Whoever lost its segment attaches another.
    auto refused = co_await first.reserve(1000);
    EXPECT_EQ(refused.error().code(), Code::not_found);
    Store again{peer, 1 << 20};
    EXPECT_TRUE(co_await again.attach());
    EXPECT_NE(again.number, first.number);
    EXPECT_TRUE(co_await again.put(ObjectId::random(random), 3, 1000));
  });
}

TEST_F(WorkerTest, ADeadProcessLeavesSealedObjectsUntilItsJobEnds) {
  with_worker([this]() -> Async<void> {
    auto peer = co_await connect(ProcessId::random(random), job);
    Store maker{peer, 1 << 20};
    maker.owner = ProcessId::random(random);  // On another node.
    EXPECT_TRUE(co_await maker.attach());
    EXPECT_TRUE(co_await maker.put(ObjectId::random(random), 1, 1000));
    EXPECT_TRUE(co_await maker.reserve(1000));
    protocol::JobInfo info;
    info.job = job;
    info.state = "running";
    head->jobs.push_back(info);
    peer->close();
    co_await head->until([this] { return worker->store().used_bytes == 1024; });
    EXPECT_EQ(worker->store().objects, 1u);
    head->jobs[0].state = "succeeded";
    co_await head->until([this] { return worker->store().segments == 0; });
    EXPECT_EQ(worker->store().used_bytes, 0u);
  });
}

TEST_F(WorkerTest, AnExtentIsItsHoldersUntilItIsSealedOrGivenBack) {
  with_worker([this]() -> Async<void> {
    const ProcessId owner = ProcessId::random(random);
    auto peer = co_await connect(owner, job);
    Store maker{peer, 1 << 20};
    EXPECT_TRUE(co_await maker.attach());
    auto extent = co_await maker.reserve(10'000);
    const uint64_t reserved = extent.value().size_bytes;
    EXPECT_GE(reserved, 10'000u);
    EXPECT_EQ(worker->store().used_bytes, reserved);
    const ObjectId object = ObjectId::random(random);
    EXPECT_TRUE(co_await maker.seal(object, extent.value(), 1000));
    EXPECT_EQ(worker->store().used_bytes, reserved);  // It lies in what was reserved.
    // Not twice in one place, nor beyond the end, nor in another's segment.
    auto there = co_await maker.seal(ObjectId::random(random), extent.value(), 1000);
    EXPECT_EQ(there.error().code(), Code::denied);
    protocol::Block rest = extent.value();
    rest.offset_bytes += 1024;
    // Under one name by one owner: the earlier stays, and the place of the later is given back.
    EXPECT_TRUE(co_await maker.seal(object, rest, 1000));
    EXPECT_EQ(worker->store().used_bytes, reserved - 1024);
    there = co_await maker.seal(ObjectId::random(random), rest, 1000);
    EXPECT_EQ(there.error().code(), Code::denied);
    rest.offset_bytes += 1024;
    auto beyond = co_await maker.seal(ObjectId::random(random), rest, reserved);
    EXPECT_EQ(beyond.error().code(), Code::denied);
    auto other_peer = co_await connect(ProcessId::random(random), job);
    Store other{other_peer, 1 << 20};
    EXPECT_TRUE(co_await other.attach());
    other.number = maker.number;
    auto foreign = co_await other.seal(ObjectId::random(random), rest, 1000);
    EXPECT_EQ(foreign.error().code(), Code::denied);
    auto stolen = co_await other.give_back(rest);
    EXPECT_EQ(stolen.error().code(), Code::denied);
    EXPECT_TRUE(co_await maker.give_back(extent.value()));
    EXPECT_EQ(worker->store().used_bytes, 1024u);
    EXPECT_TRUE(co_await maker.release(object, owner));
    EXPECT_EQ(worker->store().used_bytes, 0u);
  });
}

TEST_F(WorkerTest, AFullStoreAsksProcessesForWhatTheyCanDoWithout) {
  with_worker([this]() -> Async<void> {
    auto peer = co_await connect(ProcessId::random(random), job);
    Store holder{peer, 1 << 20};
    EXPECT_TRUE(co_await holder.attach());
    auto extent = co_await holder.reserve(900'000);
    EXPECT_TRUE(extent);
    // It gives its extent back when it is asked.
    client_service.on_message(
        Method::drop_segments,
        [&holder, held = extent.value()](Message, CallContext) -> Async<Result<Message>> {
          return give_and_answer(holder, held);
        });
    auto other_peer = co_await connect(ProcessId::random(random), job);
    Store other{other_peer, 1 << 20};
    EXPECT_TRUE(co_await other.attach());
    EXPECT_TRUE(co_await other.reserve(900'000));
  });
}

// --- Spilling

class SpillTest : public WorkerTest {
 protected:
  static constexpr uint64_t size = 100'000;
  void SetUp() override {
    WorkerTest::SetUp();
    options.spill_folder = folder + "/spill";
    options.spill_bytes_max = 64 << 20;
  }
  std::string spill_path() const { return options.spill_folder + "/" + options.node.to_string(); }
  size_t files() const {
    size_t count = 0;
    for (const auto& entry : std::filesystem::directory_iterator(spill_path())) {
      count += entry.is_regular_file() ? 1 : 0;
    }
    return count;
  }
  // Puts what takes the store's size several times over.
  Async<std::vector<ObjectId>> put_many(Store& maker, size_t count) {
    std::vector<ObjectId> objects;
    for (size_t i = 0; i < count; ++i) {
      objects.push_back(ObjectId::random(random));
      const Status put = co_await maker.put(objects.back(), static_cast<uint8_t>(i), size);
      EXPECT_TRUE(put) << i << ": " << put.error().message();
    }
    co_return objects;
  }
};

TEST_F(SpillTest, FourTimesTheStoreIsReadBack) {
  with_worker([this]() -> Async<void> {
    const ProcessId owner = ProcessId::random(random);
    auto peer = co_await connect(owner, job);
    Store maker{peer, 1 << 20};
    EXPECT_TRUE(co_await maker.attach());
    const auto objects = co_await put_many(maker, 42);
    EXPECT_GT(worker->store().spilled_bytes, uint64_t{3} << 20);
    EXPECT_LE(worker->store().used_bytes, uint64_t{1} << 20);
    auto reader_peer = co_await connect(ProcessId::random(random), job);
    Store reader{reader_peer, 4096};
    for (size_t i = 0; i < objects.size(); ++i) {
      auto bytes = co_await reader.read(get_request(objects[i]));
      EXPECT_TRUE(bytes) << bytes.error().message();
      if (!bytes) co_return;
      EXPECT_EQ(*bytes, Bytes(size, static_cast<uint8_t>(i)));
    }
    // The head hears of it.
    co_await head->until([this] { return head->store_spilled_bytes > 0; });
    for (const ObjectId object : objects) EXPECT_TRUE(co_await maker.release(object, owner));
    EXPECT_EQ(worker->store().spilled_bytes, 0u);
    EXPECT_EQ(worker->store().objects, 0u);
  });
  EXPECT_FALSE(std::filesystem::exists(spill_path())) << "a stopped worker leaves files behind";
}

// What a process sealed in an extent leaves like any other object, and the rest of it stays.
TEST_F(SpillTest, AnExtentStaysAndWhatIsSealedInItLeaves) {
  with_worker([this]() -> Async<void> {
    const ProcessId owner = ProcessId::random(random);
    auto peer = co_await connect(owner, job);
    Store maker{peer, 1 << 20};
    EXPECT_TRUE(co_await maker.attach());
    auto extent = co_await maker.reserve(300'000);
    const ObjectId first = ObjectId::random(random);
    EXPECT_TRUE(co_await maker.seal(first, extent.value(), size));
    const auto others = co_await put_many(maker, 12);
    EXPECT_GT(worker->store().spilled_bytes, 0u);
    // By another process, for the first would have no descriptor.
    auto reader_peer = co_await connect(ProcessId::random(random), job);
    Store reader{reader_peer, 4096};
    EXPECT_TRUE(co_await reader.read(get_request(first)));
    // Sealed where it was reserved, though others came and went around it.
    protocol::Block rest = extent.value();
    rest.offset_bytes += object_store::block_bytes(size);
    const ObjectId second = ObjectId::random(random);
    EXPECT_TRUE(co_await maker.seal(second, rest, size));
    rest.offset_bytes += object_store::block_bytes(size);
    EXPECT_TRUE(co_await maker.give_back(rest));
    for (const ObjectId object : others) EXPECT_TRUE(co_await maker.release(object, owner));
    EXPECT_TRUE(co_await maker.release(first, owner));
    EXPECT_TRUE(co_await maker.release(second, owner));
    EXPECT_EQ(worker->store().spilled_bytes, 0u);
    EXPECT_EQ(worker->store().used_bytes, 0u);
    co_await head->until([this] { return files() == 0; });
  });
}

TEST_F(SpillTest, FilesGoWithTheirObjects) {
  with_worker([this]() -> Async<void> {
    const ProcessId owner = ProcessId::random(random);
    auto peer = co_await connect(ProcessId::random(random), job);
    Store maker{peer, 1 << 20};
    maker.owner = owner;
    auto owner_peer = co_await connect(owner, job);
    Store of_owner{owner_peer, 4096};
    EXPECT_TRUE(co_await of_owner.attach());
    EXPECT_TRUE(co_await maker.attach());
    (void)co_await put_many(maker, 30);
    EXPECT_GT(files(), 0u);
    owner_peer->close();  // It dies.
    co_await head->until([this] { return worker->store().objects == 0 && files() == 0; });
    EXPECT_EQ(worker->store().spilled_bytes, 0u);
  });
}

TEST_F(SpillTest, WhatIsReadStaysInMemoryAndCreatorsWait) {
  with_worker([this]() -> Async<void> {
    const ProcessId owner = ProcessId::random(random);
    auto peer = co_await connect(owner, job);
    Store maker{peer, 1 << 20};
    EXPECT_TRUE(co_await maker.attach());
    const auto objects = co_await put_many(maker, 9);
    auto held = get_request(objects[0]);
    held.segments_held = {maker.number};
    for (const ObjectId object : objects) {
      held.object = object;
      EXPECT_TRUE(co_await maker.get(held));
    }
    auto full = co_await maker.reserve(size, 500ms);
    EXPECT_EQ(full.error().code(), Code::exhausted);
    EXPECT_EQ(worker->store().spilled_bytes, 0u);
    // Whoever waits hears at once that something may leave.
    std::optional<bool> created;
    auto wait = [](Store& store, std::optional<bool>& out, Event& changed) -> Async<void> {
      auto outcome = co_await store.reserve(size, 10s);
      out = outcome.has_value();
      changed.pulse();
    };
    spawn(scope, wait(maker, created, head->changed));
    EXPECT_TRUE(co_await maker.release(objects[3]));
    co_await head->until([&] { return created.has_value(); });
    EXPECT_TRUE(*created);
    auto huge = co_await maker.reserve(2 << 20);
    EXPECT_EQ(huge.error().code(), Code::invalid);
  });
}

TEST_F(SpillTest, WhatWasSpilledComesBackWhileSomethingElseIsRead) {
  with_worker([this]() -> Async<void> {
    auto peer = co_await connect(ProcessId::random(random), job);
    Store maker{peer, 1 << 20};
    EXPECT_TRUE(co_await maker.attach());
    const auto objects = co_await put_many(maker, 20);
    auto reader_peer = co_await connect(ProcessId::random(random), job);
    Store reader{reader_peer, 4096};
    auto held = co_await reader.get(get_request(objects.back()));
    EXPECT_TRUE(held);
    for (size_t i = 0; i < objects.size(); ++i) {
      auto bytes = co_await reader.read(get_request(objects[i]));
      EXPECT_TRUE(bytes) << i << ": " << bytes.error().message();
      if (!bytes) co_return;
      EXPECT_EQ(*bytes, Bytes(size, static_cast<uint8_t>(i)));
    }
  });
}

// While memory is short all the time, and segments come and go.
TEST_F(SpillTest, ManyReadersAtOnceReadWhatWasWritten) {
  with_worker([this]() -> Async<void> {
    auto peer = co_await connect(ProcessId::random(random), job);
    Store maker{peer, 1 << 20};
    EXPECT_TRUE(co_await maker.attach());
    const auto objects = co_await put_many(maker, 30);
    constexpr size_t readers = 6;
    size_t left = readers + 1;
    size_t wrong = 0;
    const auto read_all = [&](size_t first) -> Async<void> {
      auto reader_peer = co_await connect(ProcessId::random(random), job);
      Store reader{reader_peer, 4096};
      for (size_t i = 0; i < 2 * objects.size(); ++i) {
        const size_t which = (first * 5 + i * 7) % objects.size();
        auto bytes = co_await reader.read(get_request(objects[which]));
        if (!bytes || *bytes != Bytes(size, static_cast<uint8_t>(which))) ++wrong;
      }
      --left;
      head->changed.pulse();
    };
    // Takes nearly all memory, and gives it back.
    const auto take_all = [&]() -> Async<void> {
      for (int i = 0; i < 30; ++i) {
        auto extent = co_await maker.reserve(800'000, 200ms);
        if (extent) (void)co_await maker.give_back(extent.value());
      }
      --left;
      head->changed.pulse();
    };
    for (size_t i = 0; i < readers; ++i) spawn(scope, read_all(i));
    spawn(scope, take_all());
    co_await head->until([&] { return left == 0; });
    EXPECT_EQ(wrong, 0U);
  });
}

TEST_F(SpillTest, TheLimitIsKept) {
  options.spill_bytes_max = 1 << 20;
  with_worker([this]() -> Async<void> {
    auto peer = co_await connect(ProcessId::random(random), job);
    Store maker{peer, 1 << 20};
    EXPECT_TRUE(co_await maker.attach());
    (void)co_await put_many(maker, 18);
    Result<protocol::Block> full = error(Code::internal, "");
    for (int i = 0; i < 5; ++i) {
      full = co_await maker.reserve(size, 100ms);
      if (!full) break;
    }
    EXPECT_EQ(full.error().code(), Code::exhausted);
    EXPECT_NE(full.error().message().find("--spill-mib"), std::string::npos);
    EXPECT_LE(worker->store().spilled_bytes, options.spill_bytes_max);
  });
}

TEST_F(SpillTest, ADamagedFileIsDataLossAndTheRestIsRead) {
  with_worker([this]() -> Async<void> {
    auto peer = co_await connect(ProcessId::random(random), job);
    Store maker{peer, 1 << 20};
    EXPECT_TRUE(co_await maker.attach());
    const auto objects = co_await put_many(maker, 20);
    const std::string first = spill_path() + "/1.spill";
    {
      std::fstream file{first, std::ios::in | std::ios::out | std::ios::binary};
      file.seekp(50);
      file.put('x');
    }
    auto reader_peer = co_await connect(ProcessId::random(random), job);
    Store reader{reader_peer, 4096};
    auto lost = co_await reader.read(get_request(objects[0]));
    EXPECT_EQ(lost.error().code(), Code::data_loss);
    EXPECT_NE(lost.error().message().find(first), std::string::npos);
    for (size_t i = 1; i < objects.size(); ++i) {
      auto bytes = co_await reader.read(get_request(objects[i]));
      EXPECT_TRUE(bytes) << bytes.error().message();
    }
  });
}

TEST_F(SpillTest, AFullDiskLosesNothing) {
  const std::string disk = folder + "/disk";
  std::filesystem::create_directory(disk);
  if (::mount("tmpfs", disk.c_str(), "tmpfs", 0, "size=512k") != 0) {
    GTEST_SKIP() << "needs the right to mount";
  }
  options.spill_folder = disk;
  with_worker([this]() -> Async<void> {
    auto peer = co_await connect(ProcessId::random(random), job);
    Store maker{peer, 1 << 20};
    EXPECT_TRUE(co_await maker.attach());
    const auto objects = co_await put_many(maker, 13);
    Result<protocol::Block> full = error(Code::internal, "");
    for (int i = 0; i < 5; ++i) {
      full = co_await maker.reserve(size, 100ms);
      if (!full) break;
      EXPECT_TRUE(co_await maker.give_back(*full));
      EXPECT_TRUE(co_await maker.put(ObjectId::random(random), 9, size));
    }
    EXPECT_EQ(full.error().code(), Code::exhausted);
    EXPECT_NE(full.error().message().find("No space left"), std::string::npos)
        << full.error().message();
    // What is in memory is read from there.
    auto reader_peer = co_await connect(ProcessId::random(random), job);
    Store reader{reader_peer, 4096};
    auto bytes = co_await reader.read(get_request(objects.back()));
    EXPECT_TRUE(bytes) << bytes.error().message();
  });
  EXPECT_EQ(::umount(disk.c_str()), 0);
}

TEST_F(SpillTest, AWorkerRemovesWhatAnEarlierOneLeft) {
  std::filesystem::create_directories(spill_path());
  std::ofstream{spill_path() + "/12.spill"} << "of a killed worker";
  with_worker([this]() -> Async<void> {
    EXPECT_EQ(files(), 0u);
    co_return;
  });
}

TEST_F(SpillTest, AFolderThatCannotBeMadeIsSaidAtTheStart) {
  std::ofstream{folder + "/file"} << "x";
  options.spill_folder = folder + "/file";
  Worker refused{environment(), launcher, options};
  auto start = [&]() -> Async<void> {
    const Status started = co_await refused.start();
    EXPECT_EQ(started.error().code(), Code::invalid);
    EXPECT_NE(started.error().message().find("--spill-dir"), std::string::npos);
    co_await refused.stop();
  };
  spawn(scope, start());
  real.io().run();
}

// Lets two nodes meet without certificates: "host:port" becomes a Unix socket, and who comes
// through it counts as a node.
class NodeNetwork final : public transport::Network {
 public:
  NodeNetwork(const transport::Environment& real, std::string folder)
      : unstall(real.loop), real_(real.network), folder_(std::move(folder)) {}

  // Connections to this port break once so many bytes of bulk have come through them.
  void break_after(uint16_t port, uint64_t bytes) {
    broken_port_ = port;
    bulk_left_ = bytes;
  }
  uint64_t bulk_bytes = 0;  // That came.
  int damage_next = 0;      // So many pieces of bulk.
  bool stalls = false;      // Bulk waits for `unstall`.
  Event unstall;

  Async<Result<std::unique_ptr<transport::Connection>>> connect(transport::Endpoint endpoint,
                                                                Instant deadline) override {
    if (endpoint.is_unix()) co_return co_await real_.connect(endpoint, deadline);
    const transport::Endpoint mapped = map(endpoint);
    if (endpoint.port == broken_port_ && bulk_left_ == 0) {
      co_return error(Code::unavailable, "the node is gone");
    }
    auto made = co_await real_.connect(mapped, deadline);
    if (!made) co_return made;
    auto connection = std::make_unique<NodeConnection>(std::move(*made));
    connection->network = this;
    connection->port = endpoint.port;
    co_return connection;
  }
  Result<std::unique_ptr<transport::Listener>> listen(
      const transport::Endpoint& endpoint) override {
    if (endpoint.is_unix()) return real_.listen(endpoint);
    TROUPE_TRY(auto listener, real_.listen(map(endpoint)));
    return std::make_unique<NodeListener>(std::move(listener), endpoint);
  }

 private:
  struct NodeConnection final : transport::Connection {
    explicit NodeConnection(std::unique_ptr<Connection> c) : inner(std::move(c)) {
      identity.role = transport::Role::node;
    }
    const transport::PeerIdentity& peer() const override { return identity; }
    void land_bulk(
        std::function<transport::Landing(const protocol::FrameHeader&)> landing_of) override {
      inner->land_bulk(std::move(landing_of));
    }
    Async<Result<transport::Frame>> receive() override {
      auto frame = co_await inner->receive();
      if (frame && network != nullptr && !frame->bulk.bytes.empty()) {
        TROUPE_CO_CHECK(co_await network->meddle(port, *frame));
      }
      co_return frame;
    }
    Status send(transport::Frame frame) override { return inner->send(std::move(frame)); }
    Async<void> writable() override { return inner->writable(); }
    bool is_writable() const override { return inner->is_writable(); }
    void close() override { inner->close(); }
    std::unique_ptr<Connection> inner;
    transport::PeerIdentity identity;
    NodeNetwork* network = nullptr;  // Of the side that connected.
    uint16_t port = 0;
  };
  Async<Status> meddle(uint16_t port, transport::Frame& frame) {
    while (stalls) co_await unstall.wait();
    const size_t count = frame.bulk.bytes.size();
    bulk_bytes += count;
    if (port == broken_port_) {
      bulk_left_ -= std::min(bulk_left_, count);
      if (bulk_left_ == 0) co_return error(Code::unavailable, "the node died");
    }
    if (damage_next > 0) {
      --damage_next;
      const_cast<uint8_t&>(frame.bulk.bytes[count / 2]) ^= 1;
    }
    co_return ok();
  }
  struct NodeListener final : transport::Listener {
    NodeListener(std::unique_ptr<Listener> l, transport::Endpoint e)
        : inner(std::move(l)), at(std::move(e)) {}
    Async<Result<std::unique_ptr<transport::Connection>>> accept() override {
      auto made = co_await inner->accept();
      if (!made) co_return made;
      co_return std::make_unique<NodeConnection>(std::move(*made));
    }
    const transport::Endpoint& endpoint() const override { return at; }
    Async<void> stop() override { return inner->stop(); }
    std::unique_ptr<Listener> inner;
    transport::Endpoint at;
  };
  transport::Endpoint map(const transport::Endpoint& endpoint) const {
    transport::Endpoint mapped;
    mapped.unix_path = folder_ + "/port-" + std::to_string(endpoint.port);
    return mapped;
  }
  transport::Network& real_;
  std::string folder_;
  uint16_t broken_port_ = 0;
  uint64_t bulk_left_ = 0;
};

void expect_bytes(const Result<Bytes>& read, uint64_t size, uint8_t value) {
  EXPECT_TRUE(read) << read.error().message();
  if (!read) return;
  EXPECT_EQ(read->size(), size);
  EXPECT_TRUE(std::ranges::all_of(*read, [value](uint8_t byte) { return byte == value; }));
}

size_t open_descriptors() {
  const std::filesystem::directory_iterator all{"/proc/self/fd"};
  return static_cast<size_t>(std::distance(begin(all), end(all)));
}

Async<Result<Message>> note_copied(Message message, std::vector<bool>& dropped, Event& changed) {
  dropped.push_back(protocol::decode<protocol::ObjectCopied>(message.body).value().dropped);
  changed.pulse();
  Message reply{protocol::encode(protocol::Empty{}), {}};
  co_return reply;
}

// Several nodes beside the fixture's worker, all in one loop.
class NodesTest : public WorkerTest {
 protected:
  static constexpr uint64_t size = 5 * object_store::transfer_chunk_bytes + 12'345;

  void SetUp() override {
    WorkerTest::SetUp();
    network.emplace(environment(), folder);
    network_override = &*network;
    options.store_capacity_bytes = 64 << 20;
    options.host = "127.0.0.1";
    options.port = 7;
  }
  // Runs `body` beside the worker and `count` more.
  void with_nodes(size_t count, std::function<Async<void>()> body) {
    const auto base = environment();
    const transport::Environment between{base.loop, base.blocking, base.clock, base.random,
                                         *network};
    for (size_t i = 0; i < count; ++i) {
      WorkerOptions other = options;
      other.node = NodeId::random(random);
      other.worker_socket = folder + "/other-" + std::to_string(i) + ".sock";
      other.port = static_cast<uint16_t>(8 + i);
      nodes.push_back(std::make_unique<Worker>(between, launcher, other));
      sockets.push_back(other.worker_socket);
    }
    with_worker([&]() -> Async<void> {
      for (const auto& node : nodes) EXPECT_TRUE(co_await node->start());
      co_await body();
      for (const auto& node : nodes) co_await node->stop();
    });
    nodes.clear();
  }
  // Puts an object of one byte's value on a node, for an owner that stays elsewhere.
  Async<ObjectId> put_on(size_t node, uint8_t value, uint64_t bytes = size) {
    auto peer = co_await connect(ProcessId::random(random), job, sockets[node]);
    makers.push_back(std::make_unique<Store>(peer, 64 << 20));
    makers.back()->owner = owner.process;
    EXPECT_TRUE(co_await makers.back()->attach());
    const ObjectId object = ObjectId::random(random);
    EXPECT_TRUE(co_await makers.back()->put(object, value, bytes));
    co_return object;
  }
  protocol::GetBlock request_from(ObjectId object, const Worker& source) {
    auto request = get_request(object);
    request.source = source.address();
    return request;
  }
  // Answers as the owner of objects, through `client_service`.
  Async<void> serve(transport::Listener* listener) {
    for (;;) {
      auto connection = co_await listener->accept();
      if (!connection) co_return;
      const Instant deadline = environment().clock.now() + 5s;
      protocol::Hello self;
      self.kind = "driver";
      self.address = owner;
      auto peer = co_await Peer::start(scope, environment(), std::move(*connection), client_service,
                                       self, deadline);
      if (peer) clients.push_back(*peer);
    }
  }
  Async<Store*> reader_on(std::string socket) {
    auto peer = co_await connect(ProcessId::random(random), job, std::move(socket));
    makers.push_back(std::make_unique<Store>(peer, 4096));
    co_return makers.back().get();
  }

  std::optional<NodeNetwork> network;
  std::vector<std::unique_ptr<Worker>> nodes;
  std::vector<std::string> sockets;
  std::vector<std::unique_ptr<Store>> makers;
  protocol::ProcessAddress owner{ProcessId::random(random), {}, {}, {}, {}};
};

TEST_F(NodesTest, PullsAnObjectFromAnotherNodeOnceForAll) {
  with_nodes(1, [&]() -> Async<void> {
    const ObjectId object = co_await put_on(0, 7);
    auto request = request_from(object, *nodes[0]);
    Store& first = *co_await reader_on(options.worker_socket);
    Store& second = *co_await reader_on(options.worker_socket);
    using namespace boost::asio::experimental::awaitable_operators;
    auto [one, two] = co_await (first.get(request, 10s) && second.get(request, 10s));
    const auto block = protocol::decode<protocol::Block>(one.value().body).value();
    const auto same = protocol::decode<protocol::Block>(two.value().body).value();
    EXPECT_EQ(block.offset_bytes, same.offset_bytes);
    EXPECT_EQ(worker->store().objects, 1u);
    EXPECT_EQ(nodes[0]->store_sent_bytes(), size);
    auto segment = ReaderSegment::open(std::move(one.value().descriptors[0]));
    const auto view = segment.value().view(block.offset_bytes, block.size_bytes).value();
    EXPECT_EQ(view.size(), size);
    EXPECT_TRUE(std::all_of(view.begin(), view.end(), [](uint8_t byte) { return byte == 7; }));

    EXPECT_TRUE(co_await first.release(object));
    EXPECT_EQ(worker->store().objects, 1u);
    EXPECT_TRUE(co_await second.release(object));
    EXPECT_EQ(worker->store().objects, 0u);  // Nobody pins the copy any more, or owns it.

    auto absent = request_from(ObjectId::random(random), *nodes[0]);
    auto lost = co_await first.get(absent, 10s);
    EXPECT_EQ(lost.error().code(), Code::not_found);
    // Nor is there anything for another job.
    auto stranger_peer = co_await connect(ProcessId::random(random), JobId::random(random));
    Store stranger{stranger_peer, 4096};
    auto kept = co_await stranger.get(request, 10s);
    EXPECT_EQ(kept ? Code::ok : kept.error().code(), Code::not_found);
    // A local process is no node: chunks are not for it.
    protocol::FetchChunk chunk{object, job, 0, 10};
    auto denied =
        co_await transport::call<protocol::Chunk>(stranger_peer, Method::fetch_chunk, chunk, 5s);
    EXPECT_EQ(denied.error().code(), Code::denied);
  });
}

TEST_F(NodesTest, AnEmptyObjectAndOneOfExactlyAChunkArrive) {
  with_nodes(1, [&]() -> Async<void> {
    Store& reader = *co_await reader_on(options.worker_socket);
    for (const uint64_t bytes : {uint64_t{0}, object_store::transfer_chunk_bytes}) {
      const ObjectId object = co_await put_on(0, 5, bytes);
      auto request = request_from(object, *nodes[0]);
      auto read = co_await reader.read(request);
      expect_bytes(read, bytes, 5);
    }
  });
}

// Each reader asks another, so the node of the object sends it once: not only when they come one
// after the other, but while it is still on its way to those above.
TEST_F(NodesTest, ReadersServeEachOtherWhileTheyRead) {
  with_nodes(4, [&]() -> Async<void> {
    const ObjectId object = co_await put_on(0, 9);
    std::vector<Store*> readers;
    std::vector<protocol::GetBlock> requests;
    for (size_t i = 1; i < nodes.size(); ++i) {
      readers.push_back(co_await reader_on(sockets[i]));
      auto request = request_from(object, *nodes[0]);
      request.owner = owner;
      if (i > 1) request.copies = {nodes[i - 1]->address()};
      requests.push_back(request);
    }
    using namespace boost::asio::experimental::awaitable_operators;
    auto [one, two, three] =
        co_await (readers[2]->read(requests[2]) && readers[1]->read(requests[1]) &&
                  readers[0]->read(requests[0]));
    for (const auto* read : {&one, &two, &three}) {
      expect_bytes(*read, size, 9);
    }
    EXPECT_EQ(nodes[0]->store_sent_bytes(), size);
    EXPECT_EQ(nodes[1]->store_sent_bytes(), size);
    EXPECT_EQ(nodes[2]->store_sent_bytes(), size);
    EXPECT_EQ(nodes[3]->store_sent_bytes(), 0u);
  });
}

TEST_F(NodesTest, ACopyStaysUntilItsOwnerFreesItOrMemoryIsShort) {
  with_nodes(2, [&]() -> Async<void> {
    // The owner is a process beside the second node.
    std::vector<bool> dropped;
    client_service.on_message(Method::object_copied,
                              [&](Message message, CallContext) -> Async<Result<Message>> {
                                return note_copied(std::move(message), dropped, head->changed);
                              });
    transport::Endpoint owners;
    owners.host = owner.host = "127.0.0.1";
    owners.port = owner.port = 99;
    owner.node = NodeId::random(random);
    auto listener = network->listen(owners).value();
    spawn(scope, serve(listener.get()));
    const ObjectId object = co_await put_on(0, 3);
    auto request = request_from(object, *nodes[0]);
    request.owner = owner;
    Store& reader = *co_await reader_on(sockets[1]);
    EXPECT_TRUE(co_await reader.read(request));
    EXPECT_TRUE(co_await reader.read(request));
    EXPECT_EQ(nodes[0]->store_sent_bytes(), size);  // Read twice, brought once.
    EXPECT_EQ(nodes[1]->store().objects, 1u);
    co_await head->until([&] { return dropped == std::vector{false}; });
    // Something larger needs the room.
    const ObjectId large = co_await put_on(0, 4, uint64_t{35} << 20);
    auto second = request_from(large, *nodes[0]);
    EXPECT_TRUE(co_await reader.read(second));
    const ObjectId larger = co_await put_on(1, 4, uint64_t{60} << 20);
    (void)larger;
    co_await head->until([&] { return dropped == std::vector{false, true}; });
    EXPECT_EQ(nodes[1]->store().objects, 1u);
    co_await listener->stop();
  });
}

TEST_F(NodesTest, AnotherCopyIsReadWhenASourceIsGone) {
  with_nodes(3, [&]() -> Async<void> {
    const ObjectId object = co_await put_on(0, 6);
    Store& reader = *co_await reader_on(sockets[1]);
    auto request = request_from(object, *nodes[0]);
    request.owner = owner;
    EXPECT_TRUE(co_await reader.read(request));
    co_await nodes[0]->stop();
    // A worker that never knew it, the one that is gone, and one that has it.
    request.copies = {nodes[2]->address(), nodes[0]->address(), nodes[1]->address()};
    Store& last = *co_await reader_on(options.worker_socket);
    auto read = co_await last.read(request);
    expect_bytes(read, size, 6);
    EXPECT_EQ(nodes[1]->store_sent_bytes(), size);
    // Without that one it is lost, and says so.
    co_await nodes[1]->stop();
    Store& late = *co_await reader_on(sockets[2]);
    auto lost = co_await late.read(request);
    EXPECT_EQ(lost.error().code(), Code::data_loss);
    EXPECT_NE(lost.error().message().find(object.to_string()), std::string::npos);
    EXPECT_EQ(nodes[2]->store().objects, 0u);
    EXPECT_EQ(nodes[2]->store().used_bytes, 0u);
  });
}

TEST_F(NodesTest, ASourceThatDiesInTheMiddleIsReplacedAndWhatCameIsKept) {
  with_nodes(2, [&]() -> Async<void> {
    const ObjectId object = co_await put_on(0, 6, uint64_t{48} << 20);
    Store& reader = *co_await reader_on(sockets[1]);
    auto request = request_from(object, *nodes[0]);
    request.owner = owner;
    EXPECT_TRUE(co_await reader.read(request));
    request.source = nodes[1]->address();
    request.copies = {nodes[0]->address()};
    network->break_after(nodes[0]->address().port, uint64_t{20} << 20);
    Store& last = *co_await reader_on(options.worker_socket);
    auto read = co_await last.read(request);
    expect_bytes(read, uint64_t{48} << 20, 6);
    const uint64_t from_second = nodes[1]->store_sent_bytes();
    EXPECT_GT(from_second, 0u);
    EXPECT_LE(from_second, uint64_t{36} << 20) << "what had come was asked for again";
  });
}

TEST_F(NodesTest, DamageOnTheWayIsAskedForAgain) {
  with_nodes(1, [&]() -> Async<void> {
    const ObjectId object = co_await put_on(0, 6);
    network->damage_next = 3;
    Store& reader = *co_await reader_on(options.worker_socket);
    auto request = request_from(object, *nodes[0]);
    auto read = co_await reader.read(request);
    expect_bytes(read, size, 6);
    EXPECT_EQ(network->damage_next, 0);
    network->damage_next = 1000;
    auto lost = co_await reader.read(request);
    EXPECT_EQ(lost.error().code(), Code::data_loss);
    EXPECT_EQ(worker->store().used_bytes, 0u);
  });
}

TEST_F(NodesTest, ASlowLinkGetsCompressedChunks) {
  options.compress_below_bytes_s = 1e18;  // Any link is slow.
  with_nodes(1, [&]() -> Async<void> {
    constexpr uint64_t large = uint64_t{56} << 20;
    const ObjectId object = co_await put_on(0, 6, large);
    Store& reader = *co_await reader_on(options.worker_socket);
    auto read = co_await reader.read(request_from(object, *nodes[0]));
    expect_bytes(read, large, 6);
    EXPECT_LT(network->bulk_bytes, large) << "nothing was compressed";
    // The first chunks come as they are: what the link gives has to be seen.
    EXPECT_GE(network->bulk_bytes, 2 * object_store::transfer_chunk_bytes);
  });
}

TEST_F(NodesTest, WhoGivesUpLeavesNothingBehind) {
  with_nodes(1, [&]() -> Async<void> {
    const ObjectId object = co_await put_on(0, 6, uint64_t{48} << 20);
    Store& reader = *co_await reader_on(options.worker_socket);
    auto request = request_from(object, *nodes[0]);
    EXPECT_TRUE(co_await reader.read(request));
    const size_t descriptors = open_descriptors();
    network->stalls = true;
    auto late = co_await reader.read(request, 100ms);
    EXPECT_EQ(late.error().code(), Code::deadline_exceeded);
    network->stalls = false;
    network->unstall.pulse();
    co_await head->until(
        [&] { return worker->store().used_bytes == 0 && nodes[0]->store().pinned_objects == 0; });
    EXPECT_EQ(open_descriptors(), descriptors);
    EXPECT_TRUE(co_await reader.read(request));
  });
}

TEST_F(NodesTest, WhatIsMadeHereEndsAStalledPullOfIt) {
  with_nodes(1, [&]() -> Async<void> {
    const ObjectId object = co_await put_on(0, 6);
    Store& reader = *co_await reader_on(options.worker_socket);
    auto peer = co_await connect(ProcessId::random(random), job);
    Store maker{peer, 32 << 20};
    maker.owner = owner.process;
    EXPECT_TRUE(co_await maker.attach());
    network->stalls = true;
    const auto make = [&]() -> Async<Status> {
      co_await head->until([&] { return worker->store().unsealed_objects == 1; });
      co_return co_await maker.put(object, 7, size);
    };
    using namespace boost::asio::experimental::awaitable_operators;
    auto [read, made] = co_await (reader.read(request_from(object, *nodes[0]), 10s) && make());
    EXPECT_TRUE(made) << made.error().to_string();
    expect_bytes(read, size, 7);
    EXPECT_EQ(worker->store().unsealed_objects, 1u) << "a chunk may still land";
    network->stalls = false;
    network->unstall.pulse();
    co_await head->until([&] { return worker->store().unsealed_objects == 0; });
    EXPECT_EQ(worker->store().objects, 1u);
  });
}

TEST_F(NodesTest, ASpilledObjectIsSentToo) {
  options.spill_folder = folder + "/spill";
  options.spill_bytes_max = 256 << 20;
  with_nodes(1, [&]() -> Async<void> {
    const ObjectId object = co_await put_on(0, 6);
    auto peer = co_await connect(ProcessId::random(random), job, sockets[0]);
    Store other{peer, 64 << 20};
    EXPECT_TRUE(co_await other.attach());
    EXPECT_TRUE(co_await other.put(ObjectId::random(random), 1, uint64_t{60} << 20));
    EXPECT_EQ(nodes[0]->store().spilled_objects, 1u);
    Store& reader = *co_await reader_on(options.worker_socket);
    auto read = co_await reader.read(request_from(object, *nodes[0]));
    expect_bytes(read, size, 6);
  });
}

TEST_F(WorkerTest, RefusesASegmentThatIsNotSealed) {
  with_worker([this]() -> Async<void> {
    auto peer = co_await connect(ProcessId::random(random), job);
    Message message;
    message.descriptors.emplace_back(::open("/dev/zero", O_RDWR | O_CLOEXEC));
    auto refused = co_await peer->call(Method::attach_segment, std::move(message), 5s);
    EXPECT_EQ(refused.error().code(), Code::denied);
    auto empty = co_await peer->call(Method::attach_segment, Message(), 5s);
    EXPECT_EQ(empty.error().code(), Code::invalid);
  });
}

}  // namespace
}  // namespace troupe::worker
