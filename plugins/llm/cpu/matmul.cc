#include "llm/cpu/matmul.h"

#include <omp.h>

#include <algorithm>
#include <boost/functional/hash.hpp>
#include <dnnl.hpp>
#include <new>
#include <optional>
#include <string>
#include <unordered_map>

namespace troupe::llm::cpu {
namespace {

using Type = dnnl::memory::data_type;

// A shape of which oneDNN made code: also the types, the bias, and the threads it is made for.
struct Key {
  MatmulShape shape;
  Type type;
  bool bias;
  int threads;

  bool operator==(const Key&) const = default;
};

struct KeyHash {
  size_t operator()(const Key& key) const {
    size_t seed = 0;
    for (const int64_t size : {key.shape.batch, key.shape.m, key.shape.n, key.shape.k}) {
      boost::hash_combine(seed, size);
    }
    boost::hash_combine(seed, (key.shape.transpose_a ? 1 : 0) | (key.shape.transpose_b ? 2 : 0) |
                                  (key.shape.accumulate ? 4 : 0) | (key.bias ? 8 : 0));
    boost::hash_combine(seed, static_cast<int>(key.type));
    boost::hash_combine(seed, key.threads);
    return seed;
  }
};

struct Prepared {
  dnnl::matmul product;
  dnnl::memory a, b, c, bias;
};

dnnl::memory::desc matrix(int64_t batch, int64_t rows, int64_t columns, bool transposed,
                          Type type) {
  const dnnl::memory::dims inner =
      transposed ? dnnl::memory::dims{1, rows} : dnnl::memory::dims{columns, 1};
  if (batch == 1) return {{rows, columns}, type, inner};
  return {{batch, rows, columns}, type, {rows * columns, inner[0], inner[1]}};
}

Prepared prepare(const Key& key, const dnnl::engine& engine) {
  const MatmulShape& s = key.shape;
  const auto a = matrix(s.batch, s.m, s.k, s.transpose_a, key.type);
  const auto b = matrix(s.batch, s.k, s.n, s.transpose_b, key.type);
  const auto c = matrix(s.batch, s.m, s.n, false, Type::f32);
  dnnl::memory::desc bias;
  if (key.bias) bias = matrix(1, 1, s.n, false, Type::f32);

  dnnl::primitive_attr attributes;
  if (s.accumulate) {
    dnnl::post_ops sum;
    sum.append_sum(1.0f);
    attributes.set_post_ops(sum);
  }
  const auto description =
      key.bias ? dnnl::matmul::desc(a, b, bias, c) : dnnl::matmul::desc(a, b, c);
  const dnnl::matmul::primitive_desc made(description, attributes, engine);
  return {dnnl::matmul(made), dnnl::memory(a, engine, DNNL_MEMORY_NONE),
          dnnl::memory(b, engine, DNNL_MEMORY_NONE), dnnl::memory(c, engine, DNNL_MEMORY_NONE),
          key.bias ? dnnl::memory(bias, engine, DNNL_MEMORY_NONE) : dnnl::memory()};
}

}  // namespace

struct Matmul::Impl {
  // Serving meets many batch sizes; beyond this many, forget and start over.
  static constexpr size_t prepared_max = 4096;

  dnnl::engine engine{dnnl::engine::kind::cpu, 0};
  dnnl::stream stream{engine};
  std::unordered_map<Key, Prepared, KeyHash> prepared;
  std::optional<std::string> failure;

  void run(const Key& key, const void* a, const void* b, float* c, const float* bias) {
    try {
      if (prepared.size() >= prepared_max) prepared.clear();
      auto found = prepared.find(key);
      if (found == prepared.end()) found = prepared.emplace(key, prepare(key, engine)).first;
      Prepared& p = found->second;
      // oneDNN takes inputs as void* but only reads them.
      p.a.set_data_handle(const_cast<void*>(a));
      p.b.set_data_handle(const_cast<void*>(b));
      p.c.set_data_handle(c);
      std::unordered_map<int, dnnl::memory> arguments{
          {DNNL_ARG_SRC, p.a}, {DNNL_ARG_WEIGHTS, p.b}, {DNNL_ARG_DST, p.c}};
      if (bias != nullptr) {
        p.bias.set_data_handle(const_cast<float*>(bias));
        arguments.emplace(DNNL_ARG_BIAS, p.bias);
      }
      p.product.execute(stream, arguments);
      stream.wait();
    } catch (const dnnl::error& e) {
      if (!failure) failure = e.what();
    } catch (const std::bad_alloc&) {
      if (!failure) failure = "out of memory";
    }
  }
};

Matmul::Matmul() : impl_(std::make_unique<Impl>()) {}
Matmul::~Matmul() = default;
Matmul::Matmul(Matmul&&) noexcept = default;
Matmul& Matmul::operator=(Matmul&&) noexcept = default;

void Matmul::operator()(const MatmulShape& shape, const float* a, const float* b, float* c,
                        const float* bias) {
  impl_->run({shape, Type::f32, bias != nullptr, omp_get_max_threads()}, a, b, c, bias);
}

void Matmul::operator()(const MatmulShape& shape, const bf16* a, const bf16* b, float* c,
                        const float* bias) {
  impl_->run({shape, Type::bf16, bias != nullptr, omp_get_max_threads()}, a, b, c, bias);
}

void Matmul::operator()(const MatmulShape& s, const double* a, const double* b, double* c,
                        const double* bias) {
  for (int64_t i = 0; i < s.batch; ++i, a += s.m * s.k, b += s.k * s.n, c += s.m * s.n) {
    for (int64_t row = 0; row < s.m; ++row) {
      double* out = c + row * s.n;
      if (!s.accumulate) std::fill_n(out, s.n, 0.0);
      for (int64_t j = 0; bias != nullptr && j < s.n; ++j) out[j] += bias[j];
      for (int64_t inner = 0; inner < s.k; ++inner) {
        const double x = s.transpose_a ? a[inner * s.m + row] : a[row * s.k + inner];
        const double* y = s.transpose_b ? b + inner : b + inner * s.n;
        const int64_t stride = s.transpose_b ? s.k : 1;
        for (int64_t j = 0; j < s.n; ++j) out[j] += x * y[j * stride];
      }
    }
  }
}

Status Matmul::take_status() {
  if (!impl_->failure) return ok();
  const std::string failure = *std::exchange(impl_->failure, std::nullopt);
  return error(Code::internal, "matrix product: " + failure);
}

bool has_bf16_products() {
  const dnnl::cpu_isa isa = dnnl::get_effective_cpu_isa();
  return isa == dnnl::cpu_isa::avx512_core_bf16 || isa == dnnl::cpu_isa::avx512_core_amx;
}

}  // namespace troupe::llm::cpu
