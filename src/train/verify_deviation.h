#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "train/verify_model.h"

namespace gradus {

/// The largest deviation seen, and where.
struct Deviation {
  double worst = 0.0;  ///< NaN once one was not a number
  std::string where;

  void add(double value, const std::string& name);
};

/// Whole gradients of a model on one rank, by name.
struct Gradients {
  std::map<std::string, std::vector<double>> values;
  double loss = 0.0;
  double norm = 0.0;

  /// What deviations of a tensor's gradient are measured against: its largest magnitude, or a share
  /// of the model's largest.
  double scale_of(const std::string& name) const;
};

/// `model` is alone. Of global batch `number`.
Gradients gradients_of(VerifiedModel& model, int64_t number = 0);

/// What `model` has of the gradients of batch `number`, the loss and the norm, against `expected`.
Deviation deviation_from(const Gradients& expected, VerifiedModel& model, int64_t number = 0);

/// Gradients of a few weights against central differences of the loss; of every `ranks`-th
/// parameter from number `rank` on. `model` is alone, and is trained a little.
Deviation deviation_from_differences(VerifiedModel& model, size_t rank, size_t ranks);

/// 1 where a tensor of what two models' optimizers have differs in any bit, else 0.
Deviation differing_elements(VerifiedModel& one, VerifiedModel& other);

}  // namespace gradus
