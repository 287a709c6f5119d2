#pragma once

#include <cstdint>
#include <optional>
#include <vector>

namespace gradus {

/// A process as others on its machine may know it.
struct PeerProcess {
  int32_t rank = 0;
  int32_t pid = 0;
  /// Inode of its process-id namespace: a pid says nothing in another (a container). 0: unknown.
  uint64_t pid_namespace = 0;

  /// This process, which is `rank`.
  static PeerProcess self(int rank);
};

/// The other ranks of this machine, watched for their end: MPI does not tell, and a launcher may
/// take its time (srun waits for KillWait, 30 s) or never notice.
class LocalPeers {
 public:
  LocalPeers() = default;
  ~LocalPeers();
  LocalPeers(const LocalPeers&) = delete;
  LocalPeers& operator=(const LocalPeers&) = delete;

  /// Watches `peer` from now on; it must be alive. False where that cannot be done: it is in
  /// another namespace than this process, or the kernel has no pidfd_open (before Linux 5.3) or
  /// forbids it.
  bool watch(const PeerProcess& peer);
  /// A peer that has ended, if there is one. Does not allocate, and does not wait.
  std::optional<PeerProcess> ended();

 private:
  struct Watched {
    PeerProcess process;
    int descriptor = -1;  // a pidfd, readable once the process has ended
  };
  std::vector<Watched> watched_;
};

}  // namespace gradus
