// The shared object as a host finds it.
#include <dlfcn.h>
#include <gtest/gtest.h>

#include "troupe/plugin.h"

namespace {

TEST(InferenceModule, OffersTheEngineAndNothingElse) {
  void* const module = ::dlopen(TROUPE_TEST_MODULE, RTLD_NOW | RTLD_LOCAL);
  ASSERT_NE(module, nullptr) << ::dlerror();
  const auto query =
      reinterpret_cast<troupe_plugin_query_function>(::dlsym(module, TROUPE_QUERY_SYMBOL));
  ASSERT_NE(query, nullptr);
  const troupe_host host{};
  const troupe_plugin* plugin = nullptr;
  ASSERT_EQ(query(&host, &plugin), TROUPE_OK);
  EXPECT_EQ(plugin->abi_major, TROUPE_ABI_MAJOR);
  EXPECT_STREQ(plugin->name, "inference");
  ASSERT_EQ(plugin->class_count, 1u);
  EXPECT_STREQ(plugin->classes[0]->name, "engine");
  EXPECT_NE(plugin->classes[0]->step, nullptr);
  EXPECT_NE(plugin->classes[0]->pause, nullptr);
  EXPECT_EQ(plugin->classes[0]->checkpoint, nullptr);
  EXPECT_EQ(::dlsym(module, "_ZN6troupe3llm9Tokenizer4loadERKNSt10filesystem7__cxx114pathE"),
            nullptr);
}

}  // namespace
