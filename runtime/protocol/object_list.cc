#include "protocol/object_list.h"

#include <algorithm>

namespace troupe::protocol {

void keep_largest(ObjectList& list, uint32_t limit) {
  std::ranges::stable_sort(list.items, std::greater{}, &ObjectEntry::size_bytes);
  if (limit != 0 && list.items.size() > limit) list.items.resize(limit);
}

}  // namespace troupe::protocol
