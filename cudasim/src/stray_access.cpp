#include "stray_access.h"

#include <csignal>
#include <cstdio>
#include <string>

#include "block.h"
#include "device.h"
#include "device_memory.h"

namespace cudasim {
namespace {

struct sigaction before_segv;
struct sigaction before_bus;

void handle(int signal, siginfo_t* info, void* /*context*/) {
  const void* address = info->si_addr;
  if (BlockRunner::is_running()) {
    BlockRunner& block = BlockRunner::current();
    // Not returned from: the thread's stack is given up with what is on it.
    block.fail(cudaErrorIllegalAddress, [&] {
      return block.who() + " touches " + Device::get().memory().describe(address);
    });
  }
  if (DevicePages::hold(address)) {
    std::fprintf(stderr, "cudasim: the host touches %s\n",
                 Device::get().memory().describe(address).c_str());
  }
  sigaction(signal, signal == SIGSEGV ? &before_segv : &before_bus, nullptr);
}

}  // namespace

void watch_stray_accesses() {
  if (!kOwnPages) {
    return;
  }
  struct sigaction action = {};
  action.sa_sigaction = handle;
  action.sa_flags = SA_SIGINFO | SA_NODEFER;
  sigaction(SIGSEGV, &action, &before_segv);
  sigaction(SIGBUS, &action, &before_bus);
}

}  // namespace cudasim
