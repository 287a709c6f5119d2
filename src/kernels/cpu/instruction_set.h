#pragma once

namespace gradus::cpu {

/// The name of the instruction set that Highway's dispatch picks on this processor.
const char* vector_instruction_set();

}  // namespace gradus::cpu
