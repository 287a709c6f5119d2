// Bootstrap and mesh as the ranks of one job see them.

#include <gtest/gtest.h>

#include <map>
#include <set>

#include "core/error.h"
#include "mpi_job.h"
#include "parallel/mesh.h"
#include "rank_data.h"

namespace gradus {
namespace {

using test::Buffer;

TEST(Bootstrap, RanksOfThisMachineDoNotShareCores) {
  Bootstrap& job = test::job();
  EXPECT_EQ(job.local_size(), job.size());  // tests run on one machine
  EXPECT_EQ(job.local_rank(), job.rank());
  EXPECT_GE(job.threads(), 1);
  EXPECT_EQ(affinity_of_thread(), job.cores());
  std::map<int, int> users;
  std::set<int> cpus;
  for (const std::string& theirs : job.exchange(to_string(job.cores()))) {
    for (const int cpu : parse_cpu_set(theirs)) {
      ++users[cpu];
      cpus.insert(cpu);
    }
  }
  if (cpus.size() < static_cast<size_t>(job.size())) {
    EXPECT_EQ(job.threads(), 1);
  } else {
    for (const auto& [cpu, count] : users) EXPECT_EQ(count, 1) << "cpu " << cpu;
  }
}

TEST(Bootstrap, ExchangeBringsEveryRanksText) {
  Bootstrap& job = test::job();
  const auto text_of = [](int rank) {
    return rank == 1
               ? std::string()
               : std::string(static_cast<size_t>(3 * rank + 1), 'a' + static_cast<char>(rank));
  };
  const std::vector<std::string> all = job.exchange(text_of(job.rank()));
  ASSERT_EQ(all.size(), static_cast<size_t>(job.size()));
  for (int rank = 0; rank < job.size(); ++rank) {
    EXPECT_EQ(all[static_cast<size_t>(rank)], text_of(rank));
  }
}

std::vector<int> members(const Communicator& group) {
  return {group.world_ranks().begin(), group.world_ranks().end()};
}

/// Every shape that this many ranks can take.
std::vector<MeshShape> shapes(int ranks) {
  std::vector<MeshShape> all;
  for (int pp = 1; pp <= ranks; ++pp) {
    for (int cp = 1; pp * cp <= ranks; ++cp) {
      for (int tp = 1; pp * cp * tp <= ranks; ++tp) {
        if (ranks % (pp * cp * tp) == 0) all.push_back(resolve_mesh(ranks, tp, pp, cp, {}));
      }
    }
  }
  return all;
}

TEST(Mesh, GroupsAreTheLinesOfTheMesh) {
  Bootstrap& job = test::job();
  Executor x(Device::cpu, 1);
  for (const MeshShape& shape : shapes(job.size())) {
    Mesh mesh(job, shape);
    const MeshCoordinates at = mesh.at();
    EXPECT_EQ(rank_of(shape, at), job.rank());
    EXPECT_EQ(mesh.world().size(), job.size());
    EXPECT_EQ(mesh.world().rank(), job.rank());
    struct Line {
      Communicator& group;
      int MeshCoordinates::*axis;
      int size;
    };
    for (const Line& line : {Line{mesh.tp(), &MeshCoordinates::tp, shape.tp},
                             Line{mesh.cp(), &MeshCoordinates::cp, shape.cp},
                             Line{mesh.dp(), &MeshCoordinates::dp, shape.dp},
                             Line{mesh.pp(), &MeshCoordinates::pp, shape.pp}}) {
      std::vector<int> expected;
      for (int i = 0; i < line.size; ++i) {
        MeshCoordinates other = at;
        other.*line.axis = i;
        expected.push_back(rank_of(shape, other));
      }
      EXPECT_EQ(members(line.group), expected) << line.group.name() << " of " << to_string(shape);
      EXPECT_EQ(line.group.rank(), at.*line.axis);
      // And they talk to each other, not to the neighbouring line.
      Buffer<double> sum(1);
      sum[0] = job.rank();
      line.group.all_reduce(x, sum.tensor(), sum.tensor()).wait(x);
      double total = 0;
      for (const int rank : expected) total += rank;
      EXPECT_EQ(sum[0], total);
    }
    std::vector<int> ends{job.rank()};
    if (shape.pp > 1 && (mesh.first_stage() || mesh.last_stage())) {
      MeshCoordinates first = at, last = at;
      first.pp = 0;
      last.pp = shape.pp - 1;
      ends = {rank_of(shape, first), rank_of(shape, last)};
    }
    EXPECT_EQ(members(mesh.embedding()), ends) << to_string(shape);
  }
}

TEST(Mesh, AnotherNumberOfRanksIsRefused) {
  EXPECT_THROW(Mesh(test::job(), (MeshShape{1, test::job().size() + 1, 1, 1})), ConfigError);
}

}  // namespace
}  // namespace gradus
