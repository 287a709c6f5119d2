#include "train/step_traffic.h"

#include "kernels/optimizer.h"
#include "train/batch_reads.h"
#include "train/bucket_sync.h"

namespace gradus {
namespace {

/// Bytes that a rank of a group of `size` sends for one call.
double sent_by_call(Collective collective, double bytes, int size) {
  const double n = size;
  const auto direct = static_cast<double>(BootstrapOptions{}.direct_all_reduce_bytes);
  switch (collective) {
    case Collective::all_reduce:
      // Small tensors go to every rank whole.
      return n * bytes <= direct ? bytes * (n - 1) : 2.0 * bytes * (n - 1) / n;
    case Collective::all_gather:
    case Collective::reduce_scatter:
    case Collective::all_to_all:
    case Collective::broadcast:  // from the root, or in pieces that the others pass on
      return bytes * (n - 1) / n;
    case Collective::exchange:
      return bytes;
    case Collective::barrier:
      return 0.0;
  }
  return 0.0;
}

class TrafficTable {
 public:
  explicit TrafficTable(const TrainingModel& model)
      : model_(model),
        parallel_(model.parallel()),
        s_(model.gpt().sizes()),
        precision_(model.gpt().options().precision),
        layers_(model.gpt().stage().layers()),
        passes_(model.micro_batches()) {}

  std::vector<StepTraffic> rows() {
    if (parallel_.tp.size() > 1) {
      parallel_.tp.sequence_parallel() ? sequence_parallel() : tensor_parallel();
      uncut_gradients();
      head_statistics();
      add("tp", "norm", Collective::all_reduce, 1, norm_bytes());
    }
    if (parallel_.dp.size() > 1) data_parallel();
    if (parallel_.pp.stages() > 1) pipeline();
    if (parallel_.ranks() > 1) {
      add("world", "targets, reads", Collective::all_reduce, 1, BatchReads::kSums * sizeof(double));
      add("world", "largest weight and moments", Collective::all_reduce, 1,
          static_cast<int64_t>(Largest::count) * static_cast<int64_t>(sizeof(double)));
      add("world", "decision on the step", Collective::broadcast, 1, sizeof(StepState));
    }
    return rows_;
  }

 private:
  /// Adds calls of so many bytes together, as large as each other, to the row of that purpose.
  void add(const std::string& group, const char* purpose, Collective collective, int64_t calls,
           int64_t bytes) {
    if (calls == 0) return;
    const bool begins = rows_.empty() || rows_.back().group != group ||
                        rows_.back().purpose != purpose || rows_.back().collective != collective;
    if (begins) rows_.push_back({group, purpose, collective});
    StepTraffic& row = rows_.back();
    row.calls += calls;
    row.bytes += bytes;
    row.sent += static_cast<double>(calls) *
                sent_by_call(collective, static_cast<double>(bytes) / static_cast<double>(calls),
                             size(group));
  }

  int size(const std::string& group) const {
    if (group == "world") return parallel_.ranks();
    if (group == "tp") return parallel_.tp.size();
    if (group == "dp") return parallel_.dp.size();
    return group == "pp" ? parallel_.pp.stages() : 2;  // "embedding": the first and last stage
  }

  const PipelineStage& stage() const { return model_.gpt().stage(); }
  bool recomputes_all() const { return model_.gpt().options().keep == Keep::inputs; }
  /// Of a (B, T, C) tensor.
  int64_t bytes_of(DType dtype) const { return s_.B * s_.T * s_.C * size_of(dtype); }
  int64_t norm_bytes() const {
    int64_t chunks = 0;
    for (const Bucket& bucket : model_.parameters().buckets()) {
      for (const BucketSection& section : bucket.sections) {
        chunks += norm_chunks(section.range.numel());
      }
    }
    return chunks * static_cast<int64_t>(sizeof(double));
  }

  /// Megatron's f and g: four all-reduces a layer, five with full recomputation.
  void tensor_parallel() {
    const int64_t act = bytes_of(precision_.activation);
    const int64_t forward = passes_ * layers_ * (recomputes_all() ? 3 : 2);
    const int64_t backward = passes_ * (layers_ * 2 + (stage().last ? 1 : 0));
    add("tp", "layers, forward", Collective::all_reduce, forward, forward * act);
    add("tp", "layers and head, backward", Collective::all_reduce, backward, backward * act);
    if (stage().first) {
      add("tp", "token embedding", Collective::all_reduce, passes_,
          passes_ * bytes_of(precision_.residual));
    }
  }

  /// Each all-reduce is an all-gather and a reduce-scatter; backward also gathers the layernorms'
  /// outputs again. A call for each sequence.
  void sequence_parallel() {
    const int64_t act = bytes_of(precision_.activation);
    const int64_t residual = bytes_of(precision_.residual);
    const int64_t first = stage().first ? passes_ : 0;
    const int64_t last = stage().last ? passes_ : 0;
    const int64_t again = recomputes_all() ? 1 : 0;
    const int64_t gathers = passes_ * layers_ * (2 + 4 + 2 * again) + last;
    const int64_t scatters = passes_ * layers_ * (2 + 2 + again) + last;
    add("tp", "layers and head", Collective::all_gather, s_.B * gathers, gathers * act);
    add("tp", "layers and head", Collective::reduce_scatter, s_.B * scatters, scatters * act);
    add("tp", "token embedding, forward", Collective::reduce_scatter, s_.B * first,
        first * residual);
    add("tp", "token embedding, backward", Collective::all_gather, s_.B * first, first * residual);
  }

  void uncut_gradients() {
    const Collective collective =
        parallel_.tp.sequence_parallel() ? Collective::all_reduce : Collective::broadcast;
    for_each_uncut_part(model_.parameters(), [&](const Bucket&, const ElementRange& mine) {
      add("tp", "gradients of what is not cut", collective, 1,
          mine.numel() * size_of(precision_.gradient));
    });
  }

  /// Maximum, sum and target logit of each row: never logits.
  void head_statistics() {
    if (!stage().last) return;
    const int64_t chunk = head_chunk_rows(s_);
    const int64_t row_bytes = size_of(accumulator_of(precision_.activation));
    const auto add_chunks = [&](int64_t chunks, int64_t rows) {
      const int64_t calls = 3 * passes_ * chunks;
      add("tp", "softmax statistics", Collective::all_reduce, calls, calls * rows * row_bytes);
    };
    add_chunks(s_.rows() / chunk, chunk);
    add_chunks(s_.rows() % chunk == 0 ? 0 : 1, s_.rows() % chunk);
  }

  template <typename Body>
  void for_each_bucket(Body&& body) const {
    for (const Bucket& bucket : model_.parameters().buckets()) {
      if (bucket.holding != Holding::none) body(bucket);
    }
  }

  void data_parallel() {
    const Sharding sharding = model_.parameters().sharding();
    const bool sharded = sharding != Sharding::none;
    const int64_t sums = sharding == Sharding::gradients ? passes_ : 1;
    for_each_bucket([&](const Bucket& bucket) {
      add("dp", "gradients", sharded ? Collective::reduce_scatter : Collective::all_reduce, sums,
          sums * bucket.numel * size_of(precision_.gradient));
    });
    if (sharded) {
      for_each_bucket([&](const Bucket& bucket) {
        add("dp", "weights", Collective::all_gather, 1, bucket.numel * size_of(precision_.param));
      });
      add("dp", "norm", Collective::all_reduce, 1, norm_bytes());
    }
    add("dp", "loss", Collective::all_reduce, 1, sizeof(double));
  }

  void pipeline() {
    const int64_t bytes = s_.B * s_.T_part * s_.C * size_of(precision_.residual);
    const bool middle = !stage().first && !stage().last;
    // A pass has one exchange with each neighbour; two micro-batches that cross share one.
    add("pp", "residual stream and its gradient", Collective::exchange, exchanges(),
        passes_ * (middle ? 2 : 1) * bytes);
    add("pp", "norm", Collective::all_gather, 1,
        parallel_.pp.stages() * static_cast<int64_t>(sizeof(double)));
    add("pp", "loss", Collective::all_reduce, 1, sizeof(double));
    const Bucket& embedding = model_.parameters().buckets().front();
    if (model_.gpt().options().model.tied_embeddings && embedding.holding != Holding::none) {
      add("embedding", "gradients of tied weights", Collective::all_reduce, 1,
          embedding.shard.numel() * size_of(precision_.gradient));
    }
  }

  /// Under 1F1B with `ahead` forward passes before the first backward pass.
  int64_t exchanges() const {
    const int64_t ahead = model_.gpt().options().slots - 1;
    const int64_t with_next = stage().last ? 0 : ahead + passes_;
    const int64_t with_previous = stage().first ? 0 : ahead + 1 + passes_;
    return with_next + with_previous;
  }

  const TrainingModel& model_;
  const Parallelism& parallel_;
  const Sizes& s_;
  const Precision& precision_;
  int64_t layers_;
  int64_t passes_;
  std::vector<StepTraffic> rows_;
};

}  // namespace

std::vector<StepTraffic> step_traffic(const TrainingModel& model) {
  return TrafficTable(model).rows();
}

}  // namespace gradus
