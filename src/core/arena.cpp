#include "core/arena.h"

#include <sys/mman.h>

#include <algorithm>
#include <limits>
#include <map>
#include <tuple>
#include <utility>

#include "core/error.h"
#include "core/memory_limit.h"

namespace gradus {
namespace {

constexpr int64_t kAlignment = 64;  // a cache line, and the widest vector

int64_t align_up(int64_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

constexpr std::string_view kKindNames[] = {"persistent", "saved", "transient", "scratch"};

std::string_view to_string(Lifetime::Kind kind) { return kKindNames[static_cast<size_t>(kind)]; }

/// "block.3.qkv" -> "block.*.qkv".
std::string fold_numbers(const std::string& name) {
  std::string out;
  for (size_t i = 0; i < name.size();) {
    size_t end = i;
    while (end < name.size() && name[end] >= '0' && name[end] <= '9') ++end;
    const bool whole =
        end > i && (i == 0 || name[i - 1] == '.') && (end == name.size() || name[end] == '.');
    if (whole) {
      out += '*';
      i = end;
    } else {
      out += name[i++];
    }
  }
  return out;
}

MemoryError refusal(const std::string& name, DType dtype, const Shape& shape) {
  return MemoryError(
      "with tensor {} {} {} the run would take more bytes than 64 bits can count: make "
      "model.layers, model.channels, model.mlp_width, model.context, model.vocab_size, "
      "train.micro_batch or train.global_batch smaller",
      gradus::to_string(dtype), name, gradus::to_string(shape));
}

/// Of a tensor, aligned.
int64_t bytes_of(const std::string& name, DType dtype, const Shape& shape) {
  const auto sizes = shape.sizes();
  if (sizes.empty() || std::ranges::find(sizes, 0) != sizes.end()) return 0;
  int64_t bytes = size_of(dtype);
  for (const int64_t size : sizes) {
    if (__builtin_mul_overflow(bytes, size, &bytes)) throw refusal(name, dtype, shape);
  }
  if (bytes > std::numeric_limits<int64_t>::max() - kAlignment) {
    throw refusal(name, dtype, shape);
  }
  return align_up(bytes);
}

}  // namespace

Lifetime Lifetime::transient(std::initializer_list<Span> spans) {
  Lifetime lifetime(Kind::transient);
  lifetime.spans_ = spans;
  return lifetime;
}

bool Lifetime::overlaps(const Lifetime& other) const {
  for (const Span& a : spans_) {
    for (const Span& b : other.spans_) {
      if (a.first <= b.last && b.first <= a.last) return true;
    }
  }
  return false;
}

Tensor MemoryPlan::declare(std::string name, DType dtype, const Shape& shape,
                           const Lifetime& lifetime) {
  const int64_t bytes = gradus::bytes_of(name, dtype, shape);
  entries_.push_back({std::move(name), dtype, shape, lifetime, bytes});
  return Tensor(nullptr, dtype, device_, shape, entries_.back().name.c_str());
}

void MemoryPlan::lay_out() {
  int64_t sum = 0;  // offsets stay below it
  for (const Entry& entry : entries_) {
    if (__builtin_add_overflow(sum, entry.bytes, &sum)) {
      throw refusal(entry.name, entry.dtype, entry.shape);
    }
  }
  int64_t end = 0;
  const auto one_after_another = [&](Lifetime::Kind kind) {
    const int64_t begin = end;
    for (Entry& entry : entries_) {
      if (entry.lifetime.kind() != kind) continue;
      entry.offset = end;
      end += entry.bytes;
    }
    parts_[static_cast<size_t>(kind)] = end - begin;
  };
  one_after_another(Lifetime::Kind::persistent);
  one_after_another(Lifetime::Kind::saved);

  const int64_t transient_bytes = pack_transients(end);
  parts_[static_cast<size_t>(Lifetime::Kind::transient)] = transient_bytes;
  end += transient_bytes;

  int64_t scratch_bytes = 0;
  for (Entry& entry : entries_) {
    if (entry.lifetime.kind() != Lifetime::Kind::scratch) continue;
    entry.offset = end;
    scratch_bytes = std::max(scratch_bytes, entry.bytes);
  }
  parts_[static_cast<size_t>(Lifetime::Kind::scratch)] = scratch_bytes;
  total_ = end + scratch_bytes;
}

/// Largest first, each at the lowest offset where no entry that lives at the same time lies.
int64_t MemoryPlan::pack_transients(int64_t begin) {
  std::vector<Entry*> order;
  for (Entry& entry : entries_) {
    if (entry.lifetime.kind() == Lifetime::Kind::transient) order.push_back(&entry);
  }
  std::stable_sort(order.begin(), order.end(),
                   [](const Entry* a, const Entry* b) { return a->bytes > b->bytes; });
  int64_t end = begin;
  std::vector<Entry*> placed;
  for (Entry* entry : order) {
    std::vector<std::pair<int64_t, int64_t>> taken;
    for (const Entry* other : placed) {
      if (entry->lifetime.overlaps(other->lifetime)) {
        taken.emplace_back(other->offset, other->offset + other->bytes);
      }
    }
    std::sort(taken.begin(), taken.end());
    int64_t offset = begin;
    for (const auto& [from, to] : taken) {
      if (offset + entry->bytes <= from) break;
      offset = std::max(offset, to);
    }
    entry->offset = offset;
    end = std::max(end, offset + entry->bytes);
    placed.push_back(entry);
  }
  return end - begin;
}

std::string MemoryPlan::table() const {
  struct Row {
    const Entry* entry;
    std::string name;
    int64_t count = 0;
    int64_t bytes = 0;
  };
  std::vector<Row> rows;
  std::map<std::tuple<std::string, Lifetime::Kind>, size_t> index;
  for (const Entry& entry : entries_) {
    const std::string name = fold_numbers(entry.name);
    const auto [it, fresh] = index.try_emplace({name, entry.lifetime.kind()}, rows.size());
    if (fresh) rows.push_back({&entry, name});
    Row& row = rows[it->second];
    row.count += 1;
    row.bytes += entry.bytes;
  }
  std::stable_sort(rows.begin(), rows.end(), [](const Row& a, const Row& b) {
    return a.entry->lifetime.kind() < b.entry->lifetime.kind();
  });
  std::string out = fmt::format("{:<10}  {:<34} {:<5} {:<24} {:>5} {:>12}\n", "lifetime", "tensor",
                                "dtype", "shape", "count", "memory");
  for (const Row& row : rows) {
    out += fmt::format("{:<10}  {:<34} {:<5} {:<24} {:>5} {:>12}\n",
                       to_string(row.entry->lifetime.kind()), row.name,
                       gradus::to_string(row.entry->dtype), gradus::to_string(row.entry->shape),
                       row.count, format_bytes(row.bytes));
  }
  out += '\n';
  for (size_t kind = 0; kind < 4; ++kind) {
    out += fmt::format("{:<10}  {:>12}  {:>16} bytes{}\n", kKindNames[kind],
                       format_bytes(parts_[kind]), parts_[kind],
                       kind == 2   ? "   (tensors that never live together share memory)"
                       : kind == 3 ? "   (the largest need of one operation)"
                                   : "");
  }
  out += fmt::format("{:<10}  {:>12}  {:>16} bytes\n", "arena", format_bytes(total_), total_);
  return out;
}

Arena::Arena(std::unique_ptr<const MemoryPlan> plan, int64_t others) : plan_(std::move(plan)) {
  if (plan_->device() != Device::cpu) {
    throw CudaError("this build has no CUDA backend; use device: cpu");
  }
  const int64_t needed = plan_->total_bytes();
  const auto refusal = [&](const MemoryLimit& limit) {
    return MemoryError(
        "the run needs {} ({} bytes){} and {} are available{}. What it would hold:\n{}",
        format_bytes(needed), needed,
        others > 0
            ? fmt::format(" on this rank, {} on the others of this machine,", format_bytes(others))
            : "",
        limit.bytes < 0 ? "fewer" : format_bytes(limit.bytes),
        limit.bytes < 0 ? "" : fmt::format(" under {}", limit.name), plan_->table());
  };
  // Each rank sees the memory that all are after, and has limits of its own.
  const MemoryLimit shared = shared_memory_limit();
  const MemoryLimit own = process_memory_limit();
  if (own.bytes >= 0 && needed > own.bytes) throw refusal(own);
  if (shared.bytes >= 0 && needed > shared.bytes - others) throw refusal(shared);
  void* memory = mmap(nullptr, static_cast<size_t>(std::max(needed, kAlignment)),
                      PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) throw refusal(own.bytes >= 0 ? own : shared);
  memory_ = static_cast<std::byte*>(memory);
  // Huge pages where the kernel has them: large matrices are then walked with few TLB misses.
  madvise(memory_, static_cast<size_t>(needed), MADV_HUGEPAGE);
}

Arena::~Arena() {
  munmap(memory_, static_cast<size_t>(std::max(plan_->total_bytes(), kAlignment)));
}

Tensor Arena::declare(std::string name, DType dtype, const Shape& shape, const Lifetime& lifetime) {
  if (next_ >= plan_->entries().size()) {
    throw Error(fmt::format("tensor {} was declared but not planned", name));
  }
  const MemoryPlan::Entry& entry = plan_->entries()[next_++];
  if (entry.name != name || entry.dtype != dtype || !(entry.shape == shape) ||
      !(entry.lifetime == lifetime)) {
    const auto text = [](std::string_view tensor, DType type, const Shape& sizes,
                         const Lifetime& life) {
      return fmt::format("{} {} {} {}", to_string(life.kind()), tensor, gradus::to_string(type),
                         gradus::to_string(sizes));
    };
    const std::string declared = text(name, dtype, shape, lifetime);
    const std::string planned = text(entry.name, entry.dtype, entry.shape, entry.lifetime);
    throw Error(fmt::format("tensor {} was declared where {} was planned{}", declared, planned,
                            declared == planned ? " for other instants" : ""));
  }
  return Tensor(memory_ + entry.offset, dtype, plan_->device(), shape, entry.name.c_str());
}

void Arena::check_complete() const {
  if (next_ != plan_->entries().size()) {
    throw Error(
        fmt::format("tensor {} was planned but never declared", plan_->entries()[next_].name));
  }
}

Tensor Arena::scratch() const {
  const int64_t bytes = plan_->bytes_of(Lifetime::Kind::scratch);
  return Tensor(memory_ + plan_->total_bytes() - bytes, DType::u8, plan_->device(), {bytes},
                "scratch");
}

}  // namespace gradus
