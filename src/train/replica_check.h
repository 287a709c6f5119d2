#pragma once

#include "train/training_model.h"

namespace gradus {

/// Compares what several ranks hold the same of, bit by bit, by its hashes: weights (those of all
/// replicas of dp; what tp does not cut; tied embeddings on the first and last stage), and master
/// weights and moments where they are held more than once. They are equal as long as every rank
/// computes the same from the same; processors whose arithmetic differs and memory that fails end
/// that in silence. Throws NumericError, on every rank, that names the parameter and who holds
/// what. All ranks call this together; no step's weights may be on their way
/// (Stepper::wait_for_weights).
void check_replicas(TrainingModel& model);

}  // namespace gradus
