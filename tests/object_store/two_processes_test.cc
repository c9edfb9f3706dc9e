// A producer in a process of its own, as in life: the descriptor arrives over a socket, the table
// says where the objects lie, and the producer is killed while they are read.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstring>

#include "base/random.h"
#include "object_store/object_table.h"
#include "object_store/segment.h"
#include "tests/object_store/leak_check.h"

namespace troupe::object_store {
namespace {

constexpr uint64_t segment_bytes = uint64_t{1} << 30;
constexpr uint64_t object_size_bytes = 8 << 20;
constexpr int object_count = 4;

bool send_descriptor(int socket, int fd) {
  char byte = 0;
  iovec part{&byte, 1};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof(control);
  cmsghdr* header = CMSG_FIRSTHDR(&message);
  header->cmsg_level = SOL_SOCKET;
  header->cmsg_type = SCM_RIGHTS;
  header->cmsg_len = CMSG_LEN(sizeof(int));
  std::memcpy(CMSG_DATA(header), &fd, sizeof(int));
  return ::sendmsg(socket, &message, 0) == 1;
}

FileDescriptor receive_descriptor(int socket) {
  char byte = 0;
  iovec part{&byte, 1};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof(control);
  if (::recvmsg(socket, &message, MSG_CMSG_CLOEXEC) != 1) return {};
  const cmsghdr* header = CMSG_FIRSTHDR(&message);
  if (header == nullptr || header->cmsg_type != SCM_RIGHTS) return {};
  int fd = -1;
  std::memcpy(&fd, CMSG_DATA(header), sizeof(int));
  return FileDescriptor{fd};
}

template <class T>
bool send_value(int socket, const T& value) {
  return ::send(socket, &value, sizeof(value), MSG_NOSIGNAL) == sizeof(value);
}
template <class T>
bool receive_value(int socket, T& value) {
  return ::recv(socket, &value, sizeof(value), MSG_WAITALL) == sizeof(value);
}

uint8_t pattern(uint64_t object, uint64_t index) {
  return static_cast<uint8_t>(object * 31 + index * 7 + (index >> 12));
}

// Writes each block that it is told, says so, and waits for the next until it is killed.
void produce(int socket) {
  auto segment = ProducerSegment::create(segment_bytes);
  if (!segment || !send_descriptor(socket, segment->fd())) return;
  Block block;
  for (uint64_t object = 0; receive_value(socket, block); ++object) {
    auto bytes = segment->prepare(block.offset_bytes, block.size_bytes);
    if (!bytes) return;
    for (uint64_t i = 0; i < bytes->size(); ++i) (*bytes)[i] = pattern(object, i);
    if (!send_value(socket, object)) return;
  }
}

using TwoProcessesTest = LeakChecked;

TEST_F(TwoProcessesTest, ObjectsStayReadableWhenTheirProducerIsKilled) {
  int sockets[2];
  ASSERT_EQ(::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sockets), 0);
  FileDescriptor ours{sockets[0]}, theirs{sockets[1]};
  const pid_t child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    ours = FileDescriptor{};
    produce(theirs.get());
    ::_exit(1);
  }
  theirs = FileDescriptor{};

  const JobId job{{1, 1}};
  const Caller producer{ProcessId{{2, 1}}, job}, reader{ProcessId{{2, 2}}, job};
  SeededRandom random{1};
  ObjectTable table{segment_bytes, random};
  ASSERT_TRUE(table.attach(producer));
  ASSERT_TRUE(table.attach(reader));
  auto opened = ReaderSegment::open(receive_descriptor(ours.get()));
  ASSERT_TRUE(opened) << opened.error().to_string();
  ReaderSegment segment = std::move(opened).value();
  EXPECT_EQ(segment.size_bytes(), segment_bytes);
  const SegmentId segment_id = table.add_segment(producer, segment.size_bytes()).value();

  // The last object is written but never sealed.
  for (uint64_t n = 0; n < object_count; ++n) {
    const ObjectId id{{3, n + 1}};
    const CreateRequest request{
        .object = id, .owner = reader.process, .size_bytes = object_size_bytes};
    const Block block = table.create(producer, request, Instant{}).value();
    ASSERT_TRUE(send_value(ours.get(), block));
    uint64_t written = 0;
    ASSERT_TRUE(receive_value(ours.get(), written));
    ASSERT_EQ(written, n);
    if (n + 1 < object_count) {
      ASSERT_TRUE(table.seal(producer, id));
    }
  }
  // The receiver of the descriptor cannot map it writable.
  EXPECT_EQ(::mmap(nullptr, page_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, segment.fd(), 0),
            MAP_FAILED);

  const auto view_of = [&](uint64_t n) {
    const Block block = table.get(reader, ObjectId{{3, n + 1}}).value().value();
    return segment.view(block.offset_bytes, block.size_bytes).value();
  };
  const BytesView before = view_of(0);
  ASSERT_EQ(::kill(child, SIGKILL), 0);
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  ASSERT_TRUE(WIFSIGNALED(status));
  table.process_died(producer.process);

  for (uint64_t n = 0; n + 1 < object_count; ++n) {
    const BytesView view = n == 0 ? before : view_of(n);
    ASSERT_EQ(view.size(), object_size_bytes);
    uint64_t wrong = 0;
    for (uint64_t i = 0; i < view.size(); ++i) wrong += view[i] != pattern(n, i) ? 1 : 0;
    EXPECT_EQ(wrong, 0U) << "object " << n;
  }
  EXPECT_EQ(table.get(reader, ObjectId{{3, object_count}}).error().code(), Code::not_found);
  EXPECT_EQ(table.used_bytes(), (object_count - 1) * object_size_bytes);
  for (uint64_t n = 0; n + 1 < object_count; ++n) {
    ASSERT_TRUE(table.release_owner(reader.process, ObjectId{{3, n + 1}}));
  }
  EXPECT_EQ(table.take_dropped(), std::vector{segment_id});
}

}  // namespace
}  // namespace troupe::object_store
