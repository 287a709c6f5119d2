#pragma once

namespace gradus {

/// What the layer loop tells the outside. Sharded weights, offload and the overlap of gradient
/// reduction live behind these calls; the text of a block never changes for them. A bucket is a
/// layer's parameters (core/parameters.h).
class LayerHooks {
 public:
  virtual ~LayerHooks() = default;
  /// The bucket's weights are about to be read.
  virtual void acquire(int /*bucket*/) {}
  /// They will not be read again before the next acquire.
  virtual void release(int /*bucket*/) {}
  /// Backward is about to add to the bucket's gradients.
  virtual void gradients_begin(int /*bucket*/) {}
  /// The bucket's gradients of this micro-batch are complete.
  virtual void gradients_ready(int /*bucket*/) {}
};

}  // namespace gradus
