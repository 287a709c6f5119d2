#include "parallel/together.h"

#include <algorithm>
#include <array>
#include <string>
#include <vector>

#include "core/error.h"
#include "parallel/gather_values.h"

namespace gradus {

void together(Executor& x, Communicator& group, const std::function<void()>& part) {
  struct Outcome {
    bool failed = false;
    std::array<char, 511> message{};  ///< ends with a zero
  };
  Outcome mine;
  try {
    part();
  } catch (const IoError& error) {
    const std::string message = error.what();
    mine.failed = true;
    std::copy_n(message.begin(), std::min(message.size(), mine.message.size() - 1),
                mine.message.begin());
  }
  constexpr bool kUnwatched = false;  // reading and writing take as long as they take
  group.barrier(x, kUnwatched).wait(x);
  const std::vector<Outcome> all = gather_values(x, group, mine);
  const auto first = std::ranges::find_if(all, &Outcome::failed);
  if (first == all.end()) return;
  const auto rank = group.world_ranks()[static_cast<size_t>(first - all.begin())];
  throw IoError("rank {}: {}", rank, first->message.data());
}

}  // namespace gradus
