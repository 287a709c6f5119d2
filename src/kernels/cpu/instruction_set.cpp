#include "kernels/cpu/instruction_set.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/instruction_set.cpp"
#include <hwy/foreach_target.h>
// After foreach_target: included once for each instruction set.
#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace gradus::cpu {
namespace HWY_NAMESPACE {

const char* name_of_target() { return hwy::TargetName(HWY_TARGET); }

}  // namespace HWY_NAMESPACE
}  // namespace gradus::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace gradus::cpu {

HWY_EXPORT(name_of_target);

const char* vector_instruction_set() { return HWY_DYNAMIC_DISPATCH(name_of_target)(); }

}  // namespace gradus::cpu
#endif  // HWY_ONCE
