#pragma once

#include <cstdint>
#include <optional>

namespace gradus::test {

/// While it lives, this process writes files of tensors as the client of a network file system may:
/// through pages of its own, which it reads when they are first written to and writes back whole,
/// in any order, and no sooner than fsync or close. What other processes write to the same page
/// between is lost. Claiming a file's bytes writes zeros to all of its pages, as the C library does
/// where the file system cannot. A test that wants it lists client_cache.cpp among its sources,
/// which stands in front of the C library's functions in that program. One at a time.
class ClientCache {
 public:
  struct Faults {
    /// The page written back as this one, counted from 0, has one bit flipped.
    std::optional<int64_t> flip;
    /// The write to a file of tensors that fails, counted from 0: the disk is full.
    std::optional<int64_t> full;
    bool fsync_fails = false;  ///< with an I/O error
  };

  explicit ClientCache(const Faults& faults);
  ClientCache() : ClientCache(Faults{}) {}
  ~ClientCache();
  ClientCache(const ClientCache&) = delete;
  ClientCache& operator=(const ClientCache&) = delete;
};

}  // namespace gradus::test
