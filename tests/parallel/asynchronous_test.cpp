// Many operations under way at once, over several groups.

#include <gtest/gtest.h>

#include <chrono>
#include <deque>
#include <functional>
#include <random>
#include <thread>

#include "core/error.h"
#include "mpi_job.h"
#include "parallel/mesh.h"
#include "rank_data.h"
#include "support/allocation_count.h"

namespace gradus {
namespace {

using test::Buffer;
using test::rank_value;

float sum_over(const Communicator& group, uint64_t round, int64_t i) {
  float total = rank_value<float>(round, group.world_ranks()[0], i);
  for (const int rank : group.world_ranks().subspan(1)) total += rank_value<float>(round, rank, i);
  return total;
}

MeshShape two_axes() {
  const int ranks = test::job().size();
  const int tp = ranks % 2 == 0 ? 2 : 1;
  return {1, ranks / tp, 1, tp};
}

TEST(Asynchronous, InterleavedGroupsKeepProgramOrder) {
  Mesh mesh(test::job(), two_axes());
  Executor x(Device::cpu, 1);
  const int rank = test::job().rank();
  std::mt19937_64 shared(7);                               // the same program on every rank
  std::mt19937_64 own(100 + static_cast<uint64_t>(rank));  // but other delays
  struct Flight {
    Flight(int64_t in_count, int64_t out_count) : in(in_count), out(out_count) {}
    Buffer<float> in, out;
    Pending pending;
    std::function<float(int64_t)> expected;
  };
  std::deque<Flight> flights;
  const auto land = [&] {
    // Any order of waiting is allowed.
    const size_t index = own() % flights.size();
    Flight& flight = flights[index];
    flight.pending.wait(x);
    EXPECT_EQ(flight.out.first_difference(flight.expected), -1);
    EXPECT_TRUE(flight.out.guards_intact());
    std::swap(flights[index], flights.back());
    flights.pop_back();
  };
  for (uint64_t round = 0; round < 300; ++round) {
    Communicator* groups[] = {&mesh.tp(), &mesh.dp(), &mesh.world()};
    Communicator& group = *groups[shared() % 3];
    const int64_t n = static_cast<int64_t>(shared() % (round % 50 == 0 ? 300000 : 900));
    const uint64_t kind = shared() % 4;
    const int64_t parts = group.size();
    const int root = static_cast<int>(shared() % static_cast<uint64_t>(parts));
    Flight& flight = flights.emplace_back(kind == 1 ? n * parts : n, kind == 2 ? n * parts : n);
    flight.in.fill(round, rank);
    Communicator* g = &group;
    switch (kind) {
      case 0:
        flight.expected = [=](int64_t i) { return sum_over(*g, round, i); };
        flight.pending = group.all_reduce(x, flight.out.tensor(), flight.in.tensor());
        break;
      case 1:
        flight.expected = [=](int64_t i) { return sum_over(*g, round, n * g->rank() + i); };
        flight.pending = group.reduce_scatter(x, flight.out.tensor(), flight.in.tensor());
        break;
      case 2:
        flight.expected = [=](int64_t i) {
          return rank_value<float>(round, g->world_ranks()[static_cast<size_t>(i / n)], i % n);
        };
        flight.pending = group.all_gather(x, flight.out.tensor(), flight.in.tensor());
        break;
      default:
        flight.expected = [=](int64_t i) {
          return rank_value<float>(round, g->world_ranks()[static_cast<size_t>(root)], i);
        };
        flight.out.fill(round, rank);
        flight.pending = group.broadcast(x, flight.out.tensor(), root);
        break;
    }
    if (own() % 16 == 0) std::this_thread::sleep_for(std::chrono::microseconds(own() % 500));
    while (flights.size() > 40) land();
  }
  while (!flights.empty()) land();
}

TEST(Asynchronous, ExchangesBetweenOnePairMatchInProgramOrder) {
  const int ranks = test::job().size();
  if (ranks == 1) return;  // nobody to exchange with; collectives_test covers the refusal
  std::unique_ptr<Communicator> line = test::job().split(0, "line");
  Executor x(Device::cpu, 1);
  const int rank = line->rank();
  // A pipeline: every rank passes messages of growing size on, many of them under way.
  constexpr int kMessages = 50;
  std::deque<Buffer<float>> received, sent;
  std::vector<Pending> pending;
  for (int m = 0; m < kMessages; ++m) {
    const int64_t n = 1 + 37 * m;
    received.emplace_back(n);
    sent.emplace_back(n);
    sent.back().fill(static_cast<uint64_t>(m), rank);
    std::vector<Transfer> transfers;
    if (rank > 0) transfers.push_back(Transfer::recv(received.back().tensor(), rank - 1));
    if (rank + 1 < ranks) transfers.push_back(Transfer::send(sent.back().tensor(), rank + 1));
    pending.push_back(line->exchange(x, transfers));
  }
  for (Pending& each : pending) each.wait(x);
  for (int m = 0; m < kMessages && rank > 0; ++m) {
    EXPECT_EQ(received[static_cast<size_t>(m)].first_difference([&](int64_t i) {
      return rank_value<float>(static_cast<uint64_t>(m), rank - 1, i);
    }),
              -1)
        << m;
  }
}

TEST(Asynchronous, AHandleDroppedUnwaitedLeavesItsBuffersAlone) {
  std::unique_ptr<Communicator> group = test::job().split(0, "dropped");
  Executor x(Device::cpu, 1);
  Buffer<float> total(100);
  {
    Buffer<float> in(100);
    in.fill(1, group->rank());
    Pending dropped = group->all_reduce(x, total.tensor(), in.tensor());
  }
  EXPECT_EQ(total.first_difference([&](int64_t i) { return sum_over(*group, 1, i); }), -1);
}

TEST(Asynchronous, AnEndlessQueueIsRefused) {
  if (test::job().size() == 1) return;  // nothing is ever outstanding
  std::unique_ptr<Communicator> group = test::job().split(0, "queue");
  Executor x(Device::cpu, 1);
  std::vector<Pending> pending;
  EXPECT_THROW(
      {
        for (int i = 0; i < 2000; ++i) pending.push_back(group->barrier(x));
      },
      MpiError);
  EXPECT_EQ(pending.size(), 1024u);
  for (Pending& each : pending) each.wait(x);
}

TEST(Asynchronous, TheSteadyStateDoesNotAllocate) {
  Mesh mesh(test::job(), two_axes());
  Executor x(Device::cpu, 1);
  const int ranks = test::job().size();
  const int64_t n = 60 * 1024;
  Buffer<float> a(n), b(n), c(n), part(n / mesh.dp().size());
  for (Buffer<float>* each : {&a, &b, &c}) each->fill(1, test::job().rank());
  const auto step = [&] {
    Pending first = mesh.world().all_reduce(x, a.tensor(), a.tensor());
    Pending second = mesh.dp().reduce_scatter(x, part.tensor(), b.tensor());
    first.wait(x);
    Pending third = mesh.tp().all_reduce(x, c.tensor(), c.tensor(), ReduceOp::max);
    second.wait(x);
    mesh.dp().all_gather(x, b.tensor(), part.tensor()).wait(x);
    third.wait(x);
    if (ranks > 1) {
      const int rank = mesh.world().rank();
      const Transfer transfers[] = {Transfer::send(a.tensor(), (rank + 1) % ranks),
                                    Transfer::recv(c.tensor(), (rank + ranks - 1) % ranks)};
      mesh.world().exchange(x, transfers).wait(x);
    }
    for (int64_t i = 0; i < n; ++i) a[i] = b[i] = 0.5f;
  };
  for (int i = 0; i < 5; ++i) step();
  mesh.world().barrier(x).wait(x);
  const int64_t before = test::allocation_count();
  for (int i = 0; i < 50; ++i) step();
  EXPECT_EQ(test::allocation_count() - before, 0);  // MPI's own C code is not seen
}

}  // namespace
}  // namespace gradus
