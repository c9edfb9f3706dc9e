#include "worker/machine.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

namespace troupe::worker {
namespace {

class MachineTest : public testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = "/tmp/troupe-machine-XXXXXX";
    ASSERT_NE(::mkdtemp(pattern.data()), nullptr);
    root = pattern;
    write("/proc/meminfo", "MemTotal:       4096 kB\nMemFree:  1 kB\n");
  }
  void TearDown() override { std::filesystem::remove_all(root); }
  void write(const std::string& path, const std::string& text) {
    std::filesystem::create_directories(std::filesystem::path(root + path).parent_path());
    std::ofstream(root + path) << text;
  }
  std::string root;
};

TEST_F(MachineTest, TheTightestCgroupLimitHolds) {
  EXPECT_EQ(detect_memory_bytes(root), 4096u * 1024);
  write("/proc/self/cgroup", "0::/a/b\n");
  write("/sys/fs/cgroup/a/cpu.max", "50000 100000\n");
  write("/sys/fs/cgroup/a/b/cpu.max", "max 100000\n");
  write("/sys/fs/cgroup/a/memory.max", "1048576\n");
  EXPECT_EQ(detect_cpu_milli(root), 500);
  EXPECT_EQ(detect_memory_bytes(root), 1048576u);
}

TEST_F(MachineTest, ReadsTheFirstCgroupVersion) {
  write("/proc/self/cgroup", "5:cpu,cpuacct:/x\n6:memory:/x\n");
  write("/sys/fs/cgroup/cpu/x/cpu.cfs_quota_us", "25000\n");
  write("/sys/fs/cgroup/cpu/x/cpu.cfs_period_us", "100000\n");
  write("/sys/fs/cgroup/memory/memory.limit_in_bytes", "2097152\n");
  EXPECT_EQ(detect_cpu_milli(root), 250);
  EXPECT_EQ(detect_memory_bytes(root), 2097152u);
}

TEST_F(MachineTest, WhatIsUsedIsTheMachinesOrTheTightestCgroups) {
  write("/proc/meminfo", "MemTotal:       4096 kB\nMemAvailable:   1024 kB\n");
  ProcMachineUsage usage{root};
  EXPECT_EQ(usage.memory_bytes(), 4096u * 1024);
  EXPECT_EQ(usage.memory_used_bytes(), 3072u * 1024);
  write("/proc/self/cgroup", "0::/a/b\n");
  write("/sys/fs/cgroup/a/memory.max", "1048576\n");
  write("/sys/fs/cgroup/a/memory.current", "700000\n");
  write("/sys/fs/cgroup/a/memory.stat", "anon 400000\ninactive_file 200000\n");
  write("/sys/fs/cgroup/a/b/memory.current", "5\n");
  EXPECT_EQ(usage.memory_bytes(), 1048576u);
  EXPECT_EQ(usage.memory_used_bytes(), 500000u);
}

TEST_F(MachineTest, OfAProcessOnlyItsOwnMemoryCounts) {
  write("/proc/12/status", "VmRSS:\t  900 kB\nRssAnon:\t  300 kB\nRssShmem:\t 500 kB\n");
  ProcMachineUsage usage{root};
  EXPECT_EQ(usage.process_bytes(12), 300u * 1024);
  EXPECT_EQ(usage.process_bytes(13), 0u);
}

TEST_F(MachineTest, CountsDevicesNotTheirControllers) {
  EXPECT_EQ(detect_gpus(root), 0u);
  for (const char* name : {"nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm"}) {
    write(std::string("/dev/") + name, "");
  }
  EXPECT_EQ(detect_gpus(root), 2u);
}

}  // namespace
}  // namespace troupe::worker
