#pragma once

#include <string>

namespace cudasim {

/// Fills every __shared__ variable of the program with NaNs. They are found by name in the
/// program's own table of symbols: variables of a thread inside functions of namespaces
/// gradus::cuda or of no name. Does nothing where the table is stripped, and under
/// AddressSanitizer, which has them elsewhere.
void poison_shared_variables();

/// The name of a kernel without its parameters, from the same table.
std::string kernel_name(const void* kernel);

}  // namespace cudasim
