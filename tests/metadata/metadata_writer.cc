// Commits pairs of rows to the metadata in argv[1] (for the cluster in argv[2]) and prints each
// pair's number once it is durable.
#include <unistd.h>

#include <cstdio>
#include <string>

#include "metadata/rocks_store.h"

int main(int count, char** arguments) {
  using namespace troupe;
  if (count != 3) return 2;
  const RocksOptions options{.create = true, .cluster_id = ClusterId::parse(arguments[2]).value()};
  const auto store = open_rocksdb(arguments[1], options);
  if (!store) {
    std::fprintf(stderr, "%s\n", store.error().to_string().c_str());
    return 1;
  }
  const uint64_t epoch = (*store)->epoch() + 1;
  int first = 0;
  while ((*store)->get(Table::actors, std::to_string(first)).value()) ++first;
  for (int i = first;; ++i) {
    const std::string key = std::to_string(i);
    Batch batch;
    batch.put(Table::actors, key, std::string(100, 'a')).put(Table::names, key, key);
    if (!(*store)->commit(batch, epoch)) return 1;
    const std::string line = key + "\n";
    if (::write(STDOUT_FILENO, line.data(), line.size()) < 0) return 1;
  }
}
