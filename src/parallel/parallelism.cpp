#include "parallel/parallelism.h"

#include <fmt/format.h>

namespace gradus {

std::string describe(const Parallelism& parallel) {
  return fmt::format("{} ranks: pp {} × dp {} × tp {}{}{}", parallel.ranks(), parallel.pp.stages(),
                     parallel.dp.size(), parallel.tp.size(),
                     parallel.tp.sequence_parallel() ? ", sequence parallel" : "",
                     parallel.dp.size() > 1
                         ? fmt::format(", ZeRO-{}", static_cast<int>(parallel.dp.sharding()))
                         : "");
}

}  // namespace gradus
