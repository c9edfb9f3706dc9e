// Scans the whole tree, and shows on planted violations that each rule would find one.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <sstream>

#include "rules.h"
#include "scan.h"

namespace troupe::tidy {
namespace {

namespace fs = std::filesystem;

size_t arrows(const std::string& path, const std::string& text) {
  return check_arrows({path, text}).size();
}
size_t adapters(const std::string& path, const std::string& text) {
  return check_adapters({path, text}).size();
}
size_t coroutines(const std::string& text) {
  return check_coroutines({"runtime/head/x.cc", text}).size();
}

TEST(Scan, BlanksCommentsAndLiteralsInPlace) {
  const std::string text = "a(\"b\\\"c\", 'd'); // e\nf /* g\nh */ i = 1'000 + R\"x(j)\" )x\";\n";
  const std::string code = code_only(text);
  EXPECT_EQ(code.size(), text.size());
  EXPECT_EQ(line_of(code, code.size() - 1), line_of(text, text.size() - 1));
  for (const char gone : std::string("bcdeghj"))
    EXPECT_EQ(code.find(gone), std::string::npos) << gone;
  for (const char kept : std::string("afi1")) EXPECT_NE(code.find(kept), std::string::npos) << kept;
}

TEST(Scan, FindsIncludesButNotThoseInCommentsOrStrings) {
  const auto found = includes(
      "#include \"a/b.h\"\n// #include \"c\"\n  #  include <d>\nauto s = R\"(\n#include "
      "\"e\"\n)\";\n");
  ASSERT_EQ(found.size(), 2u);
  EXPECT_EQ(found[0].path, "a/b.h");
  EXPECT_TRUE(found[0].quoted);
  EXPECT_EQ(found[1].path, "d");
  EXPECT_EQ(found[1].line, 3);
}

TEST(Arrows, AnIncludeAgainstTheArrowsIsFound) {
  EXPECT_EQ(arrows("runtime/base/x.cc", "#include \"protocol/messages.h\"\n"), 1u);
  EXPECT_EQ(arrows("runtime/protocol/x.cc", "#include \"transport/peer.h\"\n"), 1u);
  EXPECT_EQ(arrows("runtime/transport/x.cc", "#include \"security/identity.h\"\n"), 1u);
  EXPECT_EQ(arrows("runtime/security/x.cc", "#include \"metadata/store.h\"\n"), 1u);
  EXPECT_EQ(arrows("object_store/x.cc", "#include \"worker/worker.h\"\n"), 1u);
  EXPECT_EQ(arrows("runtime/client/x.cc", "#include \"metadata/store.h\"\n"), 1u);
  EXPECT_EQ(arrows("runtime/worker/x.cc", "#include \"scheduler/scheduler.h\"\n"), 1u);
  EXPECT_EQ(arrows("runtime/head/x.cc", "#include \"worker/worker.h\"\n"), 1u);
  EXPECT_EQ(arrows("scheduler/policies/x.cc", "#include \"runtime/head/head.h\"\n"), 1u);
  EXPECT_EQ(arrows("sdk/src/x.cc", "#include \"head/head.h\"\n"), 1u);
  EXPECT_EQ(arrows("plugins/llm/x.cc", "#include <troupe/plugin.h>\n"), 1u);
  EXPECT_EQ(arrows("plugins/inference/x.cc", "#include \"training/trainer.h\"\n"), 1u);
  EXPECT_EQ(arrows("plugins/inference/x.cc", "#include \"object_store/store.h\"\n"), 1u);
  EXPECT_EQ(arrows("tools/x.cc", "#include \"llm/model.h\"\n"), 1u);
  EXPECT_EQ(arrows("runtime/gateway/x.cc", "#include \"troupe/session.h\"\n"), 1u);
  EXPECT_EQ(arrows("runtime/head/x.cc", "#include \"nowhere/x.h\"\n"), 1u);
}

TEST(Arrows, AnIncludeAlongTheArrowsIsNot) {
  EXPECT_EQ(arrows("runtime/head/x.cc",
                   "#include <rocksdb/db.h>\n#include \"base/status.h\"\n"
                   "#include \"scheduler/scheduler.h\"\n#include \"metadata/store.h\"\n"
                   "#include \"head/head.h\"\n#include \"local.h\"\n"),
            0u);
  EXPECT_EQ(arrows("runtime/actor/x.cc", "#include \"sdk/include/troupe/plugin.h\"\n"), 0u);
  EXPECT_EQ(
      arrows("sdk/src/x.cc", "#include \"troupe/session.h\"\n#include \"client/session.h\"\n"), 0u);
  EXPECT_EQ(arrows("plugins/training/x.cc",
                   "#include \"llm/model.h\"\n#include <troupe/plugin.h>\n"
                   "#include \"scheduler/resources.h\"\n"),
            0u);
  EXPECT_EQ(arrows("plugins/llm/cuda/x.cu", "#include \"llm/kernels.h\"\n"), 0u);
  EXPECT_EQ(arrows("tests/base/x.cc", "#include \"head/head.h\"\n"), 0u);
}

TEST(Adapters, AForeignHeaderOutsideItsFolderIsFound) {
  EXPECT_EQ(adapters("runtime/head/x.cc", "#include <rocksdb/db.h>\n"), 1u);
  EXPECT_EQ(adapters("plugins/training/x.cc", "#include <dnnl.hpp>\n"), 1u);
  EXPECT_EQ(adapters("plugins/training/x.cc", "#include <oneapi/dnnl/dnnl.hpp>\n"), 1u);
  EXPECT_EQ(adapters("runtime/transport/x.cc", "#include <capnp/message.h>\n"), 1u);
  EXPECT_EQ(adapters("runtime/transport/x.cc", "#include <kj/exception.h>\n"), 1u);
  EXPECT_EQ(adapters("runtime/transport/x.cc", "#include \"protocol/wire.capnp.h\"\n"), 1u);
  EXPECT_EQ(adapters("plugins/llm/x.cc", "#include <cuda_runtime.h>\n"), 1u);
  EXPECT_EQ(adapters("plugins/llm/x.cc", "#include <nccl.h>\n"), 1u);
  EXPECT_EQ(adapters("runtime/head/x.cc", "#include <absl/container/btree_map.h>\n"), 1u);
}

TEST(Adapters, InItsFolderItIsNot) {
  EXPECT_EQ(adapters("runtime/metadata/x.cc", "#include <rocksdb/db.h>\n"), 0u);
  EXPECT_EQ(adapters("plugins/llm/cpu/x.cc", "#include <dnnl.hpp>\n"), 0u);
  EXPECT_EQ(adapters("runtime/protocol/x.cc", "#include \"wire.capnp.h\"\n"), 0u);
  EXPECT_EQ(adapters("plugins/llm/cuda/x.cu", "#include <cuda_runtime.h>\n#include <nccl.h>\n"),
            0u);
}

TEST(Coroutines, ABracedArgumentIsFound) {
  EXPECT_EQ(coroutines("auto x = co_await f({1, 2});"), 1u);
  EXPECT_EQ(coroutines("co_await peer->call(id,\n   {.a = 1});"), 1u);
  EXPECT_EQ(coroutines("co_await f(Request{.id = id});"), 1u);
  EXPECT_EQ(coroutines("co_await f(std::move(a), wire::Request<int>{1});"), 1u);
  EXPECT_EQ(coroutines("TROUPE_CO_TRY(auto x, co_await f({1}));"), 1u);
  EXPECT_EQ(coroutines("co_return co_await g(a).h({});"), 1u);
}

TEST(Coroutines, ABranchOfAConditionalIsFound) {
  EXPECT_EQ(coroutines("auto x = c ? co_await a() : b;"), 1u);
  EXPECT_EQ(coroutines("auto x = c ? b : co_await a();"), 1u);
  EXPECT_EQ(coroutines("f(c ? b : (co_await a()));"), 1u);
}

TEST(Coroutines, AShortCircuitIsFound) {
  EXPECT_EQ(coroutines("if (a && co_await b()) f();"), 1u);
  EXPECT_EQ(coroutines("if (a ||\n !co_await b()) f();"), 1u);
  EXPECT_EQ(coroutines("while (n > 0 && (co_await b())) f();"), 1u);
  EXPECT_EQ(coroutines("auto r = co_await (a() || b());"), 0u);
}

TEST(Coroutines, AConditionOfAWhileIsFound) {
  EXPECT_EQ(coroutines("while (co_await f()) g();"), 1u);
  EXPECT_EQ(coroutines("  while\n(! co_await f()) {}"), 1u);
  EXPECT_EQ(coroutines("while (!(co_await f())) g();"), 1u);
  EXPECT_EQ(coroutines("do { g(); } while (co_await f());"), 1u);
  EXPECT_EQ(coroutines("while (!done) co_await f();"), 0u);
  EXPECT_EQ(coroutines("while (true) { if (!co_await f()) break; }"), 0u);
  EXPECT_EQ(coroutines("mean_while (co_await f());"), 0u);
}

TEST(Coroutines, AStatementExpressionIsFound) {
  EXPECT_EQ(coroutines("auto x = ({ auto y = co_await f(); y; });"), 1u);
  EXPECT_EQ(coroutines("auto x = (\n{ co_await f(); 1; });"), 1u);
}

TEST(Coroutines, SoundCodeIsNotFound) {
  EXPECT_EQ(coroutines("auto x = co_await f(request);"), 0u);
  EXPECT_EQ(coroutines("if (c) { co_await f(); }"), 0u);
  EXPECT_EQ(coroutines("f(c ? a : b); co_await g();"), 0u);
  EXPECT_EQ(coroutines("g(c ? a : b, co_await h());"), 0u);
  EXPECT_EQ(coroutines("co_await run([this](int n) mutable { return X{n}; });"), 0u);
  EXPECT_EQ(coroutines("co_await run([=]() -> Async<Status> { co_return ok(); });"), 0u);
  EXPECT_EQ(coroutines("co_await run([=]() -> Status { return ok(); });"), 0u);
  EXPECT_EQ(coroutines("// co_await f({1});\nauto s = \"co_await f({1})\";"), 0u);
  EXPECT_EQ(coroutines("for (auto& x : co_await f()) use(x);"), 0u);
  EXPECT_EQ(coroutines("auto r = f({1}); co_await g(r);"), 0u);
}

TEST(Names, ThatExplainNothingAreFound) {
  EXPECT_EQ(check_name({"runtime/util/x.cc", ""}).size(), 1u);
  EXPECT_EQ(check_name({"runtime/head/job_manager.h", ""}).size(), 1u);
  EXPECT_EQ(check_name({"tests/common/x.cc", ""}).size(), 1u);
  EXPECT_EQ(check_name({"tests/test_helpers.h", ""}).size(), 1u);
  EXPECT_EQ(check_name({"runtime/head/commons.h", ""}).size(), 0u);
}

TEST(PragmaOnce, ItsAbsenceIsFound) {
  EXPECT_EQ(check_pragma_once({"a/x.h", "int f();\n"}).size(), 1u);
  EXPECT_EQ(check_pragma_once({"a/x.h", "// #pragma once\nint f();\n"}).size(), 1u);
  EXPECT_EQ(check_pragma_once({"a/x.h", "// A file.\n#pragma once\n"}).size(), 0u);
  EXPECT_EQ(check_pragma_once({"a/x.cc", ""}).size(), 0u);
}

TEST(Sleep, InRuntimeAndTestsIsFound) {
  EXPECT_EQ(check_sleep({"runtime/head/x.cc", "std::this_thread::sleep_for(1s);"}).size(), 1u);
  EXPECT_EQ(check_sleep({"tests/head/x.cc", "usleep(5);"}).size(), 1u);
  EXPECT_EQ(check_sleep({"runtime/head/x.cc", "co_await sleep_for(clock, 1s);"}).size(), 0u);
  EXPECT_EQ(check_sleep({"tests/x.cc", "co_await troupe::sleep_for(1s);"}).size(), 0u);
  EXPECT_EQ(check_sleep({"tools/x.cc", "usleep(5);"}).size(), 0u);
  EXPECT_EQ(check_sleep({"runtime/head/x.cc", "// no sleep_for here"}).size(), 0u);
}

TEST(MachinePaths, AreFoundAnywhere) {
  const std::string home = std::string("/ho") + "me/";
  EXPECT_EQ(check_machine_paths({"README.md", "see " + home + "ada/troupe"}).size(), 1u);
  EXPECT_EQ(check_machine_paths({"a.cc", "open(\"" + home + "x\")"}).size(), 1u);
  EXPECT_EQ(check_machine_paths({"a.cc", "${prefix}" + home + "x"}).size(), 0u);
  EXPECT_EQ(check_machine_paths({"a.cc", "/home is where"}).size(), 0u);
}

// ---- The tree ---------------------------------------------------------------------------------

bool is_text(const fs::path& path) {
  static const std::vector<std::string> ends = {".h",     ".cc", ".c",     ".cu",   ".cuh",
                                                ".inc",   ".sh", ".capnp", ".md",   ".txt",
                                                ".cmake", ".in", ".yml",   ".yaml", ".toml"};
  return std::find(ends.begin(), ends.end(), path.extension()) != ends.end();
}

std::vector<File> read_tree(const fs::path& root) {
  std::vector<File> files;
  for (const char* top : {"runtime", "object_store", "scheduler", "sdk", "plugins", "tests",
                          "bench", "tools", "cmake", "docs"}) {
    if (!fs::exists(root / top)) continue;
    for (const auto& entry : fs::recursive_directory_iterator(root / top)) {
      if (!entry.is_regular_file() || !is_text(entry.path())) continue;
      std::ostringstream text;
      text << std::ifstream(entry.path()).rdbuf();
      files.push_back({fs::relative(entry.path(), root).generic_string(), text.str()});
    }
  }
  std::sort(files.begin(), files.end(),
            [](const File& a, const File& b) { return a.path < b.path; });
  return files;
}

TEST(Tree, KeepsAllRules) {
  const std::vector<File> files = read_tree(TROUPE_SOURCE_DIR);
  size_t sources = 0;
  for (const File& file : files) {
    sources += file.path.ends_with(".cc") ? 1 : 0;
    for (const Finding& finding : check_all(file))
      ADD_FAILURE() << finding.file << ":" << finding.line << ": " << finding.what;
  }
  EXPECT_GT(sources, 10u) << "the tree at " << TROUPE_SOURCE_DIR << " was not read";
}

}  // namespace
}  // namespace troupe::tidy
