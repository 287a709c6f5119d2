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

Parameters::Parameters(std::vector<ParamSpec> specs, const Options& options) : options_(options) {
  int last_bucket = 0;
  for (const ParamSpec& spec : specs) last_bucket = std::max(last_bucket, spec.bucket);
  for (int b = 0; b <= last_bucket; ++b) {
    Bucket bucket;
    bucket.name = bucket_name(b, last_bucket);
    // Decayed before not decayed, cut before replicated; entries that are packed stay together.
    using Key = std::tuple<bool, bool>;
    for (const Key& key :
         {Key{true, false}, Key{true, true}, Key{false, false}, Key{false, true}}) {
      BucketSection section;
      section.begin = section.end = align_up(bucket.numel, kSectionAlignment);
      std::tie(section.decay, section.replicated) = key;
      for (const ParamSpec& spec : specs) {
        if (spec.bucket != b || Key{spec.decay, spec.cut == TpCut::none} != key) continue;
        Parameter parameter;
        parameter.spec = spec;
        const Shape shape = local_shape(spec, options.tp_size);
        parameter.offset = spec.packed ? section.end : align_up(section.end, kParameterAlignment);
        if (spec.cut != TpCut::none) {
          parameter.row_begin = options.tp_rank * shape[spec.cut == TpCut::rows ? 0 : 1];
        }
        parameter.value = Tensor(nullptr, options.precision.param, Device::cpu, shape);
        section.end = parameter.offset + shape.numel();
        bucket.parameters.push_back(parameters_.size());
        parameters_.push_back(std::move(parameter));
      }
      if (section.end > section.begin) {
        bucket.numel = section.end;
        bucket.sections.push_back(section);
      }
    }
    bucket.numel = align_up(bucket.numel, kSectionAlignment);
    buckets_.push_back(std::move(bucket));
  }
}

void Parameters::declare(TensorVisitor& visitor) {
  for (Bucket& bucket : buckets_) {
    bucket.value = visitor.declare(bucket.name + ".weights", options_.precision.param,
                                   {bucket.numel}, Lifetime::persistent());
    if (options_.gradients) {
      bucket.grad = visitor.declare(bucket.name + ".gradients", options_.precision.gradient,
                                    {bucket.numel}, Lifetime::persistent());
    }
    for (const size_t index : bucket.parameters) {
      Parameter& parameter = parameters_[index];
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

const Parameter* Parameters::find(std::string_view name) const {
  for (const Parameter& parameter : parameters_) {
    if (parameter.spec.name == name) return &parameter;
    if (std::ranges::find(parameter.spec.tied, name) != parameter.spec.tied.end()) {
      return &parameter;
    }
  }
  return nullptr;
}

const Parameter& Parameters::operator[](std::string_view name) const {
  const Parameter* parameter = find(name);
  if (parameter == nullptr) throw Error(fmt::format("the model has no parameter {}", name));
  return *parameter;
}

int64_t Parameters::logical_numel() const {
  int64_t count = 0;
  for (const Parameter& parameter : parameters_) count += parameter.spec.shape.numel();
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
