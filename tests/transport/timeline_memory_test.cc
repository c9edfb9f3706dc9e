#include "transport/timeline_memory.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>

#include "transport/real_environment.h"

namespace troupe::transport {
namespace {

FileDescriptor file_of(size_t bytes, int seals) {
  FileDescriptor file{::memfd_create("test", MFD_CLOEXEC | MFD_ALLOW_SEALING)};
  EXPECT_EQ(::ftruncate(file.get(), static_cast<off_t>(bytes)), 0);
  EXPECT_EQ(::fcntl(file.get(), F_ADD_SEALS, seals), 0);
  return file;
}

TEST(TimelineMemory, IsReadAfterItsWriterHasGone) {
  RealEnvironment real;
  auto memory = TimelineMemory::create(real.environment().clock).value();
  TimelineEvent event;
  event.kind = TimelineKind::run;
  event.id = 42;
  event.name = memory->timeline().name("work");
  event.start = memory->timeline().now();
  const auto view = TimelineView::open(memory->share().value()).value();
  memory->timeline().add(event);
  memory.reset();
  const auto copy = view.read().value();
  const auto events = events_of(copy.records);
  ASSERT_EQ(events.size(), 1u);
  EXPECT_EQ(events[0].id, 42u);
  EXPECT_EQ(copy.names[events[0].name], "work");
}

TEST(TimelineMemory, WhatItsReaderCouldNotTrustIsRefused) {
  const auto code = [](FileDescriptor file) {
    auto view = TimelineView::open(std::move(file));
    return view ? view->read().error().code() : view.error().code();
  };
  EXPECT_EQ(code(file_of(timeline_bytes, F_SEAL_GROW)), Code::denied);
  EXPECT_EQ(code(file_of(timeline_bytes - 1, F_SEAL_SHRINK)), Code::invalid);
  EXPECT_EQ(code(file_of(timeline_bytes + 4096, F_SEAL_SHRINK)), Code::invalid);
  EXPECT_EQ(code(file_of(timeline_bytes, F_SEAL_SHRINK)), Code::invalid) << "nothing is in it";
  EXPECT_EQ(code(FileDescriptor{::open("/dev/null", O_RDWR | O_CLOEXEC)}), Code::denied);
  EXPECT_EQ(code(FileDescriptor{}), Code::denied);
}

TEST(TimelineMemory, IsNotMadeWhenItIsTurnedOff) {
  RealEnvironment real;
  ::setenv("TROUPE_TIMELINE", "0", 1);
  EXPECT_EQ(TimelineMemory::create_if_on(real.environment().clock).value(), nullptr);
  ::unsetenv("TROUPE_TIMELINE");
  EXPECT_NE(TimelineMemory::create_if_on(real.environment().clock).value(), nullptr);
}

}  // namespace
}  // namespace troupe::transport
