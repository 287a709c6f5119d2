#include <gtest/gtest.h>

#include <map>
#include <string>

#include "core/error.h"
#include "parallel/bootstrap_launch.h"

namespace gradus {
namespace {

Launch detect(const std::map<std::string, std::string>& variables) {
  return detect_launch([&](const char* name) -> const char* {
    const auto found = variables.find(name);
    return found == variables.end() ? nullptr : found->second.c_str();
  });
}

TEST(Launch, APlainStartIsOneRank) {
  EXPECT_FALSE(detect({}).parallel());
  // A shell or a batch script inside an allocation of four tasks.
  EXPECT_FALSE(detect({{"SLURM_JOB_ID", "7"}, {"SLURM_NTASKS", "4"}}).parallel());
}

TEST(Launch, LaunchersAreTold) {
  const Launch mpirun = detect({{"OMPI_COMM_WORLD_SIZE", "4"},
                                {"OMPI_COMM_WORLD_RANK", "2"},
                                {"PMIX_RANK", "2"},
                                {"SLURM_STEP_ID", "0"},
                                {"SLURM_STEP_NUM_TASKS", "1"}});
  EXPECT_TRUE(mpirun.parallel());
  EXPECT_EQ(mpirun.launcher, "mpirun");
  EXPECT_EQ(mpirun.size, 4);
  EXPECT_EQ(mpirun.rank, 2);
  const Launch srun = detect({{"SLURM_STEP_ID", "0"},
                              {"SLURM_STEP_NUM_TASKS", "8"},
                              {"SLURM_PROCID", "3"},
                              {"PMI_SIZE", "8"}});
  EXPECT_EQ(srun.launcher, "srun");
  EXPECT_EQ(srun.size, 8);
  EXPECT_EQ(srun.rank, 3);
  EXPECT_EQ(detect({{"PMI_SIZE", "2"}, {"PMI_RANK", "1"}}).size, 2);
  EXPECT_TRUE(detect({{"PMIX_RANK", "0"}}).parallel());
}

TEST(Launch, OneRankOfALauncherNeedsNoMpi) {
  EXPECT_FALSE(detect({{"OMPI_COMM_WORLD_SIZE", "1"}}).parallel());
  EXPECT_FALSE(detect({{"SLURM_STEP_ID", "0"}, {"SLURM_STEP_NUM_TASKS", "1"}}).parallel());
}

TEST(Launch, NonsenseIsRefused) {
  EXPECT_THROW(detect({{"OMPI_COMM_WORLD_SIZE", "four"}}), MpiError);
  EXPECT_THROW(detect({{"PMI_SIZE", "-1"}}), MpiError);
}

TEST(Launch, RanksThatAPlainStartOverlooksAreSaid) {
  const auto overlooked = [](const std::map<std::string, std::string>& variables) {
    return overlooked_ranks([&](const char* name) -> const char* {
      const auto found = variables.find(name);
      return found == variables.end() ? nullptr : found->second.c_str();
    });
  };
  EXPECT_EQ(
      overlooked({{"WORLD_SIZE", "2"}, {"RANK", "1"}}),
      "WORLD_SIZE=2 and RANK=1 are set, as torchrun sets them, which gradus does not learn its "
      "ranks from: start it with mpirun -np 2 or srun");
  EXPECT_EQ(
      overlooked({{"SLURM_NTASKS", "8"}}),
      "SLURM_NTASKS=8 is set, the tasks of a Slurm allocation: start them with srun or mpirun "
      "-np 8");
  EXPECT_NE(overlooked({{"FLUX_JOB_SIZE", "4"}, {"FLUX_TASK_RANK", "0"}}), "");
  EXPECT_EQ(overlooked({}), "");
  EXPECT_EQ(overlooked({{"WORLD_SIZE", "1"}, {"RANK", "0"}, {"SLURM_NTASKS", "1"}}), "");
  EXPECT_EQ(overlooked({{"WORLD_SIZE", "many"}, {"RANK", "0"}}), "");
  EXPECT_EQ(overlooked({{"WORLD_SIZE", "4"}}), "") << "nothing says that there are processes";
}

TEST(Launch, SharedMemoryThatIsTooSmallIsNamedOnceAMachine) {
  constexpr int64_t kMiB = int64_t{1} << 20;
  const auto said = [](const std::map<std::string, std::string>& variables, int64_t free_bytes) {
    return crowded_shared_memory(
        [&](const char* name) -> const char* {
          const auto found = variables.find(name);
          return found == variables.end() ? nullptr : found->second.c_str();
        },
        free_bytes);
  };
  std::map<std::string, std::string> two = {{"OMPI_COMM_WORLD_LOCAL_SIZE", "2"},
                                            {"OMPI_COMM_WORLD_LOCAL_RANK", "0"}};
  EXPECT_EQ(said(two, kMiB).substr(0, 75),
            "/dev/shm has 1.0 MiB free, and Open MPI needs 8 MiB of it for the 2 ranks o");
  EXPECT_EQ(said(two, 8 * kMiB), "");
  EXPECT_EQ(said(two, -1), "") << "no /dev/shm";
  for (const char* with : {"self,vader", "self,sm,tcp", "^tcp"}) {
    two["OMPI_MCA_btl"] = with;
    EXPECT_NE(said(two, kMiB), "") << with;
  }
  for (const char* without : {"self,tcp", "^vader", "^sm"}) {
    two["OMPI_MCA_btl"] = without;
    EXPECT_EQ(said(two, kMiB), "") << without;
  }
  two.erase("OMPI_MCA_btl");
  two["OMPI_MCA_btl_vader_backing_directory"] = "/tmp";
  EXPECT_EQ(said(two, kMiB), "");
  EXPECT_EQ(said({{"OMPI_COMM_WORLD_LOCAL_SIZE", "2"}, {"OMPI_COMM_WORLD_LOCAL_RANK", "1"}}, kMiB),
            "");
  EXPECT_EQ(said({}, 0), "") << "another launcher";
}

}  // namespace
}  // namespace gradus
