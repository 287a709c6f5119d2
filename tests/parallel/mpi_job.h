#pragma once

#include "parallel/bootstrap.h"

namespace gradus::test {

/// The job that this test program is a rank of; mpi_main.cpp starts and finishes it.
Bootstrap& job();

}  // namespace gradus::test
