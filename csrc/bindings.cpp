// The operators as Python calls them. A tensor is passed as its address, type and sizes, so that
// nothing here depends on a version of PyTorch. The callers in graftlm/kernels/native/ check types,
// sizes and layout. Every argument has a name, and Python passes it by that name.
#include <nanobind/nanobind.h>
#include <nanobind/stl/array.h>
#include <nanobind/stl/map.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <array>
#include <map>
#include <string>
#include <tuple>

#include "attention.hpp"
#include "cpu_features.hpp"
#include "operators.hpp"
#include "threads.hpp"

namespace nb = nanobind;
using namespace graftlm;
using namespace nb::literals;

namespace {

using Address = uintptr_t;

template <class T>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

int log2_of(int64_t block) {
  int shift = 0;
  while ((int64_t{1} << shift) < block) shift++;
  return shift;
}

// nested, map and offset are 0 unless the maxima are themselves quantised.
Weight weight(Address codes, Address absmax, Address nested, Address map, Address offset,
              int64_t rows, int64_t cols, int64_t block) {
  Weight w{};
  w.codes = at<uint8_t>(codes);
  if (nested) {
    w.absmax8 = at<uint8_t>(absmax);
    w.nested = at<float>(nested);
    w.map = at<float>(map);
    w.offset = *at<float>(offset);
  } else {
    w.absmax = at<float>(absmax);
  }
  w.rows = rows;
  w.cols = cols;
  w.block_shift = log2_of(block);
  return w;
}

// A weight of block size 0 is dense: `codes` is where its elements are, of `type`.
Frozen frozen(Address codes, Address absmax, Address nested, Address map, Address offset,
              int64_t rows, int64_t cols, int64_t block, int type) {
  if (!block) return {rows, cols, at<void>(codes), DType(type), {}};
  return {rows, cols, nullptr, DType::f32,
          weight(codes, absmax, nested, map, offset, rows, cols, block)};
}

// An address, and the strides of batch, head and position.
using Place = std::tuple<Address, int64_t, int64_t, int64_t>;

Strided strided(const Place& tensor) {
  const auto& [data, batch, head, position] = tensor;
  return {at<void>(data), batch, head, position};
}

// Of blocks as three numbers each: start, stop, causal or not.
std::vector<AttentionBlock> attention_blocks(const std::vector<int64_t>& numbers) {
  std::vector<AttentionBlock> blocks;
  for (size_t i = 0; i + 2 < numbers.size(); i += 3)
    blocks.push_back({numbers[i], numbers[i + 1], numbers[i + 2] != 0});
  return blocks;
}

// A rank of 0 says that there is no update.
struct Update {
  LowRank held;
  const LowRank* get() const { return held.rank ? &held : nullptr; }
};

Update update(Address a, Address b, int64_t rank, float scaling, Address thin) {
  return {{at<float>(a), at<float>(b), rank, scaling, at<void>(thin)}};
}

}  // namespace

NB_MODULE(_native, m) {
  using Free = nb::call_guard<nb::gil_scoped_release>;

  m.def("level", [] { return std::string(level_name()); });
  m.def("available_levels", &level_names);
  m.def("use_level", &use_level, "name"_a);
  m.def("rounded_product", [] {
    const bool float32 = gemm(Compute::bf16).multiply == gemm(Compute::f32).multiply;
    return std::string(float32 ? "float32" : gemm(Compute::bf16).name);
  });
  m.def("thread_runtime", [] { return std::string(thread_runtime()); });
  m.def("nf4_levels", [] {
    std::array<float, 16> table;
    for (int i = 0; i < 16; i++) table[i] = kLevels[i];
    return table;
  });
  // What Python needs to know of the kernels: sizes that bound their scratch memory, which the plan
  // counts, and numbers of the NF4 format and of the types, which a test compares with Python's.
  m.def("constants", [] {
    return std::map<std::string, double>{
        {"packed_rows", double(kRowChunk)},
        {"attention_queries", double(kQueryTile)},
        {"cross_entropy_positions", double(kGroupTokens)},
        {"nf4_group_size", double(1 << kGroupShift)},
        {"nf4_zero_code", double(kZeroCode)},
        {"nf4_smallest_absmax", double(kSmallestAbsmax)},
        {"nf4_smallest_block", double(kSmallestBlock)},
        {"nf4_largest_block", double(kLargestBlock)},
        {"too_flat", double(kTooFlat)},
        {"type_float32", double(int(DType::f32))},
        {"type_bfloat16", double(int(DType::bf16))},
        {"type_float16", double(int(DType::f16))},
        {"type_int8", double(int(DType::i8))},
        {"compute_float32", double(int(Compute::f32))},
        {"compute_bfloat16", double(int(Compute::bf16))},
        {"compute_bfloat16x3", double(int(Compute::bf16x3))},
    };
  });

  m.def(
      "quantize",
      [](Address src, int type, int64_t numel, int64_t block, Address codes, Address absmax,
         int threads) {
        quantize(at<void>(src), DType(type), numel, block, at<uint8_t>(codes), at<float>(absmax),
                 threads);
      },
      Free(), "src"_a, "type"_a, "numel"_a, "block"_a, "codes"_a, "absmax"_a, "threads"_a);

  m.def(
      "double_quantize",
      [](Address absmax, int64_t blocks, float mean, Address grid, int64_t points, Address codes,
         Address nested, int threads) {
        double_quantize(at<float>(absmax), blocks, mean, at<uint8_t>(grid), points,
                        at<uint8_t>(codes), at<float>(nested), threads);
      },
      Free(), "absmax"_a, "blocks"_a, "mean"_a, "grid"_a, "points"_a, "codes"_a, "nested"_a,
      "threads"_a);

  m.def(
      "dequantize",
      [](Address codes, Address absmax, Address nested, Address map, Address offset, int64_t rows,
         int64_t cols, int64_t block, Address dst, int type, int threads) {
        dequantize(weight(codes, absmax, nested, map, offset, rows, cols, block), at<void>(dst),
                   DType(type), threads);
      },
      Free(), "codes"_a, "absmax"_a, "nested"_a, "map"_a, "offset"_a, "rows"_a, "cols"_a,
      "block"_a, "dst"_a, "type"_a, "threads"_a);

  m.def(
      "linear",
      [](Address codes, Address absmax, Address nested, Address map, Address offset, int64_t rows,
         int64_t cols, int64_t block, int dense_type, Address x, int type, int64_t lines,
         Address bias, Address y, Address a, Address b, int64_t rank, float scaling, Address thin,
         int compute, int threads) {
        linear(frozen(codes, absmax, nested, map, offset, rows, cols, block, dense_type),
               at<void>(x), DType(type), lines, at<float>(bias), at<void>(y),
               update(a, b, rank, scaling, thin).get(), Compute(compute), threads);
      },
      Free(), "codes"_a, "absmax"_a, "nested"_a, "map"_a, "offset"_a, "rows"_a, "cols"_a,
      "block"_a, "dense_type"_a, "x"_a, "type"_a, "lines"_a, "bias"_a, "y"_a, "a"_a, "b"_a,
      "rank"_a, "scaling"_a, "thin"_a, "compute"_a, "threads"_a);

  m.def(
      "cross_entropy",
      [](Address weight, int type, Address row_scale, int64_t vocabulary, int64_t dim,
         Address bias, float scale, float softcap, Address hidden, Address targets,
         int64_t tokens, bool exact_bf16, float label_smoothing, float tolerance,
         float max_dropped, Address mean_row, Address lse, Address target_logit, Address grad,
         Address dropped, int threads) {
        const Head head = {at<void>(weight), DType(type), vocabulary, dim,
                           at<float>(bias),  scale,       softcap,    at<float>(row_scale)};
        return cross_entropy({head, at<float>(hidden), at<int64_t>(targets), tokens, exact_bf16,
                              label_smoothing, tolerance, max_dropped, at<float>(mean_row),
                              at<float>(lse), at<float>(target_logit), at<float>(grad),
                              at<float>(dropped)},
                             threads);
      },
      Free(), "weight"_a, "type"_a, "row_scale"_a, "vocabulary"_a, "dim"_a, "bias"_a, "scale"_a,
      "softcap"_a, "hidden"_a, "targets"_a, "tokens"_a, "exact_bf16"_a, "label_smoothing"_a,
      "tolerance"_a, "max_dropped"_a, "mean_row"_a, "lse"_a, "target_logit"_a, "grad"_a,
      "dropped"_a, "threads"_a);

  m.def(
      "mean_row",
      [](Address weight, int type, Address row_scale, int64_t vocabulary, int64_t dim,
         Address mean, int threads) {
        const Head head = {at<void>(weight), DType(type), vocabulary, dim, nullptr, 1.0f, 0.0f,
                           at<float>(row_scale)};
        mean_row(head, at<float>(mean), threads);
      },
      Free(), "weight"_a, "type"_a, "row_scale"_a, "vocabulary"_a, "dim"_a, "mean"_a, "threads"_a);

  m.def(
      "linear_backward",
      [](Address codes, Address absmax, Address nested, Address map, Address offset, int64_t rows,
         int64_t cols, int64_t block, int dense_type, Address dy, int type, int64_t lines,
         Address dx, Address a, Address b, int64_t rank, float scaling, Address thin,
         int compute, int threads) {
        linear_backward(frozen(codes, absmax, nested, map, offset, rows, cols, block, dense_type),
                        at<void>(dy), DType(type), lines, at<void>(dx),
                        update(a, b, rank, scaling, thin).get(), Compute(compute), threads);
      },
      Free(), "codes"_a, "absmax"_a, "nested"_a, "map"_a, "offset"_a, "rows"_a, "cols"_a,
      "block"_a, "dense_type"_a, "dy"_a, "type"_a, "lines"_a, "dx"_a, "a"_a, "b"_a, "rank"_a,
      "scaling"_a, "thin"_a, "compute"_a, "threads"_a);

  m.def(
      "factor_gradient",
      [](Address t, Address x, int type, int64_t rows, int64_t rank, int64_t cols, float scaling,
         bool turned, Address out, int compute, int threads) {
        factor_gradient(at<void>(t), at<void>(x), DType(type), rows, rank, cols, scaling, turned,
                        at<float>(out), Compute(compute), threads);
      },
      Free(), "t"_a, "x"_a, "type"_a, "rows"_a, "rank"_a, "cols"_a, "scaling"_a, "turned"_a,
      "out"_a, "compute"_a, "threads"_a);

  m.def(
      "dense_linear",
      [](Address w, int weight_type, Address row_scale, int64_t out, int64_t cols, Address x,
         int type, int64_t rows, Address y, int threads) {
        dense_linear(at<void>(w), DType(weight_type), at<float>(row_scale), out, cols, at<void>(x),
                     DType(type), rows, at<void>(y), threads);
      },
      Free(), "w"_a, "weight_type"_a, "row_scale"_a, "out"_a, "cols"_a, "x"_a, "type"_a, "rows"_a,
      "y"_a, "threads"_a);

  m.def(
      "attention",
      [](const std::array<int64_t, 6>& sizes, int type, const Place& q, const Place& k,
         const Place& v, const Place& mask, float scale, const std::vector<int64_t>& blocks,
         const Place& y, Address lse, int threads) {
        const auto [batches, heads, groups, queries, keys, size] = sizes;
        const auto parts = attention_blocks(blocks);
        attention({batches, heads, groups, queries, keys, size, DType(type), strided(q), strided(k),
                   strided(v), strided(mask), scale, parts.data(), int64_t(parts.size()), strided(y),
                   at<float>(lse), {}, {}, {}, {}},
                  threads);
      },
      Free(), "sizes"_a, "type"_a, "q"_a, "k"_a, "v"_a, "mask"_a, "scale"_a, "blocks"_a, "y"_a,
      "lse"_a, "threads"_a);

  m.def(
      "attention_backward",
      [](const std::array<int64_t, 6>& sizes, int type, const Place& q, const Place& k,
         const Place& v, const Place& mask, float scale, const std::vector<int64_t>& blocks,
         const Place& y, Address lse, const Place& dy, const Place& dq, const Place& dk,
         const Place& dv, int threads) {
        const auto [batches, heads, groups, queries, keys, size] = sizes;
        const auto parts = attention_blocks(blocks);
        attention_backward(
            {batches, heads, groups, queries, keys, size, DType(type), strided(q), strided(k), strided(v),
             strided(mask), scale, parts.data(), int64_t(parts.size()), strided(y), at<float>(lse),
             strided(dy), strided(dq), strided(dk), strided(dv)},
            threads);
      },
      Free(), "sizes"_a, "type"_a, "q"_a, "k"_a, "v"_a, "mask"_a, "scale"_a, "blocks"_a, "y"_a,
      "lse"_a, "dy"_a, "dq"_a, "dk"_a, "dv"_a, "threads"_a);

  m.def(
      "rms_norm",
      [](Address x, int type, int64_t rows, int64_t dim, Address weight, int weight_type,
         float shift, float eps, Address y, Address rstd, int threads) {
        rms_norm(at<void>(x), DType(type), rows, dim, at<void>(weight), DType(weight_type), shift,
                 eps, at<void>(y), at<float>(rstd), threads);
      },
      Free(), "x"_a, "type"_a, "rows"_a, "dim"_a, "weight"_a, "weight_type"_a, "shift"_a, "eps"_a,
      "y"_a, "rstd"_a, "threads"_a);

  m.def(
      "rms_norm_backward",
      [](Address dy, Address x, int type, int64_t rows, int64_t dim, Address weight,
         int weight_type, float shift, Address rstd, Address dx, int threads) {
        rms_norm_backward(at<void>(dy), at<void>(x), DType(type), rows, dim, at<void>(weight),
                          DType(weight_type), shift, at<float>(rstd), at<void>(dx), threads);
      },
      Free(), "dy"_a, "x"_a, "type"_a, "rows"_a, "dim"_a, "weight"_a, "weight_type"_a, "shift"_a,
      "rstd"_a, "dx"_a, "threads"_a);

  m.def(
      "gated",
      [](Address g, Address u, int type, int64_t numel, float slope, float cubic, Address y,
         int threads) {
        gated(at<void>(g), at<void>(u), DType(type), numel, Gate{slope, cubic}, at<void>(y),
              threads);
      },
      Free(), "g"_a, "u"_a, "type"_a, "numel"_a, "slope"_a, "cubic"_a, "y"_a, "threads"_a);

  m.def(
      "gated_backward",
      [](Address dy, Address g, Address u, int type, int64_t numel, float slope, float cubic,
         Address dg, Address du, int threads) {
        gated_backward(at<void>(dy), at<void>(g), at<void>(u), DType(type), numel,
                       Gate{slope, cubic}, at<void>(dg), at<void>(du), threads);
      },
      Free(), "dy"_a, "g"_a, "u"_a, "type"_a, "numel"_a, "slope"_a, "cubic"_a, "dg"_a, "du"_a,
      "threads"_a);
}
