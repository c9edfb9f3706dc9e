// Map and reduce over files: the maps' results stay in the object store; only refs travel.
#include <troupe/troupe.h>

#include <algorithm>
#include <cctype>
#include <fstream>
#include <iostream>
#include <map>
#include <string>
#include <vector>

using Counts = std::map<std::string, int64_t>;

Counts count_words(const std::string& path) {
  std::ifstream file{path};
  if (!file) throw troupe::Error{troupe::Code::not_found, "cannot read " + path};
  Counts counts;
  for (std::string word; file >> word;) {
    std::erase_if(word, [](unsigned char c) { return std::isalpha(c) == 0; });
    for (char& c : word) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
    if (!word.empty()) ++counts[word];
  }
  return counts;
}
TROUPE_TASK(count_words);

// A parameter that is a vector of refs is not fetched by itself: the task reads what it needs.
Counts merge(const std::vector<troupe::ObjectRef<Counts>>& parts) {
  Counts total;
  for (const auto& part : parts) {
    for (const auto& [word, count] : part.get().value()) total[word] += count;
  }
  return total;
}
TROUPE_TASK(merge);

int main(int argc, char** argv) try {
  if (argc < 2) {
    std::cerr << "usage: word_count FILE...\n";
    return 2;
  }
  const troupe::Session session = troupe::connect().value();
  std::vector<troupe::ObjectRef<Counts>> parts;
  for (int i = 1; i < argc; ++i) parts.push_back(session.submit(count_words, argv[i]));
  const Counts total = session.submit(merge, parts).get().value();

  std::vector<std::pair<int64_t, std::string>> order;
  for (const auto& [word, count] : total) order.emplace_back(-count, word);
  std::sort(order.begin(), order.end());
  for (size_t i = 0; i < order.size() && i < 10; ++i) {
    std::cout << order[i].second << " " << -order[i].first << "\n";
  }
} catch (const troupe::Error& error) {
  std::cerr << error.to_string() << "\n";
  return 1;
}
