#pragma once

#include <string>

namespace gradus::cli {

/// How long OpenMP's threads wait for each other before they sleep. A training step has some
/// hundred parallel regions of tens of microseconds; GNU's default is to spin for milliseconds at
/// each barrier, which holds on to a core that another program, or the thread waited for, needs,
/// and makes steps a hundred times slower on a machine that is not idle. GOMP_SPINCOUNT=1000 spins
/// for some microseconds, then sleeps.
///
/// libgomp reads its environment before any code of this program can change it. So, unless the
/// environment sets GOMP_SPINCOUNT or OMP_WAIT_POLICY itself, this puts the variable there and
/// executes the program again in the same process: same id, arguments and files. First thing in
/// main(), before threads, files and MPI. Returns where nothing was to do; with the reason where it
/// could not be done.
///
/// libgomp also binds the initial thread to one place where OMP_PROC_BIND, OMP_PLACES or
/// GOMP_CPU_AFFINITY is set, as if the process could run nowhere else. That is undone, for this
/// thread alone: cores are counted and divided among ranks by what the process may use.
std::string apply_openmp_settings(char** argv);

}  // namespace gradus::cli
