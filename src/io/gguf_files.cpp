// Which .gguf files make one model, and whether they belong together.
#include <fmt/core.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <system_error>

#include "io/error_text.h"
#include "io/gguf.h"
#include "io/shard_index.h"

namespace dg {
namespace {

constexpr std::string_view kSuffix = ".gguf";

// "name-00002-of-00003.gguf" taken apart; count 0: not a split file.
struct SplitName {
  std::string stem;  // "name"
  int index = 0, count = 0;
};

SplitName split_name(std::string_view path) {
  constexpr size_t kTail = std::string_view("-00001-of-00003.gguf").size();
  if (path.size() <= kTail || !path.ends_with(kSuffix)) return {};
  const std::string_view tail = path.substr(path.size() - kTail);
  auto number = [](std::string_view digits) {
    int value = 0;
    for (char c : digits) {
      if (c < '0' || c > '9') return 0;
      value = value * 10 + (c - '0');
    }
    return value;
  };
  const int index = number(tail.substr(1, 5)), count = number(tail.substr(10, 5));
  if (tail[0] != '-' || tail.substr(6, 4) != "-of-" || index < 1 || index > count) return {};
  return {std::string(path.substr(0, path.size() - kTail)), index, count};
}

bool is_regular(const std::string& path) {
  struct stat info;
  return ::stat(path.c_str(), &info) == 0 && S_ISREG(info.st_mode);
}

Result<std::vector<std::string>> with_siblings(const std::string& path) {
  const SplitName split = split_name(path);
  if (split.count <= 1) return std::vector<std::string>{path};
  if (static_cast<size_t>(split.count) > kMaxShards)
    return input_error(fmt::format("{}: expected at most {} split files, found {} in its name", path, kMaxShards, split.count));
  std::vector<std::string> paths;
  for (int i = 1; i <= split.count; i++) {
    paths.push_back(fmt::format("{}-{:05}-of-{:05}.gguf", split.stem, i, split.count));
    if (!is_regular(paths.back()))
      return io_error(fmt::format("{}: missing, though {} is one of {} split files; download it", paths.back(),
                                  path.substr(path.find_last_of('/') + 1), split.count));
  }
  return paths;
}

Result<std::vector<std::string>> find_in_directory(const std::string& directory) {
  std::vector<std::string> names;
  std::error_code error;
  std::filesystem::directory_iterator it(directory, error), end;
  for (; !error && it != end; it.increment(error)) {
    std::string name = it->path().filename().string();
    if (name == "reference.safetensors") continue;  // what `dougong verify` compares with, beside the weights
    if (name.ends_with(".safetensors") || name.ends_with(".safetensors.index.json")) return std::vector<std::string>{};
    if (!name.ends_with(kSuffix) || name.starts_with("mmproj")) continue;  // mmproj: the image encoder beside a language model
    names.push_back(std::move(name));
    if (names.size() > kMaxShards) return input_error(fmt::format("{}: more than {} .gguf files", directory, kMaxShards));
  }
  if (error) return system_error(directory, "cannot be listed", error.value());
  if (names.empty()) return std::vector<std::string>{};
  std::sort(names.begin(), names.end());
  const SplitName first = split_name(names[0]);
  for (const std::string& name : names) {
    const SplitName other = split_name(name);
    if (names.size() > 1 && (other.count == 0 || other.stem != first.stem || other.count != first.count))
      return input_error(
          fmt::format("{}: expected the files of one GGUF model, found {} and {}; give the path of one file", directory, names[0], name));
  }
  return with_siblings(directory + (directory.ends_with('/') ? "" : "/") + names[0]);
}

Result<void> check_split(const GgufModel& model) {
  const auto count = static_cast<int64_t>(model.paths.size());
  uint64_t tensors = 0;
  for (size_t i = 0; i < model.paths.size(); i++) {
    const GgufHeader& header = model.headers[i];
    tensors += header.tensors.size();
    auto expect = [&](const char* key, int64_t wanted, int64_t absent) -> Result<void> {
      const GgufValue* value = header.find(key);
      if (value ? value->integer() == wanted : wanted == absent) return {};
      return input_error(fmt::format("{}: {}: expected {}, found {}; give all split files of one model their own names", model.paths[i],
                                     key, wanted, value ? value->describe() : "nothing"));
    };
    const GgufValue* own = header.find("split.count");
    if (count == 1 && own && own->integer().value_or(0) > 1)
      return input_error(fmt::format("{}: is one of {} split files; give them the names name-00001-of-{:05}.gguf and so on", model.paths[i],
                                     *own->integer(), *own->integer()));
    if (count == 1) continue;
    DG_TRY(expect("split.count", count, 1));
    DG_TRY(expect("split.no", static_cast<int64_t>(i), 0));
  }
  const GgufValue* total = model.find("split.tensors.count");
  if (count > 1 && total && total->integer() != static_cast<int64_t>(tensors))
    return input_error(fmt::format("{}: split.tensors.count: expected {} as in the {} files, found {}; download them again", model.path(),
                                   tensors, count, total->describe()));
  return {};
}

}  // namespace

Result<std::vector<std::string>> find_gguf_files(const std::string& path) {
  if (path.find('\0') != std::string::npos) return std::vector<std::string>{};
  struct stat info;
  if (::stat(path.c_str(), &info) != 0) return std::vector<std::string>{};
  if (S_ISDIR(info.st_mode)) return find_in_directory(path);
  if (S_ISREG(info.st_mode) && path.ends_with(kSuffix)) return with_siblings(path);
  return std::vector<std::string>{};
}

Result<GgufModel> open_gguf(const std::vector<std::string>& paths) {
  CHECK(!paths.empty());
  GgufModel model;
  model.paths = paths;
  for (const std::string& path : paths) {
    DG_ASSIGN(MappedFile file, MappedFile::open(path));
    DG_ASSIGN(GgufHeader header, read_gguf_header(file));
    model.files.push_back(std::move(file));
    model.headers.push_back(std::move(header));
  }
  DG_TRY(check_split(model));
  return model;
}

}  // namespace dg
