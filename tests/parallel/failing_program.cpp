// A rank of a job in which something goes wrong; failure_test.cmake starts it and looks at what is
// left. usage: failing_program WAY TIMEOUT_S

#include <sys/resource.h>

#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "core/error.h"
#include "parallel/mesh.h"

namespace gradus {
namespace {

constexpr int kCulprit = 1;

void sleep_for_ever() {
  for (;;) std::this_thread::sleep_for(std::chrono::hours(1));
}

int body(Bootstrap& job, const std::string& way) {
  const bool culprit = job.rank() == kCulprit;
  if (way == "plain") {
    // What a laptop does: no launcher, and MPI must not be needed.
    Mesh mesh(job, resolve_mesh(job.size(), 1, 1, 1, std::nullopt));
    std::printf("rank %d of %d, groups of %d\n", job.rank(), job.size(), mesh.dp().size());
    return 0;
  }
  if (way == "code") return 5;
  if (way == "everyone") throw ConfigError("train.yaml:3: every rank reads this");

  Mesh mesh(job, resolve_mesh(job.size(), 1, 1, 1, std::nullopt));
  Executor x(Device::cpu, 1);
  std::vector<float> data(1 << 20, 1.0f);
  const Tensor tensor(data.data(), DType::fp32, Device::cpu, Shape{1 << 20}, "gradient");
  mesh.dp().all_reduce(x, tensor, tensor).wait(x);

  if (way == "throw" && culprit) throw DataError("shard 7 is torn");
  if (way == "throw_early" && job.rank() == 0) throw DataError("shard 7 is torn");
  if (way == "unknown" && culprit) throw 42;  // NOLINT
  if (way == "pending" && culprit) {
    // The other ranks never join; the buffer dies with the error that passes by.
    std::vector<float> own(1 << 20, 2.0f);
    const Tensor gone(own.data(), DType::fp32, Device::cpu, Shape{1 << 20}, "gone");
    Pending pending = mesh.dp().all_reduce(x, gone, gone);
    throw NumericError("loss is not finite");
  }
  if (way == "abort" && culprit) mesh.dp().abort("i/o error: disk is full");
  if (way == "exit" && culprit) std::exit(0);
  if (way.starts_with("kill") && culprit) std::raise(SIGKILL);
  if (way == "kill_busy") sleep_for_ever();  // computes, and does not look
  if (way == "segfault" && culprit) {
    const rlimit no_core{0, 0};
    setrlimit(RLIMIT_CORE, &no_core);
    std::signal(SIGSEGV, SIG_DFL);
    std::raise(SIGSEGV);
  }
  if (way == "return" && culprit) return 0;
  if ((way == "sleep" || way == "sleep_exchange") && culprit) sleep_for_ever();
  if (way == "stop" && culprit) std::raise(SIGSTOP);
  if (way == "stop_first" && job.rank() == 0) std::raise(SIGSTOP);
  if (way == "size" && culprit) {
    mesh.dp().all_gather(x, tensor.slice(0, 0, 3 * 5), tensor.slice(0, 20, 5)).wait(x);
  } else if (way == "size") {
    mesh.dp().all_gather(x, tensor.slice(0, 0, 3 * 4), tensor.slice(0, 20, 4)).wait(x);
  }
  if (way == "sleep_exchange" && job.rank() == 0) {
    const Transfer transfers[] = {Transfer::recv(tensor, kCulprit)};
    mesh.pp().exchange(x, {}).wait(x);
    mesh.world().exchange(x, transfers).wait(x);
  }
  mesh.world().barrier(x).wait(x);
  if (way == "return") mesh.world().barrier(x).wait(x);
  sleep_for_ever();
  return 0;
}

}  // namespace
}  // namespace gradus

int main(int argc, char** argv) {
  if (argc != 3) return 2;
  gradus::BootstrapOptions options;
  if (std::strcmp(argv[1], "environment") != 0) {
    options.communication_timeout_s = std::atof(argv[2]);
  }
  return gradus::run_job(options,
                         [&](gradus::Bootstrap& job) { return gradus::body(job, argv[1]); });
}
