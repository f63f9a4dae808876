// model.safetensors.index.json: which shard of a Hugging Face checkpoint holds which tensor.
#pragma once
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace dg {

inline constexpr size_t kMaxShardIndexBytes = 100'000'000;  // V3: 9 MB
inline constexpr size_t kMaxShardIndexTensors = size_t{1} << 20;
inline constexpr size_t kMaxShards = 10'000;

struct ShardIndex {
  struct Entry {
    std::string tensor;
    int file;  // index into files
  };
  std::vector<std::string> files;  // relative to the directory, sorted, never outside of it
  std::vector<Entry> weight_map;   // sorted by tensor name, each name once
};

// `origin` (the path of the index) begins every message. File names that are absolute or contain ".." are refused.
Result<ShardIndex> parse_shard_index(std::string_view text, std::string_view origin);

// For a directory without an index, where "name-00002-of-00163.safetensors" tells what should be there: the name of the
// first shard that is missing among `files`, or "".
std::string find_missing_shard(const std::vector<std::string>& files);

}  // namespace dg
