#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "data/loader.h"

namespace gradus {

/// What a run reads: the tokens of each shard, in order, wherever the files lie.
struct DataIdentity {
  struct Shard {
    int64_t tokens = 0;
    uint64_t checksum = 0;  ///< XXH3-64 of the tokens as they are stored

    bool operator==(const Shard&) const = default;
  };
  std::vector<Shard> train;
  std::vector<Shard> val;  ///< none: nothing is evaluated

  bool operator==(const DataIdentity&) const = default;
};

/// val: null where nothing is evaluated.
DataIdentity data_identity(const Loader& train, const Loader* val);

nlohmann::json to_json(const DataIdentity& data);
/// Throws CheckpointError; name: what stands for the object in messages.
DataIdentity data_identity_from_json(const nlohmann::json& json, const std::string& name);

/// A line for each shard that is not the same: "data.train, shard 2: 1000 tokens (checksum …) ->
/// none". Validation text is compared where both sides have some.
std::vector<std::string> data_differences(const DataIdentity& before, const DataIdentity& now);

}  // namespace gradus
