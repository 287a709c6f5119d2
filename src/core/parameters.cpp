#include "core/parameters.h"

#include <algorithm>
#include <tuple>
#include <utility>

#include "core/error.h"

namespace gradus {
namespace {

constexpr int64_t kParameterAlignment = 32;  // elements: 64 bytes of bf16

int64_t align_up(int64_t value, int64_t alignment) {
  return (value + alignment - 1) / alignment * alignment;
}

Shape local_shape(const ParamSpec& spec, int64_t tp_size) {
  const Shape padded = spec.padded_rows > 0 ? spec.shape.with(0, spec.padded_rows) : spec.shape;
  if (spec.cut == TpCut::none) return padded;
  const int axis = spec.cut == TpCut::rows ? 0 : 1;
  if (padded[axis] % tp_size != 0) {
    throw ShapeError("parameter {} {}: axis {} is not divisible by tp {}", spec.name,
                     to_string(padded), axis, tp_size);
  }
  return padded.with(axis, padded[axis] / tp_size);
}

std::string bucket_name(int bucket, int last) {
  if (bucket == 0) return "embedding";
  if (bucket == last) return "final";
  return fmt::format("block.{}", bucket - 1);
}

}  // namespace

Tensor Parameter::logical(const Tensor& like_value) const {
  if (spec.padded_rows == 0) return like_value;
  const int64_t held = like_value.size(0);
  const int64_t begin = spec.cut == TpCut::rows ? row_begin : 0;
  return like_value.slice(0, 0, std::clamp<int64_t>(spec.shape[0] - begin, 0, held));
}

ElementRange ElementRange::intersect(const ElementRange& other) const {
  const int64_t first = std::max(begin, other.begin);
  return {first, std::max(first, std::min(end, other.end))};
}

Parameters::Parameters(std::vector<ParamSpec> specs, const Options& options)
    : options_(options), table_(std::move(specs)) {
  int last = 0;
  for (const ParamSpec& spec : table_) last = std::max(last, spec.bucket);
  std::vector<std::vector<const ParamSpec*>> specs_of(static_cast<size_t>(last) + 1);
  for (const ParamSpec& spec : table_) {
    specs_of[static_cast<size_t>(spec.bucket)].push_back(&spec);
  }
  for (int index = 0; index <= last; ++index) {
    Bucket bucket;
    bucket.name = bucket_name(index, last);
    if (!options_.holdings.empty()) {
      bucket.holding = options_.holdings.at(static_cast<size_t>(index));
    }
    if (bucket.holding != Holding::none) lay_out(bucket, specs_of[static_cast<size_t>(index)]);
    buckets_.push_back(std::move(bucket));
  }
  for (size_t i = 0; i < parameters_.size(); ++i) {
    index_.emplace(parameters_[i].spec.name, i);
    for (const auto& tied : parameters_[i].spec.tied) index_.emplace(tied, i);
  }
}

void Parameters::lay_out(Bucket& bucket, const std::vector<const ParamSpec*>& specs) {
  // Decayed before not decayed, cut before replicated; entries that are packed stay together.
  using Key = std::tuple<bool, bool>;
  for (const Key& key : {Key{true, false}, Key{true, true}, Key{false, false}, Key{false, true}}) {
    BucketSection section;
    ElementRange& range = section.range;
    range.begin = range.end = align_up(bucket.numel, kSectionAlignment);
    std::tie(section.decay, section.replicated) = key;
    for (const ParamSpec* const each : specs) {
      const ParamSpec& spec = *each;
      if (Key{spec.decay, spec.cut == TpCut::none} != key) continue;
      Parameter parameter;
      parameter.spec = spec;
      const Shape shape = local_shape(spec, options_.tp_size);
      parameter.offset = spec.packed ? range.end : align_up(range.end, kParameterAlignment);
      if (spec.cut != TpCut::none) {
        parameter.row_begin = options_.tp_rank * shape[spec.cut == TpCut::rows ? 0 : 1];
      }
      parameter.value = Tensor(nullptr, options_.precision.param, Device::cpu, shape);
      range.end = parameter.offset + shape.numel();
      bucket.parameters.push_back(parameters_.size());
      parameters_.push_back(std::move(parameter));
    }
    if (range.empty()) continue;
    bucket.numel = range.end;
    bucket.sections.push_back(section);
  }
  bucket.numel = align_up(bucket.numel, kSectionAlignment * options_.dp_size);
  bucket.shard = {0, bucket.numel};
  if (options_.sharding != Sharding::none) {
    const int64_t part = bucket.numel / options_.dp_size;
    bucket.shard = {options_.dp_rank * part, (options_.dp_rank + 1) * part};
  }
}

void Parameters::declare(TensorVisitor& visitor) {
  for (size_t index = 0; index < buckets_.size(); ++index) {
    Bucket& bucket = buckets_[index];
    if (bucket.holding == Holding::none) continue;
    bucket.value = visitor.declare(bucket.name + ".weights", options_.precision.param,
                                   {bucket.numel}, Lifetime::persistent());
    if (options_.gradients) {
      bucket.grad = declare_gradients(visitor, bucket, index);
      bucket.grad_shard =
          options_.sharding == Sharding::gradients
              ? visitor.declare(bucket.name + ".gradient_shard", options_.precision.gradient,
                                {bucket.shard.numel()}, Lifetime::persistent())
              : bucket.grad.slice(0, bucket.shard.begin, bucket.shard.numel());
    }
    for (const size_t i : bucket.parameters) {
      Parameter& parameter = parameters_[i];
      const char* name = parameter.spec.name.c_str();
      const Shape shape = parameter.value.shape();
      const auto view = [&](const Tensor& flat) {
        return flat.slice(0, parameter.offset, shape.numel()).reshape(shape).named(name);
      };
      parameter.value = view(bucket.value);
      if (options_.gradients) parameter.grad = view(bucket.grad);
    }
  }
}

/// Of a bucket's own, or, where only shards are kept, one of two that blocks take turns in: while
/// one block's gradients travel, the next block's are computed.
Tensor Parameters::declare_gradients(TensorVisitor& visitor, const Bucket& bucket, size_t index) {
  const bool block = index > 0 && index + 1 < buckets_.size();
  const bool in_turns = options_.sharding == Sharding::gradients && block;
  if (in_turns && index > 2 && buckets_[index - 2].grad.defined() &&
      buckets_[index - 2].numel == bucket.numel) {
    return buckets_[index - 2].grad;
  }
  const std::string name =
      in_turns ? fmt::format("block_gradients.{}", index % 2) : bucket.name + ".gradients";
  return visitor.declare(name, options_.precision.gradient, {bucket.numel}, Lifetime::persistent());
}

const Parameter* Parameters::find(std::string_view name) const {
  const auto found = index_.find(name);
  return found == index_.end() ? nullptr : &parameters_[found->second];
}

const Parameter& Parameters::operator[](std::string_view name) const {
  const Parameter* parameter = find(name);
  if (parameter == nullptr) throw Error(fmt::format("this rank has no parameter {}", name));
  return *parameter;
}

int64_t Parameters::logical_numel() const {
  int64_t count = 0;
  for (const ParamSpec& spec : table_) count += spec.shape.numel();
  return count;
}

Tensor Parameters::packed(std::string_view first, int count, Tensor Parameter::*view) const {
  const Parameter& begin = (*this)[first];
  const auto index = static_cast<size_t>(&begin - parameters_.data());
  int64_t rows = 0;
  for (size_t i = index; i < index + static_cast<size_t>(count); ++i) {
    if (i == parameters_.size()) {
      throw Error(fmt::format("fewer than {} parameters are packed from {} on", count, first));
    }
    const Parameter& part = parameters_[i];
    if (i > index && !part.spec.packed) {
      throw Error(fmt::format("parameter {} is not packed behind {}", part.spec.name, first));
    }
    rows += part.value.size(0);
  }
  const Tensor& whole = begin.*view;
  return Tensor(whole.data(), whole.dtype(), whole.device(), whole.shape().with(0, rows),
                begin.spec.name.c_str());
}

}  // namespace gradus
