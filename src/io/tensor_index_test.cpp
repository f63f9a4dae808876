#include "io/tensor_index.h"

#include <fmt/core.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <ctime>

#include "io/shard_index.h"
#include "io/test_files.h"

namespace dg {
namespace {

using testing::HasSubstr;

constexpr const char* kShard1 = "model-00001-of-00002.safetensors";
constexpr const char* kShard2 = "model-00002-of-00002.safetensors";
constexpr const char* kIndex = "model.safetensors.index.json";

std::string fault(const std::string& path) {
  auto index = TensorIndex::open(path);
  if (index.ok()) return "ok";
  EXPECT_EQ(exit_code(index.error().kind), 2);
  EXPECT_EQ(index.error().message.find('\n'), std::string::npos);
  return index.error().message;
}

// Two shards of two tensors, with an index.
class Checkpoint : public testing::Test {
 protected:
  Checkpoint() {
    write_small(dir.file(kShard1), {"a", "b"});
    write_small(dir.file(kShard2), {"c", "d"});
    write_index({{"d", kShard2}, {"a", kShard1}, {"c", kShard2}, {"b", kShard1}});
  }
  void write_index(const std::vector<std::pair<std::string, std::string>>& map) {
    std::string text = R"({"metadata":{"total_size":16,"nested":[{"x":[]}]},"weight_map":{)";
    for (size_t i = 0; i < map.size(); i++) text += fmt::format("{}\"{}\": \"{}\"", i == 0 ? "" : ", ", map[i].first, map[i].second);
    dir.write(kIndex, text + "}}\n");
  }
  void cut(const char* name, int bytes) const {
    auto size = std::filesystem::file_size(dir.file(name));
    std::filesystem::resize_file(dir.file(name), size - static_cast<size_t>(bytes));
  }
  TestDirectory dir;
};

TEST_F(Checkpoint, OpensAllTensors) {
  for (const std::string& path : {dir.path(), dir.path() + "/"}) {
    auto index = TensorIndex::open(path);
    ASSERT_TRUE(index.ok()) << index.error().message;
    EXPECT_EQ(index->file_count(), 2);
    EXPECT_EQ(index->file(1).path(), dir.file(kShard2));
    EXPECT_EQ(index->total_bytes(), 16u);
    ASSERT_EQ(index->tensors().size(), 4u);
    EXPECT_TRUE(std::is_sorted(index->tensors().begin(), index->tensors().end(), [](const TensorInfo& a, const TensorInfo& b) {
      return std::pair(a.file, a.offset) < std::pair(b.file, b.offset);
    }));
    for (const char* name : {"a", "b", "c", "d"}) {
      const TensorInfo* info = index->find(name);
      ASSERT_NE(info, nullptr);
      EXPECT_EQ(info->name, name);
      EXPECT_EQ(info->file, *name >= 'c');
      ASSERT_EQ(index->data(*info).size(), 4u);
      EXPECT_EQ(std::memcmp(index->data(*info).data(), "abcd", 4), 0);
    }
    for (const char* name : {"", "aa", "e"}) EXPECT_EQ(index->find(name), nullptr);
    TensorIndex moved = std::move(*index);
    EXPECT_EQ(moved.find("d")->name, "d");
  }
}

TEST_F(Checkpoint, OpensOneFileAndADirectoryWithoutIndex) {
  auto one = TensorIndex::open(dir.file(kShard2));
  ASSERT_TRUE(one.ok());
  EXPECT_EQ(one->tensors().size(), 2u);

  std::filesystem::remove(dir.file(kIndex));
  dir.write("consolidated.safetensors", "the same weights once more, in another layout");
  auto all = TensorIndex::open(dir.path());
  ASSERT_TRUE(all.ok()) << all.error().message;
  EXPECT_EQ(all->tensors().size(), 4u);

  write_small(dir.file("model.safetensors"), {"only"});
  auto single = TensorIndex::open(dir.path());
  ASSERT_TRUE(single.ok());
  EXPECT_EQ(single->tensors().size(), 1u);
}

TEST(TensorIndex, MergesMetadata) {
  TestDirectory dir;
  ASSERT_TRUE(write_safetensors(dir.file("x.safetensors"), {}, {{"format", "pt"}}).ok());
  ASSERT_TRUE(write_safetensors(dir.file("y.safetensors"), {}, {{"format", "np"}, {"b", "2"}}).ok());
  auto index = TensorIndex::open(dir.path());
  ASSERT_TRUE(index.ok()) << index.error().message;
  EXPECT_EQ(index->metadata(), (std::map<std::string, std::string>{{"format", "pt"}, {"b", "2"}}));
}

TEST_F(Checkpoint, FollowsTheLinksOfAHuggingFaceCache) {
  std::filesystem::create_directories(dir.file("blobs"));
  std::filesystem::create_directories(dir.file("snapshots/1"));
  for (const char* name : {kShard1, kShard2, kIndex}) {
    std::filesystem::rename(dir.file(name), dir.file("blobs/") + name);
    std::filesystem::create_symlink(std::string("../../blobs/") + name, dir.file("snapshots/1/") + name);
  }
  EXPECT_EQ(fault(dir.file("snapshots/1")), "ok");
  std::filesystem::remove(dir.file("blobs/") + kShard2);
  EXPECT_EQ(fault(dir.file("snapshots/1")),
            fmt::format("{}: cannot be opened: symbolic link to a missing file \"../../blobs/{}\"; download it again",
                        dir.file("snapshots/1/") + kShard2, kShard2));
}

TEST_F(Checkpoint, NamesATruncatedShard) {
  uint64_t size = std::filesystem::file_size(dir.file(kShard2));
  cut(kShard2, 1);
  EXPECT_EQ(fault(dir.path()), fmt::format("{}: truncated: tensor \"d\" needs bytes {}..{} of the file, it has {}; download it again",
                                           dir.file(kShard2), size - 4, size, size - 1));
  std::filesystem::resize_file(dir.file(kShard2), 40);
  EXPECT_THAT(fault(dir.path()), HasSubstr(dir.file(kShard2) + ": truncated: the header needs bytes 8.."));
  std::filesystem::resize_file(dir.file(kShard2), 0);
  EXPECT_EQ(fault(dir.path()),
            dir.file(kShard2) + ": truncated: expected an 8-byte header length at its begin, found 0 bytes; download it again");
}

TEST_F(Checkpoint, NamesAMissingShard) {
  std::filesystem::remove(dir.file(kShard1));
  EXPECT_EQ(fault(dir.path()), dir.file(kShard1) + ": missing, though model.safetensors.index.json names it; download it");
  std::filesystem::remove(dir.file(kIndex));
  EXPECT_EQ(fault(dir.path()), dir.file(kShard1) + ": missing, though the names of the other shards count it; download it");
}

TEST_F(Checkpoint, NamesAMissingTensor) {
  write_small(dir.file(kShard2), {"c"});
  EXPECT_EQ(fault(dir.path()), dir.file(kShard2) +
                                   ": tensor \"d\" is missing: model.safetensors.index.json expects it in this file; "
                                   "download the file again");
}

TEST_F(Checkpoint, NamesAnExtraTensor) {
  for (const char* extra : {"bb", "z"}) {
    write_small(dir.file(kShard2), {"c", "d", extra});
    EXPECT_EQ(fault(dir.path()), dir.file(kShard2) + ": tensor \"" + extra +
                                     "\" is not listed in model.safetensors.index.json; "
                                     "the file and the index are of different checkpoints");
  }
}

TEST_F(Checkpoint, NamesATensorInTheWrongFile) {
  write_index({{"a", kShard1}, {"b", kShard2}, {"c", kShard2}, {"d", kShard2}});
  EXPECT_EQ(fault(dir.path()),
            fmt::format("{}: weight_map: expected tensor \"b\" in \"{}\", found it in {}", dir.file(kIndex), kShard2, dir.file(kShard1)));
}

TEST_F(Checkpoint, NamesATensorThatExistsTwice) {
  write_small(dir.file(kShard2), {"b", "c", "d"});
  std::string expected = dir.file(kShard2) + ": tensor \"b\" is also in " + dir.file(kShard1) + "; keep one of them";
  EXPECT_EQ(fault(dir.path()), expected);
  std::filesystem::remove(dir.file(kIndex));
  EXPECT_EQ(fault(dir.path()), expected);
}

TEST_F(Checkpoint, StaysInTheDirectory) {
  auto named = [&](const std::string& file) {
    write_index({{"a", file}});
    std::string found = fault(dir.path());
    std::string begin = dir.file(kIndex) + ": weight_map: \"a\": expected a file of the model directory, found ";
    return found.starts_with(begin) ? found.substr(begin.size()) : found;
  };
  EXPECT_EQ(named("../x.safetensors"), "\"../x.safetensors\" (a path that leaves the model directory)");
  EXPECT_EQ(named("a/../../x"), "\"a/../../x\" (a path that leaves the model directory)");
  EXPECT_EQ(named(".."), "\"..\" (a path that leaves the model directory)");
  EXPECT_EQ(named("/etc/passwd"), "\"/etc/passwd\" (an absolute path)");
  EXPECT_EQ(named(""), "\"\" (an empty file name)");
  EXPECT_EQ(named("a\\u0000b"), "\"a\\x00b\" (a control character)");
  EXPECT_EQ(named(std::string(300, 'l')).find("(a file name of more than 255 bytes)") != std::string::npos, true);
  EXPECT_EQ(named("."), dir.file(".") + ": expected a regular file, found a directory");
  EXPECT_EQ(named("..model"), dir.file("..model") + ": missing, though model.safetensors.index.json names it; download it");
}

TEST_F(Checkpoint, NamesFaultsOfTheIndex) {
  auto index = [&](std::string_view text) {
    dir.write(kIndex, text);
    std::string found = fault(dir.path());
    return found.starts_with(dir.file(kIndex) + ": ") ? found.substr(dir.file(kIndex).size() + 2) : found;
  };
  EXPECT_EQ(index("[]"), "expected an object with weight_map, found an array");
  EXPECT_EQ(index("{}"), "expected a weight_map that names the file of each tensor, found none");
  EXPECT_EQ(index(R"({"weight_map":[]})"), "weight_map: expected an object, found an array");
  EXPECT_EQ(index(R"({"weight_map":{}})"), "weight_map: expected the tensors of the model, found none");
  EXPECT_EQ(index(R"({"weight_map":{},"weight_map":{}})"), "weight_map appears twice");
  EXPECT_EQ(index(R"({"weight_map":{"a":1}})"), "weight_map: \"a\": expected a file name, found the number 1");
  EXPECT_EQ(index(R"({"weight_map":{"a":{"b":"c"}}})"), "weight_map: \"a\": expected a file name, found an object");
  EXPECT_EQ(index(R"({"weight_map":{"a":"x","b":"x","a":"x"}})"), "weight_map: \"a\" appears twice");
  EXPECT_THAT(index(""), HasSubstr("not valid JSON at byte 1"));
  EXPECT_THAT(index(R"({"weight_map":{"a":"x")"), HasSubstr("not valid JSON at byte 23"));
  EXPECT_EQ(index(R"({"metadata":)" + std::string(1 << 20, '[')), "JSON nested deeper than 64 levels");
  std::filesystem::resize_file(dir.file(kIndex), kMaxShardIndexBytes + 1);
  EXPECT_EQ(fault(dir.path()), dir.file(kIndex) + ": 100000001 bytes, at most 100000000 are accepted");
  std::filesystem::remove(dir.file(kIndex));
  std::filesystem::create_directory(dir.file(kIndex));
  EXPECT_EQ(fault(dir.path()), dir.file(kIndex) + ": expected a regular file, found a directory");
}

TEST(TensorIndex, NamesAPathWithoutWeights) {
  TestDirectory dir;
  EXPECT_EQ(fault(dir.path()), dir.path() +
                                   ": no weights: looked for model.safetensors.index.json, model.safetensors and *.safetensors; "
                                   "give a Hugging Face model directory, a .safetensors or a .gguf file");
  EXPECT_EQ(fault(dir.file("none")), dir.file("none") + ": cannot be opened: No such file or directory");
  std::filesystem::create_symlink("loop", dir.file("loop"));
  EXPECT_THAT(fault(dir.file("loop")), HasSubstr("the symbolic links form a loop"));
  std::filesystem::create_symlink("model.safetensors", dir.file("model.safetensors"));
  EXPECT_THAT(fault(dir.path()), HasSubstr(dir.file("model.safetensors") + ": cannot be opened: the symbolic links form a loop"));
  ASSERT_EQ(::mkfifo(dir.file("fifo").c_str(), 0644), 0);
  EXPECT_THAT(fault(dir.file("fifo")), HasSubstr("expected a regular file, found a FIFO"));
  EXPECT_FALSE(TensorIndex::open(std::string("a\0b", 3)).ok());
}

TEST(ShardIndex, FindsAMissingShardByName) {
  EXPECT_EQ(find_missing_shard({"model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"}), "");
  EXPECT_EQ(find_missing_shard({"model-00002-of-00003.safetensors"}), "model-00001-of-00003.safetensors");
  EXPECT_EQ(find_missing_shard({"model-00001-of-00002.safetensors"}), "model-00002-of-00002.safetensors");
  EXPECT_EQ(find_missing_shard({"model.safetensors", "a-0001-of-0002.safetensors", "a-x0001-of-00002.safetensors"}), "");
  EXPECT_EQ(find_missing_shard({"-of-.safetensors", ".safetensors", ""}), "");
}

// The size of DeepSeek-V3: 163 shards, 91,000 tensors, an index of 9 MB.
TEST(TensorIndex, OpensALargeCheckpointFast) {
  TestDirectory dir;
  constexpr int kShards = 163, kTensors = 91'000;
  std::vector<std::vector<std::string>> names(kShards);
  for (int i = 0; i < kTensors; i++)
    names[static_cast<size_t>(int64_t{i} * kShards / kTensors)].push_back(fmt::format("model.layers.{}.mlp.experts.{}.{}_proj.weight{}",
                                                                                      i / 1536, i / 6 % 256,
                                                                                      i % 3 == 0   ? "gate"
                                                                                      : i % 3 == 1 ? "up"
                                                                                                   : "down",
                                                                                      i / 3 % 2 == 0 ? "" : "_scale_inv"));
  std::string index = R"({"metadata": {"total_size": 364000}, "weight_map": {)";
  size_t header_bytes = 0;
  for (int s = 0; s < kShards; s++) {
    std::string file = fmt::format("model-{:05}-of-{:05}.safetensors", s + 1, kShards);
    write_small(dir.file(file), names[static_cast<size_t>(s)]);
    header_bytes += std::filesystem::file_size(dir.file(file));
    for (const std::string& name : names[static_cast<size_t>(s)])
      index += fmt::format("{}\n    \"{}\": \"{}\"", index.back() == '{' ? "" : ",", name, file);
  }
  dir.write(kIndex, index + "\n  }\n}\n");
  double best_s = 1e9, best_cpu_s = 1e9;
  for (int repeat = 0; repeat < 3; repeat++) {
    auto begin = std::chrono::steady_clock::now();
    std::clock_t cpu_begin = std::clock();
    auto opened = TensorIndex::open(dir.path());
    best_s = std::min(best_s, std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
    best_cpu_s = std::min(best_cpu_s, static_cast<double>(std::clock() - cpu_begin) / CLOCKS_PER_SEC);
    ASSERT_TRUE(opened.ok()) << opened.error().message;
    EXPECT_EQ(opened->tensors().size(), size_t{kTensors});
    for (const auto& shard : names) ASSERT_NE(opened->find(shard.back()), nullptr) << shard.back();
  }
  fmt::print("opened {} tensors in {} files, {:.1f} MB of headers and a {:.1f} MB index, in {:.3f} s ({:.3f} s of processor time)\n",
             kTensors, kShards, static_cast<double>(header_bytes) / 1e6, static_cast<double>(index.size()) / 1e6, best_s, best_cpu_s);
}

}  // namespace
}  // namespace dg
