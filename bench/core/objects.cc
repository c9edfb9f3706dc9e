// Puts and gets, small and large.
#include <atomic>
#include <cstring>

#include "rows.h"

namespace bench {

using Numbers = std::vector<int64_t>;
using NumberRefs = std::vector<troupe::ObjectRef<int64_t>>;

std::string put_small_ones(int64_t count) {
  const auto session = troupe::connect().value();
  for (int64_t i = 0; i < count; ++i) (void)session.put(int64_t{0}).value();
  return "ok";
}
TROUPE_TASK(put_small_ones);

// Each a fresh array of zeros.
std::string put_large_ones(int64_t count, uint64_t length) {
  const auto session = troupe::connect().value();
  for (int64_t i = 0; i < count; ++i) (void)session.put(Numbers(length)).value();
  return "ok";
}
TROUPE_TASK(put_large_ones);

NumberRefs make_refs(int64_t count) {
  const auto session = troupe::connect().value();
  NumberRefs refs;
  for (int64_t i = 0; i < count; ++i) refs.push_back(session.put(int64_t{1}).value());
  return refs;
}
TROUPE_TASK(make_refs);

namespace {

constexpr uint64_t huge_length = 100 * 1024 * 1024;  // 838.9 MB of int64_t.
constexpr uint64_t large_length = 10 * 1024 * 1024;  // 83.9 MB.
constexpr double large_gigabytes = static_cast<double>(large_length) * sizeof(int64_t) / 1e9;

// The plain name is that of the large array; what a view or a seal costs must not grow with it.
const std::vector<std::pair<std::string, uint64_t>> sizes{
    {"", large_length}, {"_1mb", 125'000}, {"_1gb", 125'000'000}};

// Ray counts 0.8 GB for a huge array, and 8 for a hundred large ones: so do we.
constexpr double huge_gigabytes_counted = 0.8;

void small_rows(Harness& harness, const troupe::Session& session) {
  harness.row("single_client_get_calls", [&] {
    const auto ref = session.put(int64_t{0}).value();
    harness.measure({.name = "single_client_get_calls", .is_one_call = true},
                    [&] { (void)ref.get(patience).value(); });
  });
  harness.row("single_client_put_calls", [&] {
    harness.measure({.name = "single_client_put_calls", .is_one_call = true},
                    [&] { (void)session.put(int64_t{0}).value(); });
  });
  harness.row("multi_client_put_calls", [&] {
    harness.measure({.name = "multi_client_put_calls", .multiplier = 1000}, [&] {
      std::vector<troupe::ObjectRef<std::string>> refs;
      for (int i = 0; i < 10; ++i) refs.push_back(session.submit(put_small_ones, 100));
      get_all(session, refs);
    });
  });
}

void gigabyte_rows(Harness& harness, const troupe::Session& session) {
  harness.row("single_client_put_gigabytes", [&] {
    const Numbers array(huge_length);
    harness.measure({.name = "single_client_put_gigabytes",
                     .unit = "GB/s",
                     .multiplier = huge_gigabytes_counted,
                     .calls = 1},
                    [&] { (void)session.put(array).value(); });
  });
  harness.row("multi_client_put_gigabytes", [&] {
    harness.measure({.name = "multi_client_put_gigabytes",
                     .unit = "GB/s",
                     .multiplier = 10 * huge_gigabytes_counted,
                     .calls = 100},
                    [&] {
                      std::vector<troupe::ObjectRef<std::string>> refs;
                      for (int i = 0; i < 10; ++i) {
                        refs.push_back(session.submit(put_large_ones, 10, large_length));
                      }
                      get_all(session, refs);
                    });
  });
}

// Both in turn, so that they meet the same machine.
void put_against_memcpy(Harness& harness, const troupe::Session& session) {
  const Numbers array(large_length, 1);
  Numbers copy(large_length, 2);  // Touched: the copy is warm.
  const double limit = harness.options().window_seconds / 2;
  const auto rate = [&](const Work& work) {
    double spent = 0;
    double count = 0;
    for (; spent < limit; ++count) spent += seconds_of(work);
    return count * large_gigabytes / spent;
  };
  std::vector<double> ratios, puts, copies;
  for (int window = -1; window < 4; ++window) {
    const double copied = rate([&] {
      std::memcpy(copy.data(), array.data(), array.size() * sizeof(int64_t));
      asm volatile("" : : "r"(copy.data()) : "memory");
    });
    const double put = rate([&] { (void)session.put(array).value(); });
    if (window < 0) continue;  // The warm-up.
    ratios.push_back(put / copied);
    puts.push_back(put);
    copies.push_back(copied);
  }
  const auto [ratio, spread] = mean_and_deviation(ratios);
  harness.print("put_large_over_memcpy", ratio, "ratio",
                {{"spread", spread},
                 {"put_gb_s", mean_and_deviation(puts).first},
                 {"memcpy_gb_s", mean_and_deviation(copies).first}});
}

void large_rows(Harness& harness, const troupe::Session& session) {
  harness.row("put_large_over_memcpy", [&] { put_against_memcpy(harness, session); });
  for (const auto& [suffix, length] : sizes) {
    const std::string name = "get_large_object_us" + suffix;
    harness.row(name, [&] {
      const auto ref = session.put(Numbers(length, 1)).value();
      const Measured measured =
          harness.windows({.is_one_call = true}, [&] { (void)ref.view(patience).value(); });
      harness.print(name, measured.p50_us, "us",
                    {{"p99_us", measured.p99_us},
                     {"megabytes", static_cast<double>(length) * sizeof(int64_t) / 1e6},
                     {"cpu_s_per_million", measured.cpu_s_per_million}});
    });
  }
  // One element is written, so that only the store's part is measured.
  for (const auto& [suffix, length] : sizes) {
    const std::string name = "seal_in_place" + suffix;
    harness.row(name, [&] {
      harness.measure({.name = name, .unit = "objects/s", .is_one_call = true}, [&] {
        auto building = session.create<int64_t>(length).value();
        building.span()[0] = 1;
        (void)building.seal().value();
      });
    });
  }
  harness.row("callback_out_of_scope", [&] {
    std::atomic<int64_t> called = 0;
    harness.measure({.name = "callback_out_of_scope", .multiplier = 1000}, [&] {
      called = 0;
      for (int i = 0; i < 1000; ++i) {
        const auto ref = session.put(int64_t{i}).value();
        ref.on_out_of_scope([&] { ++called; }).value();
      }
      while (called < 1000) std::this_thread::yield();
    });
  });
  harness.row("single_client_get_object_containing_10k_refs", [&] {
    const auto ref = session.submit(make_refs, 10'000);
    harness.measure({.name = "single_client_get_object_containing_10k_refs",
                     .unit = "gets/s",
                     .is_one_call = true},
                    [&] {
                      const NumberRefs refs = ref.get(patience).value();
                      if (refs.size() != 10'000) throw std::runtime_error("refs are missing");
                    });
  });
}

}  // namespace

void object_rows(Harness& harness, const troupe::Session& session) {
  small_rows(harness, session);
  gigabyte_rows(harness, session);
  large_rows(harness, session);
}

}  // namespace bench
