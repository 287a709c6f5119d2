#pragma once

#include <cstdint>
#include <filesystem>
#include <string_view>

namespace gradus {

/// Writes all of `bytes` at `offset`, however many calls that takes. False, with errno set, when
/// the system refuses: the caller knows which file it is and throws.
bool write_fully(int descriptor, int64_t offset, std::string_view bytes) noexcept;

/// Makes creations, renames and removals in a folder durable. Throws IoError.
void sync_folder(const std::filesystem::path& folder);

}  // namespace gradus
