#include "io/shard_index.h"

#include <fmt/core.h>

#include <algorithm>
#include <charconv>
#include <map>
#include <set>

#include "io/error_text.h"
#include "io/json_events.h"

namespace dg {
namespace {

using Kind = JsonEvent::Kind;

// Why a file name of the weight map is not acceptable, or null.
const char* refuse_file_name(std::string_view name) {
  if (name.empty()) return "an empty file name";
  if (name.size() > 255) return "a file name of more than 255 bytes";
  if (std::any_of(name.begin(), name.end(), [](unsigned char c) { return c < 0x20 || c == 0x7F; })) return "a control character";
  if (name[0] == '/') return "an absolute path";
  for (size_t begin = 0; begin <= name.size();) {
    size_t end = std::min(name.find('/', begin), name.size());
    if (name.substr(begin, end - begin) == "..") return "a path that leaves the model directory";
    begin = end + 1;
  }
  return nullptr;
}

class IndexListener : public JsonListener {
 public:
  ShardIndex index;
  std::vector<std::string> files_by_id;

  bool on(const JsonEvent& event) override {
    if (ignored_depth_ > 0 || ignore_next_) return on_ignored(event);
    if (!in_document_) {
      in_document_ = true;
      return event.kind == Kind::kBeginObject || fail("expected an object with weight_map, found " + describe(event));
    }
    if (map_begins_) {
      map_begins_ = false;
      in_map_ = true;
      return event.kind == Kind::kBeginObject || fail("weight_map: expected an object, found " + describe(event));
    }
    if (in_map_) return on_map(event);
    if (event.kind == Kind::kEndObject) return has_map_ || fail("expected a weight_map that names the file of each tensor, found none");
    if (*event.text != "weight_map") return ignore_next_ = true;  // "metadata" and whatever a publisher adds
    if (has_map_) return fail("weight_map appears twice");
    return has_map_ = map_begins_ = true;
  }

 private:
  static constexpr int kMaxDepth = 64;

  bool on_ignored(const JsonEvent& event) {
    ignore_next_ = false;
    if (event.kind == Kind::kBeginObject || event.kind == Kind::kBeginArray) {
      if (++ignored_depth_ > kMaxDepth) return fail(fmt::format("JSON nested deeper than {} levels", kMaxDepth));
    } else if (event.kind == Kind::kEndObject || event.kind == Kind::kEndArray) {
      ignored_depth_--;
    }
    return true;
  }

  bool on_map(const JsonEvent& event) {
    if (event.kind == Kind::kEndObject) {
      in_map_ = false;
      return true;
    }
    if (event.kind == Kind::kKey) {
      if (index.weight_map.size() == kMaxShardIndexTensors)
        return fail(fmt::format("weight_map: more than {} tensors", kMaxShardIndexTensors));
      index.weight_map.push_back({std::move(*event.text), -1});
      return true;
    }
    ShardIndex::Entry& entry = index.weight_map.back();
    if (event.kind != Kind::kString)
      return fail(fmt::format("weight_map: {}: expected a file name, found {}", quote_text(entry.tensor, 120), describe(event)));
    if (!files_by_id.empty() && *event.text == files_by_id[static_cast<size_t>(last_file_)]) {  // neighbours share a file
      entry.file = last_file_;
      return true;
    }
    auto [at, added] = id_of_file_.try_emplace(*event.text, static_cast<int>(files_by_id.size()));
    if (added) {
      const char* reason = refuse_file_name(*event.text);
      if (reason != nullptr)
        return fail(fmt::format("weight_map: {}: expected a file of the model directory, found {} ({})", quote_text(entry.tensor, 120),
                                quote_text(*event.text, 120), reason));
      if (files_by_id.size() == kMaxShards) return fail(fmt::format("weight_map: more than {} files", kMaxShards));
      files_by_id.push_back(*event.text);
    }
    entry.file = last_file_ = at->second;
    return true;
  }

  bool in_document_ = false, has_map_ = false, map_begins_ = false, in_map_ = false, ignore_next_ = false;
  int ignored_depth_ = 0, last_file_ = 0;
  std::map<std::string, int, std::less<>> id_of_file_;
};

// Splits "name-00002-of-00163.safetensors" into "name", 2, 163.
bool split_shard_name(std::string_view file, std::string_view* name, int* number, int* count) {
  constexpr std::string_view kSuffix = ".safetensors", kOf = "-of-";
  if (!file.ends_with(kSuffix)) return false;
  file.remove_suffix(kSuffix.size());
  if (file.size() < 15 || file.substr(file.size() - 9, 4) != kOf || file[file.size() - 15] != '-') return false;
  auto digits = [](std::string_view text, int* out) {
    auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), *out);
    return error == std::errc() && end == text.data() + text.size() && *out >= 0;
  };
  *name = file.substr(0, file.size() - 15);
  return digits(file.substr(file.size() - 14, 5), number) && digits(file.substr(file.size() - 5), count);
}

}  // namespace

Result<ShardIndex> parse_shard_index(std::string_view text, std::string_view origin) {
  IndexListener listener;
  DG_TRY(stream_json(text, origin, listener));
  ShardIndex index = std::move(listener.index);
  index.files = listener.files_by_id;
  std::sort(index.files.begin(), index.files.end());
  std::vector<int> rank(index.files.size());
  for (size_t i = 0; i < rank.size(); i++) {
    auto at = std::lower_bound(index.files.begin(), index.files.end(), listener.files_by_id[i]);
    rank[i] = static_cast<int>(at - index.files.begin());
  }
  for (ShardIndex::Entry& entry : index.weight_map) entry.file = rank[static_cast<size_t>(entry.file)];
  auto by_name = [](const ShardIndex::Entry& a, const ShardIndex::Entry& b) { return a.tensor < b.tensor; };
  std::sort(index.weight_map.begin(), index.weight_map.end(), by_name);
  auto twice = std::adjacent_find(index.weight_map.begin(), index.weight_map.end(),
                                  [](const ShardIndex::Entry& a, const ShardIndex::Entry& b) { return a.tensor == b.tensor; });
  if (twice != index.weight_map.end())
    return input_error(fmt::format("{}: weight_map: {} appears twice", origin, quote_text(twice->tensor)));
  return index;
}

std::string find_missing_shard(const std::vector<std::string>& files) {
  std::set<std::string_view> present(files.begin(), files.end());
  for (const std::string& file : files) {
    std::string_view name;
    int number = 0, count = 0;
    if (!split_shard_name(file, &name, &number, &count)) continue;
    for (int i = 1; i <= count; i++) {
      std::string expected = fmt::format("{}-{:05}-of-{:05}.safetensors", name, i, count);
      if (!present.contains(expected)) return expected;
    }
  }
  return "";
}

}  // namespace dg
