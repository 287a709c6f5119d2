#pragma once

#include <cstdint>

namespace gradus::test {

/// Calls of operator new, in all its forms, by all threads since the program began. A test that
/// wants it lists allocation_count.cpp among its sources, which replaces the operator in that
/// program.
int64_t allocation_count();

}  // namespace gradus::test
