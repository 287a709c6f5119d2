#include "parallel/local_peers.h"

#include <poll.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace gradus {
namespace {

/// -1 where the kernel cannot or will not. The wrapper of Debian 12's C library cannot be linked
/// from C++: its header declares it without C linkage.
int open_pidfd(pid_t pid) {
#ifdef SYS_pidfd_open
  return static_cast<int>(syscall(SYS_pidfd_open, pid, 0));
#else
  return -1;
#endif
}

}  // namespace

PeerProcess PeerProcess::self(int rank) {
  struct stat status {};
  const bool known = stat("/proc/self/ns/pid", &status) == 0;
  return {rank, getpid(), known ? status.st_ino : 0};
}

LocalPeers::~LocalPeers() {
  for (const Watched& each : watched_) close(each.descriptor);
}

bool LocalPeers::watch(const PeerProcess& peer) {
  const PeerProcess self = PeerProcess::self(0);
  if (peer.pid_namespace == 0 || peer.pid_namespace != self.pid_namespace) return false;
  const int descriptor = open_pidfd(peer.pid);
  if (descriptor < 0) return false;
  watched_.push_back({peer, descriptor});
  return true;
}

std::optional<PeerProcess> LocalPeers::ended() {
  for (const Watched& each : watched_) {
    pollfd query{each.descriptor, POLLIN, 0};
    if (poll(&query, 1, 0) == 1 && (query.revents & POLLIN) != 0) return each.process;
  }
  return std::nullopt;
}

}  // namespace gradus
