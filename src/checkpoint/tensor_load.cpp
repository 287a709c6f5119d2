#include "checkpoint/tensor_load.h"

#include <fmt/format.h>

#include <algorithm>
#include <set>
#include <string_view>
#include <vector>

#include "checkpoint/convert.h"
#include "core/error.h"
#include "core/printable_text.h"

namespace gradus {
namespace {

/// Read in pieces of at most so many: a model is not held twice.
constexpr int64_t kElementsAtOnce = int64_t{1} << 18;

std::string file_shape(const SafetensorsEntry& entry) {
  return fmt::format("({})", fmt::join(entry.shape, ", "));
}

bool same_shape(const SafetensorsEntry& entry, const Shape& shape) {
  if (entry.shape.empty()) return shape == Shape{1};
  return std::ranges::equal(entry.shape, shape.sizes());
}

void check_destination(const SafetensorsEntry& entry, const TensorDestination& destination,
                       std::vector<std::string>& problems) {
  const auto add = [&](const std::string& what) {
    problems.push_back(fmt::format("{}: {}", printable(destination.name), what));
  };
  if (!same_shape(entry, destination.shape)) {
    add(fmt::format("has shape {} in the file, expected {}", file_shape(entry),
                    to_string(destination.shape)));
    return;
  }
  for (const TensorPiece& piece : destination.pieces) {
    const ConstTensorPiece view{piece.begin, piece.data};
    const std::string problem = problem_of(view, destination.shape);
    if (!problem.empty()) {
      add(problem);
    } else if (!entry.type->dtype || !convertible(*entry.type->dtype, piece.data.dtype())) {
      add(fmt::format("is {} in the file, which cannot be read as {}", entry.type->name,
                      to_string(piece.data.dtype())));
    }
  }
}

/// values: elements of the tensor from number `first` on, as they were read.
void check_elements(const SafetensorsFile& file, const TensorDestination& destination,
                    const ConstTensor& values, int64_t first) {
  const int64_t place =
      first_unfit(values.data(), values.dtype(), values.numel(), destination.elements);
  if (place == values.numel()) return;
  double value = 0.0;
  convert_elements(reinterpret_cast<std::byte*>(&value), DType::fp64,
                   values.data() + place * size_of(values.dtype()), values.dtype(), 1);
  throw CheckpointError(
      "{}: {}: element {} is {}, expected {}: the run had diverged when this was saved, or the "
      "file was altered; go on from an earlier checkpoint",
      file.path().string(), printable(destination.name), first + place, value,
      destination.elements == Elements::finite ? "a finite number"
                                               : "a finite number of 0 or more");
}

}  // namespace

void check_tensors(const SafetensorsFile& file, std::span<const TensorDestination> destinations,
                   std::vector<std::string>& problems) {
  std::set<std::string_view> expected;
  for (const TensorDestination& destination : destinations) {
    if (!expected.insert(destination.name).second) {
      problems.push_back(fmt::format("{}: is asked for twice", printable(destination.name)));
    }
    if (const SafetensorsEntry* entry = file.find(destination.name); entry != nullptr) {
      check_destination(*entry, destination, problems);
    } else {
      problems.push_back(fmt::format("{}: is missing from the file, expected shape {}",
                                     printable(destination.name), to_string(destination.shape)));
    }
  }
  for (const SafetensorsEntry& entry : file.entries()) {
    if (!expected.contains(entry.name)) {
      problems.push_back(fmt::format("{}: is in the file with shape {}, but not expected",
                                     printable(entry.name), file_shape(entry)));
    }
  }
}

void copy_tensors(const SafetensorsFile& file, std::span<const TensorDestination> destinations) {
  std::vector<std::byte> source;
  for (const TensorDestination& destination : destinations) {
    if (destination.pieces.empty()) continue;
    const SafetensorsEntry& entry = *file.find(destination.name);
    const DType from = *entry.type->dtype;
    for (const TensorPiece& piece : destination.pieces) {
      const DType to = piece.data.dtype();
      for_each_run(
          {piece.begin, piece.data}, destination.shape,
          [&](int64_t logical, int64_t memory, int64_t count) {
            for (int64_t part = 0; part < count; part += kElementsAtOnce) {
              const int64_t length = std::min(count - part, kElementsAtOnce);
              std::byte* const read = piece.data.data() + (memory + part) * size_of(to);
              source.resize(static_cast<size_t>(length * size_of(from)));
              file.read(entry, (logical + part) * size_of(from), source);
              convert_elements(read, to, source.data(), from, length);
              check_elements(file, destination, {read, to, Device::cpu, {length}}, logical + part);
            }
          });
    }
  }
}

void throw_problems(const std::filesystem::path& source, const std::vector<std::string>& problems) {
  if (problems.empty()) return;
  throw CheckpointError(
      "{}: {} {} fit; nothing was loaded:\n  {}", source.string(), problems.size(),
      problems.size() == 1 ? "tensor does not" : "tensors do not", fmt::join(problems, "\n  "));
}

}  // namespace gradus
