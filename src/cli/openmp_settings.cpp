// How long OpenMP's threads wait for each other before they sleep.

#include <cstdlib>

namespace {

/// A training step has some hundred parallel regions of tens of microseconds. GNU's default is to
/// spin for milliseconds at each barrier, which holds on to a core that another program (or the
/// thread waited for) needs, and made steps several times slower on a machine that was not idle.
/// This spins for some microseconds, then sleeps. A user's own setting stays.
void set_openmp_defaults() {
  if (std::getenv("OMP_WAIT_POLICY") == nullptr) setenv("GOMP_SPINCOUNT", "1000", 0);
}

}  // namespace

// libgomp reads its environment in a constructor of its own, before any of this program's. What is
// in .preinit_array of the executable runs before the constructors of every library.
extern "C" {
[[gnu::section(".preinit_array"),
  gnu::used]] void (*const gradus_set_openmp_defaults)() = set_openmp_defaults;
}
