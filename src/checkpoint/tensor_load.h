#pragma once

#include <span>
#include <string>
#include <vector>

#include "checkpoint/safetensors.h"
#include "checkpoint/tensor_piece.h"

namespace gradus {

/// Compares a file with the tensors that are to be read from it and appends one line a problem:
/// names that either side lacks, shapes that differ, types that cannot be converted, pieces outside
/// of their tensor.
void check_tensors(const SafetensorsFile& file, std::span<const TensorDestination> destinations,
                   std::vector<std::string>& problems);

/// Copies every piece out of the file, converting as convert_elements does. The file and the
/// destinations have passed check_tensors. Throws CheckpointError (file, tensor, element) for the
/// first element that is read and is not as its destination says; what was read before stays.
void copy_tensors(const SafetensorsFile& file, std::span<const TensorDestination> destinations);

/// Throws one CheckpointError that lists the problems, if there are any.
void throw_problems(const std::filesystem::path& source, const std::vector<std::string>& problems);

}  // namespace gradus
