// fuzz_seeds FOLDER writes FOLDER/TARGET/seed-N.
#include <filesystem>
#include <fstream>

#include "tests/fuzz/seeds.h"

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  int written = 0;
  for (const auto& [target, input] : troupe::fuzz::make_seeds()) {
    const auto folder = std::filesystem::path{argv[1]} / target;
    std::filesystem::create_directories(folder);
    std::ofstream file{folder / ("seed-" + std::to_string(++written)), std::ios::binary};
    file.write(reinterpret_cast<const char*>(input.data()),
               static_cast<std::streamsize>(input.size()));
    if (!file.flush()) return 1;
  }
  return 0;
}
