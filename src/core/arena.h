#pragma once

#include <cstdint>
#include <deque>
#include <initializer_list>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "core/tensor.h"

namespace gradus {

/// A closed interval of instants of the training step, in program order.
struct Span {
  int first = 0;
  int last = 0;

  bool operator==(const Span&) const = default;
};

/// How long a tensor's contents matter.
class Lifetime {
 public:
  enum class Kind { persistent, saved, transient, scratch };

  /// For the whole run.
  static Lifetime persistent() { return Lifetime(Kind::persistent); }
  /// From a layer's forward to its backward pass, for one micro-batch in flight.
  static Lifetime saved() { return Lifetime(Kind::saved); }
  /// During the given spans of instants only. Tensors whose spans do not meet share memory; the
  /// layers of a model run one after another and declare their transients once for all.
  static Lifetime transient(std::initializer_list<Span> spans);
  /// Within one operation. All share one piece of memory as large as the largest.
  static Lifetime scratch() { return Lifetime(Kind::scratch); }

  Kind kind() const { return kind_; }
  bool overlaps(const Lifetime& other) const;
  bool operator==(const Lifetime&) const = default;

 private:
  explicit Lifetime(Kind kind) : kind_(kind) {}

  Kind kind_;
  std::vector<Span> spans_;
};

/// Through this interface every tensor of a run is declared, by name, shape and lifetime. The same
/// declarations are made twice: to a MemoryPlan, which measures, and to the Arena built from it,
/// which hands out memory. Nothing else allocates tensors.
class TensorVisitor {
 public:
  virtual ~TensorVisitor() = default;
  /// The tensor: without memory (data() is null) when measuring, with it when binding. An empty
  /// shape (0 elements) is allowed.
  virtual Tensor declare(std::string name, DType dtype, const Shape& shape,
                         const Lifetime& lifetime) = 0;
};

/// Measures declarations and lays them out.
class MemoryPlan final : public TensorVisitor {
 public:
  struct Entry {
    std::string name;
    DType dtype;
    Shape shape;
    Lifetime lifetime;
    int64_t bytes;       ///< aligned
    int64_t offset = 0;  ///< from the arena's start; set by lay_out()
  };

  explicit MemoryPlan(Device device) : device_(device) {}

  Tensor declare(std::string name, DType dtype, const Shape& shape,
                 const Lifetime& lifetime) override;
  /// Gives every entry its offset. Persistent, saved, transient and scratch memory follow each
  /// other.
  void lay_out();

  Device device() const { return device_; }
  const std::deque<Entry>& entries() const { return entries_; }
  /// Bytes of the arena, and of each part of it; valid after lay_out().
  int64_t total_bytes() const { return total_; }
  int64_t bytes_of(Lifetime::Kind kind) const { return parts_[static_cast<size_t>(kind)]; }
  /// A table by name (layer numbers folded into "*"), lifetime, dtype, shape, count and bytes.
  std::string table() const;

 private:
  int64_t pack_transients(int64_t begin);

  Device device_;
  std::deque<Entry> entries_;  // a deque: tensors keep pointers to the names
  int64_t total_ = 0;
  int64_t parts_[4] = {};
};

/// The run's memory, allocated once, and the second reader of the declarations.
class Arena final : public TensorVisitor {
 public:
  /// others: bytes that other processes of this run are about to take of this machine's memory; all
  /// must have an arena before any of them writes to its own, or what it wrote counts twice.
  /// Throws MemoryError, with the plan's table, when the machine has not that much memory free.
  explicit Arena(std::unique_ptr<const MemoryPlan> plan, int64_t others = 0);
  ~Arena() override;
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  /// Must repeat the plan's declarations in order; throws Error otherwise.
  Tensor declare(std::string name, DType dtype, const Shape& shape,
                 const Lifetime& lifetime) override;
  /// Throws Error unless everything that was planned was also bound.
  void check_complete() const;

  const MemoryPlan& plan() const { return *plan_; }
  /// The memory that operations take their scratch from.
  Tensor scratch() const;

 private:
  std::unique_ptr<const MemoryPlan> plan_;
  std::byte* memory_ = nullptr;
  size_t next_ = 0;
};

/// Bytes of memory that this process can still take without swapping: the kernel's estimate, or
/// less where a control group limits it. -1 when unknown.
int64_t available_memory();
/// Resident bytes of this process now; -1 when unknown.
int64_t resident_memory();
/// The largest that resident_memory() has been; -1 when unknown.
int64_t peak_resident_memory();

/// "1.50 GiB", for people.
std::string format_bytes(int64_t bytes);

}  // namespace gradus
