#include "train/step_traffic.h"

#include "kernels/optimizer.h"
#include "train/bucket_sync.h"

namespace gradus {
namespace {

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
      head_statistics();
      add("tp", "norm", Collective::all_reduce, 1, norm_bytes());
    }
    if (parallel_.dp.size() > 1) data_parallel();
    if (parallel_.pp.stages() > 1) pipeline();
    return rows_;
  }

 private:
  void add(const char* group, const char* purpose, Collective collective, int64_t calls,
           int64_t bytes) {
    if (calls > 0) rows_.push_back({group, purpose, collective, calls, bytes});
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
    int64_t sections = 0;
    int64_t elements = 0;
    for_each_uncut_part(model_.parameters(), [&](const Bucket&, const ElementRange& mine) {
      ++sections;
      elements += mine.numel();
    });
    add("tp", "gradients of what is not cut", Collective::all_reduce, sections,
        elements * size_of(precision_.gradient));
  }

  /// Maximum, sum and target logit of each row: never logits.
  void head_statistics() {
    if (!stage().last) return;
    const int64_t rows = head_chunk_rows(s_);
    const int64_t chunks = passes_ * ((s_.rows() + rows - 1) / rows);
    add("tp", "softmax statistics", Collective::all_reduce, 3 * chunks,
        3 * passes_ * s_.rows() * size_of(accumulator_of(precision_.activation)));
  }

  void data_parallel() {
    const Sharding sharding = model_.parameters().sharding();
    int64_t buckets = 0;
    int64_t elements = 0;
    for (const Bucket& bucket : model_.parameters().buckets()) {
      if (bucket.holding == Holding::none) continue;
      ++buckets;
      elements += bucket.numel;
    }
    const int64_t sums = sharding == Sharding::gradients ? passes_ : 1;
    add("dp", "gradients",
        sharding == Sharding::none ? Collective::all_reduce : Collective::reduce_scatter,
        sums * buckets, sums * elements * size_of(precision_.gradient));
    if (sharding != Sharding::none) {
      add("dp", "weights", Collective::all_gather, buckets, elements * size_of(precision_.param));
      add("dp", "norm", Collective::all_reduce, 1, norm_bytes());
    }
    add("dp", "count of targets, loss", Collective::all_reduce, 2, 2 * sizeof(double));
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

double bytes_sent(Collective collective, int64_t payload, int size) {
  const double n = size;
  const auto bytes = static_cast<double>(payload);
  switch (collective) {
    case Collective::all_reduce:
      return 2.0 * bytes * (n - 1) / n;
    case Collective::all_gather:
    case Collective::reduce_scatter:
    case Collective::all_to_all:
      return bytes * (n - 1) / n;
    case Collective::broadcast:
    case Collective::exchange:
      return bytes;
    case Collective::barrier:
      return 0.0;
  }
  return 0.0;
}

}  // namespace gradus
