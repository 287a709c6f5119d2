#include "kernels/cuda/optimizer.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <memory>

#include "kernels/cuda/device_array.h"

namespace gradus::cuda {
namespace {

using test::DeviceArray;
using test::expect_close;
using test::random_numbers;
using Numbers = std::vector<double>;

/// Values of any type on the device.
template <typename T>
class Upload {
 public:
  explicit Upload(const std::vector<T>& values) {
    GRADUS_CUDA_CHECK(cudaMalloc(&data_, values.size() * sizeof(T)));
    GRADUS_CUDA_CHECK(
        cudaMemcpy(data_, values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice));
  }
  ~Upload() { cudaFree(data_); }
  Upload(const Upload&) = delete;
  Upload& operator=(const Upload&) = delete;
  const T* data() const { return static_cast<const T*>(data_); }

 private:
  void* data_ = nullptr;
};

/// One parameter with what its update needs, moved off its boundary by `offset` elements.
struct Parameter {
  DeviceArray param, master, m, v, grad;
  double weight_decay;

  Parameter(DType dtype, int64_t count, uint64_t seed, double decay, int64_t offset)
      : param(dtype, random_numbers(count, seed, 0.1), offset),
        master(DType::fp32, random_numbers(count, seed, 0.1), offset),
        m(DType::fp32, random_numbers(count, seed + 1, 1e-2), offset),
        v(DType::fp32, squares(count, seed + 2), offset),
        grad(DType::fp32, random_numbers(count, seed + 3, 1e-1), offset),
        weight_decay(decay) {}

  static Numbers squares(int64_t count, uint64_t seed) {
    Numbers values = random_numbers(count, seed, 1e-2);
    for (double& value : values) value *= value;
    return values;
  }
  bool in_place() const { return param.dtype() == DType::fp32; }
  const DeviceArray& weights() const { return in_place() ? param : master; }
  AdamWSlice slice(int64_t count) const {
    return {.param = param.data(),
            .master = in_place() ? nullptr : master.data<float>(),
            .m = m.data<float>(),
            .v = v.data<float>(),
            .grad = grad.data<float>(),
            .count = count,
            .weight_decay = weight_decay};
  }
};

constexpr double kBeta1 = 0.9;
constexpr double kBeta2 = 0.95;
constexpr double kEpsilon = 1e-8;

void step(const std::vector<AdamWSlice>& slices, DType dtype, const StepState& state,
          const DeviceArray& largest, int64_t size) {
  std::vector<AdamWChunk> chunks(static_cast<size_t>(adamw_chunks(slices, size)));
  list_adamw_chunks(slices, chunks, size);
  const DeviceArray scratch(DType::u8, kAdamWScratch);
  const Upload<AdamWSlice> device_slices(slices);
  const Upload<AdamWChunk> device_chunks(chunks);
  const Upload<StepState> device_state({state});
  adamw_step({.slices = device_slices.data(),
              .chunks = device_chunks.data(),
              .chunk_count = static_cast<int64_t>(chunks.size()),
              .chunk_size = size,
              .param_dtype = dtype,
              .state = device_state.data(),
              .largest = largest.data<double>(),
              .beta1 = kBeta1,
              .beta2 = kBeta2,
              .epsilon = kEpsilon,
              .scratch = scratch.data()},
             nullptr);
  GRADUS_CUDA_CHECK(cudaDeviceSynchronize());
}

const StepState kState{.attempted = 8, .applied = 7, .lr = 1e-2f, .clip_scale = 0.6f};

TEST(CudaAdamW, AgreesWithFp64) {
  constexpr int64_t kCounts[] = {1, 3, 37, 4096, 4097, 8192, 10001};
  for (const DType dtype : {DType::fp32, DType::bf16, DType::fp16}) {
    for (const int64_t offset : {0, 1}) {
      for (const int64_t size : {1024, 2048, 4096}) {
        SCOPED_TRACE(std::string(to_string(dtype)) + (offset > 0 ? " misaligned" : ""));
        std::vector<std::unique_ptr<Parameter>> parameters;
        std::vector<AdamWSlice> slices;
        for (const int64_t count : kCounts) {
          const double decay = count % 2 == 0 ? 0.1 : 0.0;
          parameters.push_back(std::make_unique<Parameter>(
              dtype, count, static_cast<uint64_t>(10 * count), decay, offset));
          slices.push_back(parameters.back()->slice(count));
        }
        struct Want {
          Numbers w, m, v;
        };
        std::vector<Want> wants;
        const double lr = kState.lr;
        const auto t = static_cast<double>(kState.applied);
        for (const auto& p : parameters) {
          Want want{p->weights().download(), p->m.download(), p->v.download()};
          const Numbers grad = p->grad.download();
          for (size_t i = 0; i < grad.size(); ++i) {
            const double g = grad[i] * static_cast<double>(kState.clip_scale);
            want.m[i] = kBeta1 * want.m[i] + (1 - kBeta1) * g;
            want.v[i] = kBeta2 * want.v[i] + (1 - kBeta2) * g * g;
            const double m_hat = want.m[i] / (1 - std::pow(kBeta1, t));
            const double v_hat = want.v[i] / (1 - std::pow(kBeta2, t));
            want.w[i] -= lr * (m_hat / (std::sqrt(v_hat) + kEpsilon) + p->weight_decay * want.w[i]);
          }
          wants.push_back(std::move(want));
        }
        const DeviceArray largest(DType::fp64, Numbers(3, 0.0));
        step(slices, dtype, kState, largest, size);

        Numbers want_largest(3, 0.0);
        for (size_t k = 0; k < parameters.size(); ++k) {
          const Parameter& p = *parameters[k];
          const Numbers w = p.weights().download();
          const Numbers m = p.m.download();
          const Numbers v = p.v.download();
          // A step nearly as large as the weight leaves the rounding of the larger.
          expect_close(w, wants[k].w, 1e-6, "weights", 0.3);
          expect_close(m, wants[k].m, 1e-6, "m");
          expect_close(v, wants[k].v, 1e-6, "v");
          for (size_t i = 0; i < w.size(); ++i) {
            want_largest[0] = std::max(want_largest[0], std::fabs(w[i]));
            want_largest[1] = std::max(want_largest[1], std::fabs(m[i]));
            want_largest[2] = std::max(want_largest[2], v[i]);
          }
          if (!p.in_place()) {
            const DeviceArray rounded(dtype, w);
            EXPECT_EQ(p.param.download(), rounded.download());
          }
        }
        EXPECT_EQ(largest.download(), want_largest);
      }
    }
  }
}

TEST(CudaAdamW, ChangesNothingAfterANonFiniteStep) {
  const Parameter p(DType::bf16, 5000, 1, 0.1, 0);
  const Parameter same(DType::bf16, 5000, 1, 0.1, 0);
  const DeviceArray largest(DType::fp64, Numbers{1.0, 2.0, 3.0});
  StepState state = kState;
  state.nonfinite = static_cast<int32_t>(StepFault::nonfinite);
  step({p.slice(5000)}, DType::bf16, state, largest, kAdamWChunk);
  EXPECT_EQ(p.master.download(), same.master.download());
  EXPECT_EQ(p.param.download(), same.param.download());
  EXPECT_EQ(p.m.download(), same.m.download());
  EXPECT_EQ(p.v.download(), same.v.download());
  EXPECT_EQ(largest.download(), (Numbers{1.0, 2.0, 3.0}));
}

/// What is not finite raises `largest` to infinity, and a larger one from before stays.
TEST(CudaAdamW, LargestOfWhatIsNotFinite) {
  const double infinity = std::numeric_limits<double>::infinity();
  const Parameter p(DType::fp32, 100, 1, 0.0, 0);
  Numbers grad = p.grad.download();
  grad[37] = std::numeric_limits<double>::quiet_NaN();
  const DeviceArray poisoned(DType::fp32, grad);
  AdamWSlice slice = p.slice(100);
  slice.grad = poisoned.data<float>();
  const DeviceArray largest(DType::fp64, Numbers(3, 0.0));
  step({slice}, DType::fp32, kState, largest, kAdamWChunk);
  EXPECT_EQ(largest.download(), Numbers(3, infinity));

  const Parameter fine(DType::fp32, 100, 1, 0.0, 0);
  const DeviceArray before(DType::fp64, Numbers{1e9, 0.0, 1e9});
  step({fine.slice(100)}, DType::fp32, kState, before, kAdamWChunk);
  const Numbers after = before.download();
  EXPECT_EQ(after[0], 1e9);
  EXPECT_GT(after[1], 0.0);
  EXPECT_EQ(after[2], 1e9);
}

TEST(CudaNorm, SquaresOfChunks) {
  for (const DType dtype : {DType::fp32, DType::bf16, DType::fp16}) {
    for (const int64_t count : {1, 33, 1023, 1024, 1025, 8192, 10000}) {
      for (const int64_t offset : {0, 1}) {
        SCOPED_TRACE(std::string(to_string(dtype)) + " " + std::to_string(count));
        const DeviceArray in(dtype, random_numbers(count, 3), offset);
        const int64_t chunks = (count + 1023) / 1024;
        const DeviceArray partials(DType::fp64, chunks);
        const DeviceArray sum(DType::fp64, 1);
        sum_of_squares({partials.data<double>(), in.data(), count, dtype}, nullptr);
        const Numbers values = in.download();
        Numbers want(static_cast<size_t>(chunks), 0.0);
        double total = 0.0;
        for (size_t i = 0; i < values.size(); ++i) want[i / 1024] += values[i] * values[i];
        for (const double part : want) total += part;
        expect_close(partials.download(), want, 1e-14, "partials");
        sum_partials(sum.data<double>(), partials.data<double>(), chunks, nullptr);
        expect_close(sum.download(), {total}, 1e-14, "sum");
      }
    }
  }
}

/// Where a slice lies must not change a chunk's bits: another layout has it elsewhere.
TEST(CudaNorm, AlignmentDoesNotChangeBits) {
  const DeviceArray here(DType::fp32, random_numbers(5000, 3), 0);
  const DeviceArray there(DType::fp32, random_numbers(5000, 3), 3);
  const DeviceArray a(DType::fp64, 5);
  const DeviceArray b(DType::fp64, 5);
  sum_of_squares({a.data<double>(), here.data(), 5000, DType::fp32}, nullptr);
  sum_of_squares({b.data<double>(), there.data(), 5000, DType::fp32}, nullptr);
  EXPECT_EQ(a.download(), b.download());
}

}  // namespace
}  // namespace gradus::cuda
