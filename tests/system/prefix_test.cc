// An installed prefix is enough to build and run programs: find_package(Troupe),
// troupe_add_program.
#include <gtest/gtest.h>

#include <fstream>

#include "tests/system/cluster.h"

namespace troupe::test {
namespace {

TEST(PrefixSystem, TheExamplesBuildAndRunAgainstAnInstalledPrefix) {
  Cluster cluster;
  const std::string prefix = cluster.folder() / "prefix";
  const std::string build = cluster.folder() / "build";
  const std::string source = std::string(TROUPE_SOURCE) + "/sdk/examples";
  const std::string cmake = TROUPE_CMAKE;
  const std::chrono::seconds limit{300};
  const Outcome installed = run({cmake, "--install", TROUPE_BUILD, "--prefix", prefix}, {}, limit);
  ASSERT_EQ(installed.status, 0) << installed.err << installed.out;
  const Outcome configured = run({cmake, "-S", source, "-B", build, "-G", "Ninja",
                                  "-DCMAKE_PREFIX_PATH=" + prefix, "-DCMAKE_BUILD_TYPE=Release"},
                                 {}, limit);
  ASSERT_EQ(configured.status, 0) << configured.err << configured.out;
  const Outcome built = run({cmake, "--build", build}, {}, limit);
  ASSERT_EQ(built.status, 0) << built.err << built.out;

  const auto troupe = [&](std::vector<std::string> arguments) {
    arguments.insert(arguments.begin(), prefix + "/bin/troupe");
    return run(arguments, cluster.variables());
  };
  const Outcome up = troupe({"up", "--workers", "2", "--gateway-port", "0"});
  ASSERT_EQ(up.status, 0) << up.err;
  const auto text = cluster.folder() / "text";
  std::ofstream{text} << "the cat and the dog\n";
  const Outcome hello = run({build + "/hello_task"}, cluster.variables());
  EXPECT_EQ(hello.out, "Hello, world! Hello, world! \n") << hello.err;
  const Outcome counter = run({build + "/counter_actor"}, cluster.variables());
  EXPECT_EQ(counter.out, "value: 5060\nerror: a counter only grows\n") << counter.err;
  const Outcome pi = run({build + "/parallel_pi", "8", "50000"}, cluster.variables());
  EXPECT_TRUE(pi.out.starts_with("pi is about 3.1")) << pi.out << pi.err;
  const Outcome words = run({build + "/word_count", text}, cluster.variables());
  EXPECT_TRUE(words.out.starts_with("the 2\n")) << words.out << words.err;
  EXPECT_EQ(troupe({"down"}).status, 0);
}

}  // namespace
}  // namespace troupe::test
