#include "train/batch_reads.h"

#include <xxhash.h>

#include <algorithm>
#include <array>
#include <vector>

#include "kernels/cross_entropy.h"
#include "parallel/gather_values.h"

namespace gradus {
namespace {

uint64_t hash_of(std::span<const int32_t> tokens, uint64_t seed) {
  return XXH3_64bits_withSeed(tokens.data(), tokens.size_bytes(), seed);
}

}  // namespace

void BatchReads::read(const Loader& loader, int64_t first_sample, std::span<int32_t> inputs,
                      std::span<int32_t> targets) {
  first_sample_ = first_sample;
  try {
    loader.read(first_sample, inputs, targets);
    tokens_hash_ = static_cast<uint32_t>(hash_of(targets, hash_of(inputs, tokens_hash_)));
    return;
  } catch (const DataError& error) {
    if (error_.empty()) error_ = error.what();
  } catch (const IoError& error) {
    if (error_.empty()) error_ = error.what();
  }
  std::ranges::fill(inputs, 0);
  std::ranges::fill(targets, kIgnoredTarget);
}

bool BatchReads::first_of_replica() const {
  return parallel_.tp.rank() == 0 && parallel_.pp.stage() == 0;
}

/// Weights that add up to 0 over the ranks of a replica: so does their sum times what all of them
/// have alike.
double BatchReads::weight_in_replica() const {
  return first_of_replica() ? 1.0 - parallel_.tp.size() * parallel_.pp.stages() : 1.0;
}

int64_t BatchReads::agree(Executor& x, int64_t targets) {
  enum : size_t { kTargets, kUnread, kDifferent };
  // Whole numbers below 2^53, so that the order of the sum does not matter.
  std::array<double, kSums> sums = {first_of_replica() ? static_cast<double>(targets) : 0.0,
                                    error_.empty() ? 0.0 : 1.0, weight_in_replica() * tokens_hash_};
  if (Communicator* const world = parallel_.world; world != nullptr) {
    const Tensor tensor(sums.data(), DType::fp64, Device::cpu, {kSums});
    world->all_reduce(x, tensor, tensor, ReduceOp::sum).wait(x);
  }
  if (sums[kUnread] > 0.0) refuse_unread(x);
  if (sums[kDifferent] != 0.0) refuse_different(x);
  tokens_hash_ = 0;
  return static_cast<int64_t>(sums[kTargets]);
}

void BatchReads::refuse_unread(Executor& x) const {
  if (parallel_.world == nullptr) throw UnusableBatch(error_);
  std::array<char, 512> mine{};  // ends with a zero
  std::copy_n(error_.begin(), std::min(error_.size(), mine.size() - 1), mine.begin());
  const auto all = gather_values(x, *parallel_.world, mine);
  const auto first = std::ranges::find_if(all, [](const auto& text) { return text[0] != '\0'; });
  throw UnusableBatch("rank {}: {}", first - all.begin(), first->data());
}

void BatchReads::refuse_different(Executor& x) const {
  struct Read {
    int64_t replica;
    int64_t first_sample;
    uint32_t hash;
  };
  const Read mine = {parallel_.dp.rank(), first_sample_, tokens_hash_};
  const auto all = gather_values(x, *parallel_.world, mine);
  for (auto read = all.begin(); read != all.end(); ++read) {
    const auto first = std::ranges::find(all, read->replica, &Read::replica);
    if (read->hash == first->hash) continue;
    throw UnusableBatch(
        "rank {} reads other tokens than rank {}, and both compute on the samples from {} on: "
        "compare the files of data.train and data.val where they run (gradus data inspect)",
        read - all.begin(), first - all.begin(), read->first_sample);
  }
  throw UnusableBatch("ranks of one replica read different tokens, from sample {} on",
                      first_sample_);
}

}  // namespace gradus
