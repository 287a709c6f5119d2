#pragma once

#include <cstdint>
#include <filesystem>

namespace gradus {

/// Threads that generation with weights of so many bytes should have, at most `most`. A token reads
/// every weight once, and waits for all threads at some ten barriers a layer: of a small model one
/// thread has read its part before another is awake.
int generation_threads(int64_t weight_bytes, int most);

/// Bytes of the weights that generating from `path` would read (infer/generator.h), by the size of
/// the newest checkpoint's file alone; 0 where there is none to see.
int64_t stored_weight_bytes(const std::filesystem::path& path);

}  // namespace gradus
