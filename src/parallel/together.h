#pragma once

#include <functional>

#include "core/executor.h"
#include "parallel/communicator.h"

namespace gradus {

/// Does this rank's part of reading or writing that all ranks do together, waits for the others
/// however long theirs takes, and lets all know how it went: an IoError on any rank becomes one on
/// every rank, with the message of the first rank that failed and its number. So all give up the
/// same thing, and may try it again. Any other error stays this rank's alone, and ends the job as
/// ever. Collective over group; part may call nothing collective.
void together(Executor& x, Communicator& group, const std::function<void()>& part);

}  // namespace gradus
