#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

namespace gradus {

/// Drops the lines of a metrics.jsonl that a run going on after `last_step` writes again: those of
/// later steps, and that step's evaluation when it is still to be made. Lines that are no JSON
/// object, or whose step is no whole number, go too (a kill may have cut the last one short); a
/// warning names each, up to a few. Lines without a step stay. The file is replaced whole, and only
/// where something of it changes; it is never held in memory. What is no regular file is left
/// alone. Returns the warnings. Throws IoError.
std::vector<std::string> drop_later_metrics(const std::filesystem::path& path, int64_t last_step,
                                            bool evaluation_due);

}  // namespace gradus
