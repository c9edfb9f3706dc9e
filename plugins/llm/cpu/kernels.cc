#include "llm/cpu/kernels.h"

#include <span>
#include <type_traits>
#include <vector>

namespace troupe::llm::cpu {
namespace {

namespace baseline {
#include "llm/cpu/kernel_set_body.inc"
}  // namespace baseline

#ifdef __x86_64__
#pragma GCC push_options
#pragma GCC target("avx2,fma,bmi2")
namespace avx2 {
#include "llm/cpu/kernel_set_body.inc"
}  // namespace avx2
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,fma,bmi2,prefer-vector-width=512")
namespace avx512 {
#include "llm/cpu/kernel_set_body.inc"
}  // namespace avx512
#pragma GCC pop_options

bool has_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
bool has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
         __builtin_cpu_supports("bmi2");
}
#endif

// Best first.
template <class Real, class Operand>
std::vector<KernelSet<Real, Operand>> sets() {
  std::vector<KernelSet<Real, Operand>> found;
#ifdef __x86_64__
  constexpr bool is_reference = std::is_same_v<Real, double>;
  if (!is_reference && has_avx512()) found.push_back(avx512::set<Real, Operand>("avx512"));
  if (!is_reference && has_avx2()) found.push_back(avx2::set<Real, Operand>("avx2"));
#endif
  found.push_back(baseline::set<Real, Operand>("baseline"));
  return found;
}

}  // namespace

template <class Real, class Operand>
std::span<const KernelSet<Real, Operand>> kernel_sets() {
  static const std::vector<KernelSet<Real, Operand>> found = sets<Real, Operand>();
  return found;
}

template std::span<const KernelSet<float, float>> kernel_sets();
template std::span<const KernelSet<float, bf16>> kernel_sets();
template std::span<const KernelSet<double, double>> kernel_sets();

}  // namespace troupe::llm::cpu
