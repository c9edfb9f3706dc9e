#include "llm/cpu/kernels.h"

namespace troupe::llm::cpu {
namespace {

namespace baseline {
#include "llm/cpu/kernels_body.inc"
#include "llm/cpu/paged_attention_body.inc"
}  // namespace baseline

#ifdef __x86_64__
#pragma GCC push_options
#pragma GCC target("avx2,fma,bmi2")
namespace avx2 {
#include "llm/cpu/kernels_body.inc"
#include "llm/cpu/paged_attention_body.inc"
}  // namespace avx2
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,fma,bmi2,prefer-vector-width=512")
namespace avx512 {
#include "llm/cpu/kernels_body.inc"
#include "llm/cpu/paged_attention_body.inc"
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

template <class Real, class Operand>
Kernels<Real, Operand> choose() {
#ifdef __x86_64__
  if (has_avx512()) return avx512::table<Real, Operand>("avx512");
  if (has_avx2()) return avx2::table<Real, Operand>("avx2");
#endif
  return baseline::table<Real, Operand>("baseline");
}

}  // namespace

template <class Real, class Operand>
const Kernels<Real, Operand>& kernels() {
  static const Kernels<Real, Operand> chosen = choose<Real, Operand>();
  return chosen;
}

template <>
const Kernels<double, double>& kernels() {
  // The reference: no instruction set's own code.
  static constexpr Kernels<double, double> plain = baseline::table<double, double>("baseline");
  return plain;
}

template const Kernels<float, float>& kernels();
template const Kernels<float, bf16>& kernels();

const OptimizerKernels& optimizer_kernels() {
#ifdef __x86_64__
  if (has_avx512()) return avx512::optimizer_table;
  if (has_avx2()) return avx2::optimizer_table;
#endif
  return baseline::optimizer_table;
}

const AttentionKernels& attention_kernels() {
#ifdef __x86_64__
  if (has_avx512()) return avx512::attention_table;
  if (has_avx2()) return avx2::attention_table;
#endif
  return baseline::attention_table;
}

}  // namespace troupe::llm::cpu
