// Every operation × dtype × odd sizes against what each rank works out for itself, bit for bit.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <type_traits>

#include "core/error.h"
#include "mpi_job.h"
#include "rank_data.h"

namespace gradus {
namespace {

using test::Buffer;
using test::rank_value;

// Empty, single, fewer elements than ranks, primes, and past two chunks of staging memory a rank.
const std::vector<int64_t> kSizes = {0, 1, 2, 3, 5, 17, 1021, 65537, 300007};

class CollectivesBase : public testing::Test {
 protected:
  static void SetUpTestSuite() { world_ = test::job().split(0, "all").release(); }
  static void TearDownTestSuite() {
    delete world_;
    world_ = nullptr;
  }
  int rank() const { return world_->rank(); }
  int size() const { return world_->size(); }

  Executor x_{Device::cpu, 1};
  static inline Communicator* world_ = nullptr;
};

template <typename T>
class Collectives : public CollectivesBase {
 public:
  using A = std::conditional_t<std::is_same_v<T, bf16>, float, T>;

  static T sum(uint64_t round, int ranks, int64_t i) {
    A total = static_cast<A>(rank_value<T>(round, 0, i));
    for (int r = 1; r < ranks; ++r) total += static_cast<A>(rank_value<T>(round, r, i));
    return static_cast<T>(total);
  }
  static T max(uint64_t round, int ranks, int64_t i) {
    A best = static_cast<A>(rank_value<T>(round, 0, i));
    for (int r = 1; r < ranks; ++r)
      best = std::max(best, static_cast<A>(rank_value<T>(round, r, i)));
    return static_cast<T>(best);
  }
};

using Types = testing::Types<double, float, bf16, int32_t, uint8_t>;
TYPED_TEST_SUITE(Collectives, Types);

template <typename T>
class Sums : public Collectives<T> {};
using RealTypes = testing::Types<double, float, bf16>;
TYPED_TEST_SUITE(Sums, RealTypes);

TYPED_TEST(Sums, AllReduceAddsInRankOrder) {
  std::vector<int64_t> sizes = kSizes;
  sizes.push_back(1100003);  // its pieces are a rank's share
  for (const int64_t n : sizes) {
    Buffer<TypeParam> in(n), out(n);
    in.fill(1, this->rank());
    this->world_->all_reduce(this->x_, out.tensor(), in.tensor()).wait(this->x_);
    EXPECT_EQ(out.first_difference([&](int64_t i) { return this->sum(1, this->size(), i); }), -1)
        << n;
    EXPECT_EQ(
        in.first_difference([&](int64_t i) { return rank_value<TypeParam>(1, this->rank(), i); }),
        -1)
        << n;
    this->world_->all_reduce(this->x_, in.tensor(), in.tensor()).wait(this->x_);
    EXPECT_EQ(in.first_difference([&](int64_t i) { return this->sum(1, this->size(), i); }), -1)
        << n;
    EXPECT_TRUE(in.guards_intact() && out.guards_intact()) << n;
  }
}

TYPED_TEST(Sums, ReduceScatterAddsInRankOrder) {
  for (const int64_t n : kSizes) {
    Buffer<TypeParam> in(n * this->size()), out(n);
    in.fill(2, this->rank());
    const int64_t begin = n * this->rank();
    this->world_->reduce_scatter(this->x_, out.tensor(), in.tensor()).wait(this->x_);
    const auto expected = [&](int64_t i) { return this->sum(2, this->size(), begin + i); };
    EXPECT_EQ(out.first_difference(expected), -1) << n;
    // Into this rank's slice of the input; the other slices stay.
    this->world_->reduce_scatter(this->x_, in.tensor().slice(0, begin, n), in.tensor())
        .wait(this->x_);
    EXPECT_EQ(in.first_difference([&](int64_t i) {
      return i >= begin && i < begin + n ? expected(i - begin)
                                         : rank_value<TypeParam>(2, this->rank(), i);
    }),
              -1)
        << n;
    EXPECT_TRUE(in.guards_intact() && out.guards_intact()) << n;
  }
}

TYPED_TEST(Sums, ANanOnOneRankIsTheMaximum) {
  Buffer<TypeParam> in(3), out(3);
  in.fill(3, this->rank());
  if (this->rank() == this->size() - 1) {
    in[1] = static_cast<TypeParam>(std::numeric_limits<float>::quiet_NaN());
  }
  this->world_->all_reduce(this->x_, out.tensor(), in.tensor(), ReduceOp::max).wait(this->x_);
  EXPECT_TRUE(std::isnan(static_cast<double>(static_cast<float>(out[1]))));
  EXPECT_FALSE(std::isnan(static_cast<double>(static_cast<float>(out[0]))));
}

TYPED_TEST(Collectives, AllReduceAndReduceScatterTakeTheMaximum) {
  for (const int64_t n : kSizes) {
    Buffer<TypeParam> in(n * this->size()), out(n * this->size()), part(n);
    in.fill(4, this->rank());
    this->world_->all_reduce(this->x_, out.tensor(), in.tensor(), ReduceOp::max).wait(this->x_);
    EXPECT_EQ(out.first_difference([&](int64_t i) { return this->max(4, this->size(), i); }), -1)
        << n;
    this->world_->reduce_scatter(this->x_, part.tensor(), in.tensor(), ReduceOp::max)
        .wait(this->x_);
    EXPECT_EQ(part.first_difference(
                  [&](int64_t i) { return this->max(4, this->size(), n * this->rank() + i); }),
              -1)
        << n;
    EXPECT_TRUE(out.guards_intact() && part.guards_intact()) << n;
  }
}

TYPED_TEST(Collectives, AllGatherConcatenatesInRankOrder) {
  for (const int64_t n : kSizes) {
    Buffer<TypeParam> in(n), out(n * this->size()), in_place(n * this->size());
    in.fill(5, this->rank());
    const auto expected = [&](int64_t i) {
      return rank_value<TypeParam>(5, static_cast<int>(i / n), i % n);
    };
    this->world_->all_gather(this->x_, out.tensor(), in.tensor()).wait(this->x_);
    EXPECT_EQ(out.first_difference(expected), -1) << n;
    const Tensor slice = in_place.tensor().slice(0, n * this->rank(), n);
    for (int64_t i = 0; i < n; ++i) in_place[n * this->rank() + i] = in[i];
    this->world_->all_gather(this->x_, in_place.tensor(), slice).wait(this->x_);
    EXPECT_EQ(in_place.first_difference(expected), -1) << n;
    EXPECT_TRUE(out.guards_intact() && in_place.guards_intact()) << n;
  }
}

TYPED_TEST(Collectives, AllToAllTransposesSlices) {
  for (const int64_t n : kSizes) {
    Buffer<TypeParam> in(n * this->size()), out(n * this->size());
    in.fill(6, this->rank());
    this->world_->all_to_all(this->x_, out.tensor(), in.tensor()).wait(this->x_);
    EXPECT_EQ(out.first_difference([&](int64_t i) {
      return rank_value<TypeParam>(6, static_cast<int>(i / n), this->rank() * n + i % n);
    }),
              -1)
        << n;
    EXPECT_TRUE(out.guards_intact()) << n;
  }
}

TYPED_TEST(Collectives, BroadcastCopiesEveryRoot) {
  for (const int64_t n : kSizes) {
    for (int root = 0; root < this->size(); ++root) {
      Buffer<TypeParam> inout(n);
      inout.fill(7, this->rank());
      this->world_->broadcast(this->x_, inout.tensor(), root).wait(this->x_);
      EXPECT_EQ(
          inout.first_difference([&](int64_t i) { return rank_value<TypeParam>(7, root, i); }), -1)
          << n;
      EXPECT_TRUE(inout.guards_intact()) << n;
    }
  }
}

TYPED_TEST(Collectives, ExchangeCrossesWithoutDeadlock) {
  if (this->size() == 1) {
    EXPECT_THROW((void)this->world_->exchange(
                     this->x_, std::vector{Transfer::send(Buffer<TypeParam>(1).tensor(), 0)}),
                 ShapeError);
    return;
  }
  const int next = (this->rank() + 1) % this->size();
  const int previous = (this->rank() + this->size() - 1) % this->size();
  for (const int64_t n : kSizes) {
    Buffer<TypeParam> to_next(n), to_previous(2 * n), from_next(2 * n), from_previous(n);
    to_next.fill(8, this->rank());
    to_previous.fill(9, this->rank());
    this->world_
        ->exchange(this->x_, std::vector{Transfer::send(to_next.tensor(), next),
                                         Transfer::recv(from_previous.tensor(), previous)})
        .wait(this->x_);
    this->world_
        ->exchange(this->x_, std::vector{Transfer::recv(from_next.tensor(), next),
                                         Transfer::send(to_previous.tensor(), previous)})
        .wait(this->x_);
    EXPECT_EQ(from_previous.first_difference(
                  [&](int64_t i) { return rank_value<TypeParam>(8, previous, i); }),
              -1)
        << n;
    EXPECT_EQ(
        from_next.first_difference([&](int64_t i) { return rank_value<TypeParam>(9, next, i); }),
        -1)
        << n;
    EXPECT_TRUE(from_next.guards_intact() && from_previous.guards_intact()) << n;
  }
}

TEST_F(CollectivesBase, DataOfEveryDTypeIsMoved) {
  std::vector<std::byte> in(6, std::byte(static_cast<unsigned char>(rank() + 1)));
  std::vector<std::byte> out(6 * static_cast<size_t>(size()));
  const Tensor from(in.data(), DType::fp16, Device::cpu, Shape{3}, "from");
  const Tensor to(out.data(), DType::fp16, Device::cpu, Shape{3 * size()}, "to");
  world_->all_gather(x_, to, from).wait(x_);
  for (size_t i = 0; i < out.size(); ++i)
    EXPECT_EQ(static_cast<int>(out[i]), static_cast<int>(i / 6) + 1);
}

TEST_F(CollectivesBase, RefusesWhatDoesNotFit) {
  Buffer<float> a(12), b(12);
  Buffer<double> c(12);
  Buffer<int32_t> d(12);
  const auto refused = [&](auto&& call, const char* reason) {
    try {
      (void)call();
      ADD_FAILURE() << "accepted: " << reason;
    } catch (const ShapeError& error) {
      EXPECT_NE(std::string(error.what()).find(reason), std::string::npos) << error.what();
    }
  };
  refused([&] { return world_->all_reduce(x_, a.tensor().slice(0, 0, 5), b.tensor()); },
          "does not fit");
  refused([&] { return world_->all_reduce(x_, a.tensor(), c.tensor()); }, "differ");
  refused([&] { return world_->all_reduce(x_, d.tensor(), d.tensor()); }, "sum of i32");
  refused([&] { return world_->all_reduce(x_, Tensor(), a.tensor()); }, "undefined");
  refused(
      [&] { return world_->all_reduce(x_, a.tensor().slice(0, 0, 4), a.tensor().slice(0, 1, 4)); },
      "overlaps");
  const Tensor columns = a.tensor().reshape({3, 4}).slice(1, 0, 2);
  refused([&] { return world_->broadcast(x_, columns, 0); }, "not contiguous");
  refused([&] { return world_->broadcast(x_, a.tensor(), size()); }, "not in the group");
  refused([&] { return world_->all_to_all(x_, a.tensor(), a.tensor()); }, "overlaps");
  if (size() > 1) {
    const int64_t n = 12 / size() * size();
    const int wrong = (rank() + 1) % size();
    refused(
        [&] {
          const Tensor whole = a.tensor().slice(0, 0, n);
          return world_->all_gather(x_, whole, whole.slice(0, wrong * (n / size()), n / size()));
        },
        "not its slice");
  }
}

TEST_F(CollectivesBase, TheObserverHearsOfOutputs) {
  struct Listener : OperationObserver {
    void completed(const char* operation, const ConstTensor& written) override {
      heard.push_back(std::string(operation) + " " + written.name());
    }
    std::vector<std::string> heard;
  } listener;
  x_.observe(&listener);
  Buffer<float> a(2), b(2 * size());
  a.fill(1, rank());
  world_->all_reduce(x_, a.tensor("total"), a.tensor()).wait(x_);
  world_->all_gather(x_, b.tensor("whole"), a.tensor()).wait(x_);
  world_->barrier(x_).wait(x_);
  EXPECT_EQ(listener.heard, (std::vector<std::string>{"all_reduce total", "all_gather whole"}));
}

TEST_F(CollectivesBase, SentBytesAreThoseOfTheFormulas) {
  const int64_t ranks = size();
  const int64_t n = 60 * 1024;  // divides by 1 to 6 ranks
  Buffer<float> a(n), b(n), part(n / ranks);
  a.fill(1, rank());
  struct Case {
    Collective collective;
    std::function<Pending()> call;
    int64_t sent;
  };
  const int64_t bytes = 4 * n;
  const std::vector<Case> cases = {
      {Collective::all_reduce, [&] { return world_->all_reduce(x_, b.tensor(), a.tensor()); },
       2 * bytes * (ranks - 1) / ranks},
      {Collective::reduce_scatter,
       [&] { return world_->reduce_scatter(x_, part.tensor(), a.tensor()); },
       bytes * (ranks - 1) / ranks},
      {Collective::all_gather, [&] { return world_->all_gather(x_, b.tensor(), part.tensor()); },
       bytes * (ranks - 1) / ranks},
      {Collective::all_to_all, [&] { return world_->all_to_all(x_, b.tensor(), a.tensor()); },
       bytes * (ranks - 1) / ranks},
  };
  for (const Case& each : cases) {
    const Traffic before = world_->traffic(each.collective);
    each.call().wait(x_);
    const Traffic after = world_->traffic(each.collective);
    EXPECT_EQ(after.calls - before.calls, 1);
    EXPECT_EQ(after.bytes - before.bytes, bytes) << to_string(each.collective);
    EXPECT_EQ(after.sent - before.sent, each.sent) << to_string(each.collective);
  }
}

}  // namespace
}  // namespace gradus
