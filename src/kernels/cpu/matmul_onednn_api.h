#pragma once

#include <dnnl.hpp>

namespace gradus::cpu {

/// oneDNN's matrix product c = a · b (+ bias), bias (1, N) or null: the one call of ours that 2.x
/// and 3.x spell differently. Empty where the library has no implementation.
inline dnnl::matmul::primitive_desc onednn_matmul(const dnnl::engine& engine,
                                                  const dnnl::memory::desc& a,
                                                  const dnnl::memory::desc& b,
                                                  const dnnl::memory::desc* bias,
                                                  const dnnl::memory::desc& c,
                                                  const dnnl::primitive_attr& attributes) {
  constexpr bool kAllowEmpty = true;
#if DNNL_VERSION_MAJOR >= 3
  if (bias != nullptr) return {engine, a, b, *bias, c, attributes, kAllowEmpty};
  return {engine, a, b, c, attributes, kAllowEmpty};
#else
  const auto desc =
      bias != nullptr ? dnnl::matmul::desc(a, b, *bias, c) : dnnl::matmul::desc(a, b, c);
  return {desc, attributes, engine, kAllowEmpty};
#endif
}

}  // namespace gradus::cpu
