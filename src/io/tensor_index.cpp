#include "io/tensor_index.h"

#include <fmt/core.h>
#include <sys/stat.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <filesystem>
#include <numeric>
#include <optional>
#include <system_error>
#include <thread>

#include "io/error_text.h"
#include "io/gguf_names.h"
#include "io/safetensors.h"
#include "io/shard_index.h"

namespace dg {
namespace {

constexpr std::string_view kIndexName = "model.safetensors.index.json";
constexpr std::string_view kSingleName = "model.safetensors";

std::string join(const std::string& directory, std::string_view name) {
  std::string out = directory;
  if (!out.ends_with('/')) out += '/';
  return out += name;
}

// Present in whatever form: a broken link or a directory of that name shall be reported, not passed over.
bool exists(const std::string& path) {
  struct stat info;
  return ::lstat(path.c_str(), &info) == 0;
}

Result<ShardIndex> read_shard_index(const std::string& path) {
  DG_ASSIGN(MappedFile file, MappedFile::open(path));
  if (file.size() > kMaxShardIndexBytes)
    return input_error(fmt::format("{}: {} bytes, at most {} are accepted", path, file.size(), kMaxShardIndexBytes));
  std::string text(static_cast<size_t>(file.size()), '\0');
  DG_TRY(file.read_into(0, std::as_writable_bytes(std::span(text))));
  return parse_shard_index(text, path);
}

// Names of the safetensors files of a directory without an index: those that begin with "model", else all, sorted.
Result<std::vector<std::string>> list_safetensors(const std::string& directory) {
  std::vector<std::string> all, model;
  std::error_code error;
  std::filesystem::directory_iterator it(directory, error), end;
  for (; !error && it != end; it.increment(error)) {
    std::string name = it->path().filename().string();
    if (!name.ends_with(".safetensors")) continue;
    if (name.starts_with("model")) model.push_back(name);
    all.push_back(std::move(name));
    if (all.size() > kMaxShards) return input_error(fmt::format("{}: more than {} .safetensors files", directory, kMaxShards));
  }
  if (error) return system_error(directory, "cannot be listed", error.value());
  std::vector<std::string>& files = model.empty() ? all : model;
  if (files.empty())
    return input_error(
        fmt::format("{}: no weights: looked for {}, {} and *.safetensors; give a Hugging Face model directory, a "
                    ".safetensors or a .gguf file",
                    directory, kIndexName, kSingleName));
  std::sort(files.begin(), files.end());
  std::string missing = find_missing_shard(files);
  if (!missing.empty())
    return io_error(fmt::format("{}: missing, though the names of the other shards count it; download it", join(directory, missing)));
  return std::move(files);
}

struct OpenedFile {
  std::optional<MappedFile> file;
  SafetensorsHeader header;
  std::optional<Error> error;
};

void open_one(const std::string& path, OpenedFile& out) {
  auto file = MappedFile::open(path);
  if (!file.ok()) {
    out.error = file.error();
    return;
  }
  auto header = read_safetensors_header(*file);
  if (!header.ok()) {
    out.error = header.error();
    return;
  }
  out.file = std::move(file).value();
  out.header = std::move(header).value();
}

// Several at a time: on a network file system or a cold disk each header costs a round trip.
std::vector<OpenedFile> open_all(const std::vector<std::string>& paths) {
  std::vector<OpenedFile> opened(paths.size());
  std::atomic<size_t> next{0};
  std::atomic<bool> failed{false};
  auto work = [&] {
    for (size_t i; !failed && (i = next.fetch_add(1)) < paths.size();) {
      open_one(paths[i], opened[i]);
      if (opened[i].error) failed = true;
    }
  };
  std::vector<std::thread> helpers;
  size_t threads = std::min<size_t>({paths.size(), std::max(1u, std::thread::hardware_concurrency()), 16});
  try {
    while (helpers.size() + 1 < threads) helpers.emplace_back(work);
  } catch (const std::system_error&) {
    // No more threads to be had: those that run, and this one, do the work.
  }
  work();
  for (std::thread& helper : helpers) helper.join();
  return opened;
}

}  // namespace

Result<void> TensorIndex::read_files(const std::vector<std::string>& paths) {
  std::vector<OpenedFile> opened = open_all(paths);
  size_t count = 0;
  for (const OpenedFile& one : opened) {
    if (one.error) return *one.error;
    count += one.header.tensors.size();
  }
  if (count > UINT32_MAX) return input_error(fmt::format("{}: more than {} tensors", paths[0], UINT32_MAX));
  tensors_.reserve(count);
  for (OpenedFile& one : opened) {
    for (TensorInfo& info : one.header.tensors) {
      info.file = static_cast<int>(files_.size());
      total_bytes_ += info.bytes;
      tensors_.push_back(std::move(info));
    }
    metadata_.merge(one.header.metadata);
    files_.push_back(std::move(*one.file));
  }
  return {};
}

Result<void> TensorIndex::index_names() {
  by_name_.resize(tensors_.size());
  std::iota(by_name_.begin(), by_name_.end(), 0u);
  auto less = [&](uint32_t a, uint32_t b) { return tensors_[a].name < tensors_[b].name; };
  auto same = [&](uint32_t a, uint32_t b) { return tensors_[a].name == tensors_[b].name; };
  std::sort(by_name_.begin(), by_name_.end(), less);
  auto twice = std::adjacent_find(by_name_.begin(), by_name_.end(), same);
  if (twice == by_name_.end()) return {};
  const TensorInfo &a = tensors_[twice[0]], &b = tensors_[twice[1]];
  return input_error(
      fmt::format("{}: tensor {} is also in {}; keep one of them", file(b.file).path(), quote_text(a.name), file(a.file).path()));
}

// Both are sorted by name, so one walk over the two finds what differs.
Result<void> TensorIndex::compare_with(const ShardIndex& index, const std::string& index_path) const {
  size_t listed = 0, present = 0;
  while (listed < index.weight_map.size() || present < tensors_.size()) {
    const ShardIndex::Entry* entry = listed < index.weight_map.size() ? &index.weight_map[listed] : nullptr;
    const TensorInfo* info = present < tensors_.size() ? &tensors_[by_name_[present]] : nullptr;
    int order = entry == nullptr ? 1 : info == nullptr ? -1 : entry->tensor.compare(info->name);
    if (order < 0)
      return input_error(fmt::format("{}: tensor {} is missing: {} expects it in this file; download the file again",
                                     file(entry->file).path(), quote_text(entry->tensor), kIndexName));
    if (order > 0)
      return input_error(fmt::format("{}: tensor {} is not listed in {}; the file and the index are of different checkpoints",
                                     file(info->file).path(), quote_text(info->name), kIndexName));
    if (entry->file != info->file)
      return input_error(fmt::format("{}: weight_map: expected tensor {} in {}, found it in {}", index_path, quote_text(entry->tensor),
                                     quote_text(index.files[static_cast<size_t>(entry->file)]), file(info->file).path()));
    listed++;
    present++;
  }
  return {};
}

Result<void> TensorIndex::read_gguf(const std::vector<std::string>& paths) {
  DG_ASSIGN(GgufModel model, open_gguf(paths));
  return take_gguf(model);
}

Result<TensorIndex> TensorIndex::from_gguf(GgufModel& model) {
  TensorIndex out;
  DG_TRY(out.take_gguf(model));
  return out;
}

Result<void> TensorIndex::take_gguf(GgufModel& model) {
  DG_ASSIGN(tensors_, gguf_tensor_infos(model));
  for (const GgufHeader& header : model.headers)
    for (const GgufTensor& t : header.tensors) total_bytes_ += t.bytes;
  // Short texts only: the vocabulary and the chat template have readers of their own.
  for (const auto& [key, value] : model.headers[0].metadata)
    if (auto text = value.is_array() ? std::nullopt : value.text(); text && text->size() <= 1000) metadata_.emplace(key, *text);
  files_ = std::move(model.files);
  return index_names();
}

Result<TensorIndex> TensorIndex::open(const std::string& path) {
  TensorIndex out;
  DG_ASSIGN(std::vector<std::string> gguf, find_gguf_files(path));
  if (!gguf.empty()) {
    DG_TRY(out.read_gguf(gguf));
    return out;
  }
  struct stat info;
  if (path.find('\0') != std::string::npos || ::stat(path.c_str(), &info) != 0 || !S_ISDIR(info.st_mode)) {
    // One file; opening it also finds the words for what is neither file nor directory.
    DG_TRY(out.read_files({path}));
    DG_TRY(out.index_names());
    return out;
  }
  std::string index_path = join(path, kIndexName);
  std::optional<ShardIndex> index;
  std::vector<std::string> names;
  if (exists(index_path)) {
    DG_ASSIGN(index, read_shard_index(index_path));
    names = index->files;
    for (const std::string& name : names)
      if (!exists(join(path, name)))
        return io_error(fmt::format("{}: missing, though {} names it; download it", join(path, name), kIndexName));
    if (names.empty()) return input_error(fmt::format("{}: weight_map: expected the tensors of the model, found none", index_path));
  } else if (exists(join(path, kSingleName))) {
    names = {std::string(kSingleName)};
  } else {
    DG_ASSIGN(names, list_safetensors(path));
  }
  for (std::string& name : names) name = join(path, name);
  DG_TRY(out.read_files(names));
  DG_TRY(out.index_names());
  if (index) DG_TRY(out.compare_with(*index, index_path));
  return out;
}

const TensorInfo* TensorIndex::find(std::string_view name) const {
  auto at = std::lower_bound(by_name_.begin(), by_name_.end(), name,
                             [&](uint32_t i, std::string_view wanted) { return tensors_[i].name < wanted; });
  return at != by_name_.end() && tensors_[*at].name == name ? &tensors_[*at] : nullptr;
}

std::span<const std::byte> TensorIndex::data(const TensorInfo& info) const {
  std::span<const std::byte> bytes = file(info.file).bytes();
  CHECK(info.contiguous()) << info.name << ": read_rows puts these rows in order";
  CHECK(info.offset <= bytes.size() && info.bytes <= bytes.size() - info.offset) << info.name;
  return bytes.subspan(info.offset, info.bytes);
}

const MappedFile& TensorIndex::file(int index) const {
  CHECK(index >= 0 && index < file_count()) << index;
  return files_[static_cast<size_t>(index)];
}

}  // namespace dg
