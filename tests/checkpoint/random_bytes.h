#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include "core/tensor.h"
#include "support/temp_dir.h"

namespace gradus::test {

/// Memory of a tensor of any dtype, filled with random bits: every pattern, NaNs included, must
/// survive a file.
class RandomBytes {
 public:
  RandomBytes(std::mt19937_64& rng, const Shape& shape, DType dtype)
      : shape_(shape), dtype_(dtype), bytes_(static_cast<size_t>(shape.numel() * size_of(dtype))) {
    for (std::byte& byte : bytes_) byte = static_cast<std::byte>(rng());
  }

  Tensor tensor() { return {bytes_.data(), dtype_, Device::cpu, shape_}; }
  const std::vector<std::byte>& bytes() const { return bytes_; }
  std::vector<std::byte>& bytes() { return bytes_; }

 private:
  Shape shape_;
  DType dtype_;
  std::vector<std::byte> bytes_;
};

/// A safetensors file made by hand: the length, the header padded with spaces to 8 bytes, the data.
inline std::string safetensors_bytes(std::string header, const std::string& data) {
  header.append((8 - header.size() % 8) % 8, ' ');
  const uint64_t length = header.size();
  std::string bytes(sizeof length, '\0');
  std::memcpy(bytes.data(), &length, sizeof length);
  return bytes + header + data;
}

/// Like write_file, of a file that may exist. ext4 flushes a file that is truncated and written
/// again to disk at once, which would make tests of thousands of rewrites slow; a new file waits.
inline std::filesystem::path rewrite_file(const std::filesystem::path& path,
                                          std::string_view bytes) {
  std::filesystem::remove(path);
  return write_file(path, bytes);
}

}  // namespace gradus::test
