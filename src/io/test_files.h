// For tests: a directory of broken files, under a path with spaces and Chinese characters.
#pragma once
#include <stdlib.h>

#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/file.h"
#include "io/safetensors.h"

namespace dg {

class TestDirectory {
 public:
  TestDirectory() {
    std::string path = (std::filesystem::temp_directory_path() / "dougong 模型 测试 XXXXXX").string();
    CHECK(::mkdtemp(path.data()) != nullptr) << path;
    path_ = path;
  }
  ~TestDirectory() { std::filesystem::remove_all(path_); }
  TestDirectory(const TestDirectory&) = delete;
  TestDirectory& operator=(const TestDirectory&) = delete;

  const std::string& path() const { return path_; }
  std::string file(std::string_view name) const { return path_ + "/" + std::string(name); }
  std::string write(std::string_view name, std::string_view content) const {
    auto written = write_file(file(name), content);
    CHECK(written.ok()) << written.error().message;
    return file(name);
  }

 private:
  std::string path_;
};

// A safetensors file as published: length, header text as given, data_bytes bytes 0, 1, 2, ...
inline std::string safetensors_text(std::string_view header, size_t data_bytes) {
  std::string out;
  for (size_t i = 0; i < 8; i++) out += static_cast<char>(uint64_t{header.size()} >> (8 * i));
  out += header;
  for (size_t i = 0; i < data_bytes; i++) out += static_cast<char>(i);
  return out;
}

inline std::span<const std::byte> as_bytes(std::string_view text) { return std::as_bytes(std::span(text.data(), text.size())); }

// Writes a file of U8 tensors of 4 bytes each with these names.
inline void write_small(const std::string& path, const std::vector<std::string>& names) {
  std::vector<TensorToWrite> tensors;
  for (const std::string& name : names) tensors.push_back({name, Dtype::kU8, {2, 2}, as_bytes("abcd")});
  auto written = write_safetensors(path, tensors);
  CHECK(written.ok()) << written.error().message;
}

}  // namespace dg
