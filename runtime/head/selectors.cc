#include "head/selectors.h"

#include <algorithm>

namespace troupe::head {

using scheduler::LabelTest;

namespace {

constexpr size_t selectors_max = 64;
constexpr size_t values_max = 256;
constexpr size_t text_bytes_max = 256;

template <class T>
void sort_distinct(std::vector<T>& items) {
  std::sort(items.begin(), items.end());
  items.erase(std::unique(items.begin(), items.end()), items.end());
}

std::optional<LabelTest> test_of(const std::string& name) {
  if (name == "in") return LabelTest::in;
  if (name == "not_in") return LabelTest::not_in;
  if (name == "exists") return LabelTest::exists;
  if (name == "absent") return LabelTest::absent;
  return std::nullopt;
}

Status check(const protocol::LabelSelector& selector, LabelTest test) {
  const bool takes_values = test == LabelTest::in || test == LabelTest::not_in;
  if (selector.key.empty() || selector.key.size() > text_bytes_max) {
    return error(Code::invalid, "a label's key has 1 to 256 bytes");
  }
  if (takes_values == selector.values.empty() || selector.values.size() > values_max) {
    return error(Code::invalid, "label selector " + selector.key + ": " + selector.test +
                                    (takes_values ? " takes 1 to 256 values" : " takes no value"));
  }
  return ok();
}

}  // namespace

Result<scheduler::Affinity> to_affinity(const std::vector<protocol::LabelSelector>& selectors) {
  if (selectors.size() > selectors_max) {
    return error(Code::invalid, "at most 64 label selectors are possible");
  }
  scheduler::Affinity affinity;
  for (const protocol::LabelSelector& selector : selectors) {
    const auto test = test_of(selector.test);
    if (!test) {
      return error(Code::invalid,
                   "a label is tested for in, not_in, exists or absent, not " + selector.test);
    }
    TROUPE_CHECK(check(selector, *test));
    scheduler::LabelSelector taken{selector.key, *test, selector.values};
    sort_distinct(taken.values);
    (selector.soft ? affinity.preferred : affinity.selectors).push_back(std::move(taken));
  }
  sort_distinct(affinity.selectors);
  sort_distinct(affinity.preferred);
  return affinity;
}

}  // namespace troupe::head
