#include "train/data_identity.h"

#include <fmt/format.h>

#include <algorithm>
#include <limits>
#include <optional>

#include "core/counted.h"
#include "core/json_fields.h"

namespace gradus {
namespace {

using Shards = std::vector<DataIdentity::Shard>;

Shards shards_of(const Loader& loader) {
  Shards shards;
  for (const ShardIdentity& shard : loader.identities()) {
    shards.push_back({shard.token_count, shard.tokens_checksum});
  }
  return shards;
}

nlohmann::json to_json(const Shards& shards) {
  nlohmann::json json = nlohmann::json::array();
  for (const DataIdentity::Shard& shard : shards) {
    json.push_back({{"tokens", shard.tokens}, {"xxh3_64", fmt::format("{:016x}", shard.checksum)}});
  }
  return json;
}

Shards shards_from_json(const nlohmann::json& json, const std::string& name) {
  Shards shards;
  for (const nlohmann::json& entry : json) {
    const std::string place = fmt::format("{}[{}]", name, shards.size());
    const JsonFields<CheckpointError> fields(entry, place);
    DataIdentity::Shard shard;
    shard.tokens = fields.integer("tokens", 1, std::numeric_limits<int64_t>::max());
    shard.checksum = fields.hash64("xxh3_64");
    shards.push_back(shard);
  }
  return shards;
}

std::string describe(const Shards& shards, size_t index) {
  if (index >= shards.size()) return "none";
  return fmt::format("{} (checksum {:016x})", counted(shards[index].tokens, "token"),
                     shards[index].checksum);
}

void add_differences(const char* key, const Shards& before, const Shards& now,
                     std::vector<std::string>& differences) {
  for (size_t i = 0; i < std::max(before.size(), now.size()); ++i) {
    if (i < before.size() && i < now.size() && before[i] == now[i]) continue;
    differences.push_back(
        fmt::format("{}, shard {}: {} -> {}", key, i + 1, describe(before, i), describe(now, i)));
  }
}

}  // namespace

DataIdentity data_identity(const Loader& train, const Loader* val) {
  return {shards_of(train), val == nullptr ? Shards() : shards_of(*val)};
}

nlohmann::json to_json(const DataIdentity& data) {
  return {{"train", to_json(data.train)}, {"val", to_json(data.val)}};
}

DataIdentity data_identity_from_json(const nlohmann::json& json, const std::string& name) {
  const JsonFields<CheckpointError> fields(json, name);
  return {shards_from_json(fields.array("train"), name + ".train"),
          shards_from_json(fields.array("val"), name + ".val")};
}

std::vector<std::string> data_differences(const DataIdentity& before, const DataIdentity& now) {
  std::vector<std::string> differences;
  add_differences("data.train", before.train, now.train, differences);
  if (!before.val.empty() && !now.val.empty()) {
    add_differences("data.val", before.val, now.val, differences);
  }
  return differences;
}

}  // namespace gradus
