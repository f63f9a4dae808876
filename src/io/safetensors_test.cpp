#include "io/safetensors.h"

#include <fmt/core.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <csignal>
#include <cstring>
#include <limits>

#include "io/shape_text.h"
#include "io/test_files.h"

namespace dg {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

Result<SafetensorsHeader> parse(std::string_view header, size_t data_bytes) {
  std::string text = safetensors_text(header, data_bytes);
  return parse_safetensors_header(as_bytes(text), text.size(), "f");
}
std::string fault(std::string_view header, size_t data_bytes) {
  auto parsed = parse(header, data_bytes);
  if (parsed.ok()) return "ok";
  EXPECT_EQ(parsed.error().kind, ErrorKind::kInput);
  EXPECT_EQ(parsed.error().message.find('\n'), std::string::npos);
  return parsed.error().message;
}

TEST(Safetensors, ParsesWhatIsPublished) {
  std::string header =
      R"({"__metadata__":{"format":"pt"},"b.weight_scale_inv":{"dtype":"F32","shape":[1,1],"data_offsets":[6,10]},)"
      R"("a.weight":{"dtype":"F8_E4M3","shape":[2,3],"data_offsets":[0,6]},"层.bias":{"shape":[],"data_offsets":[10,12],"dtype":"BF16"},)"
      R"("none":{"dtype":"I64","shape":[0,7],"data_offsets":[6,6]}}   )";
  auto parsed = parse(header, 12);
  ASSERT_TRUE(parsed.ok()) << parsed.error().message;
  EXPECT_EQ(parsed->data_begin, 8 + header.size());
  EXPECT_EQ(parsed->metadata.at("format"), "pt");
  ASSERT_EQ(parsed->tensors.size(), 4u);
  const TensorInfo& a = parsed->tensors[0];
  EXPECT_EQ(a.name, "a.weight");
  EXPECT_EQ(a.dtype, Dtype::kF8E4m3);
  EXPECT_THAT(a.shape, ElementsAre(2, 3));
  EXPECT_EQ(a.offset, parsed->data_begin);
  EXPECT_EQ(a.bytes, 6u);
  EXPECT_EQ(parsed->tensors[1].name, "none");
  EXPECT_EQ(parsed->tensors[1].bytes, 0u);
  EXPECT_EQ(parsed->tensors[2].name, "b.weight_scale_inv");
  EXPECT_EQ(parsed->tensors[2].offset, parsed->data_begin + 6);
  EXPECT_EQ(parsed->tensors[3].name, "层.bias");
  EXPECT_TRUE(parsed->tensors[3].shape.empty());
  EXPECT_EQ(parsed->tensors[3].bytes, 2u);
}

TEST(Safetensors, AcceptsEveryDtypeAndNoTensors) {
  for (int i = 0; i < kDtypeCount; i++) {
    auto dtype = static_cast<Dtype>(i);
    size_t bytes = 3 * dtype_bytes(dtype);
    auto header = fmt::format(R"({{"x":{{"dtype":"{}","shape":[3],"data_offsets":[0,{}]}}}})", dtype_name(dtype), bytes);
    EXPECT_EQ(fault(header, bytes), "ok") << header;
  }
  EXPECT_EQ(fault("{}", 0), "ok");
}

TEST(Safetensors, NamesWhatIsNotTheFormat) {
  auto start = [](std::string_view text, uint64_t file_bytes) {
    auto parsed = parse_safetensors_header(as_bytes(text), file_bytes, "f");
    return parsed.ok() ? "ok" : parsed.error().message;
  };
  EXPECT_EQ(start("", 0), "f: truncated: expected an 8-byte header length at its begin, found 0 bytes; download it again");
  EXPECT_EQ(start("1234567", 7), "f: truncated: expected an 8-byte header length at its begin, found 7 bytes; download it again");
  EXPECT_EQ(start("version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 9\n", 66),
            "f: a Git LFS pointer, not the weights themselves; fetch them with `git lfs pull` or download the file again");
  EXPECT_EQ(start("GGUF    ........", 16),
            "f: not a safetensors file: its header would have 2314885531459471175 bytes, at most 100000000 are allowed");
  EXPECT_EQ(start(std::string("\x64\0\0\0\0\0\0\0{}", 10), 10),
            "f: truncated: the header needs bytes 8..108 of the file, it has 10; download it again");
  EXPECT_EQ(start(std::string("\x64\0\0\0\0\0\0\0{}", 10), 1000), "f: the header has 100 bytes, only 2 were read");
  EXPECT_EQ(start(std::string("\0\0\0\0\0\0\0\0", 8), 8),
            "f: not a safetensors file: expected its header to begin with '{', found nothing");
  EXPECT_EQ(fault("[1]", 0), "f: not a safetensors file: expected its header to begin with '{', found \"[\"");
}

TEST(Safetensors, NamesBadJson) {
  EXPECT_THAT(fault(R"({"x":)", 0), HasSubstr("f: not valid JSON at byte 6: syntax error while parsing value - unexpected end of input"));
  EXPECT_THAT(fault(R"({"x":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}} x)", 1), HasSubstr("f: not valid JSON at byte 55"));
  EXPECT_THAT(fault("{\"\xff\":{}}", 0), HasSubstr("f: not valid JSON at byte 3"));
  EXPECT_THAT(fault(R"({"x":{"dtype":"U8","shape":[1e999],"data_offsets":[0,1]}})", 1), HasSubstr("number overflow parsing '1e999'"));
  EXPECT_EQ(fault(std::string_view("{}\0 ", 4), 0), "f: not valid JSON at byte 2: a NUL byte");
}

TEST(Safetensors, RefusesNestingAtOnce) {
  EXPECT_EQ(fault(R"({"x":)" + std::string(1 << 20, '['), 0),
            "f: tensor \"x\": expected an object with dtype, shape and data_offsets, found an array");
  EXPECT_EQ(fault(R"({"x":{"dtype":"U8","shape":)" + std::string(1 << 20, '['), 0),
            "f: tensor \"x\": shape[0]: expected an integer from 0 to 2^63-1, found an array");
}

TEST(Safetensors, NamesTheFieldOfATensor) {
  auto x = [](std::string_view fields, size_t data_bytes = 1) {
    std::string found = fault("{\"x\":{" + std::string(fields) + "}}", data_bytes);
    return found.starts_with("f: tensor \"x\": ") ? found.substr(15) : found;
  };
  constexpr std::string_view kU8 = R"("dtype":"U8")", kShape = R"("shape":[1])", kOffsets = R"("data_offsets":[0,1])";
  auto join = [](std::string_view a, std::string_view b, std::string_view c) { return fmt::format("{},{},{}", a, b, c); };
  EXPECT_EQ(x(join(kU8, kShape, kOffsets)), "ok");
  EXPECT_EQ(x(R"("dtype":"U8","shape":[1])"), "data_offsets is missing");
  EXPECT_EQ(x(R"("dtype":"U8","data_offsets":[0,1])"), "shape is missing");
  EXPECT_EQ(x(R"("shape":[1],"data_offsets":[0,1])"), "dtype is missing");
  EXPECT_EQ(x(join(kU8, kU8, kOffsets)), "dtype appears twice");
  EXPECT_EQ(x(join(kShape, kShape, kOffsets)), "shape appears twice");
  EXPECT_EQ(x(join(kOffsets, kShape, kOffsets)), "data_offsets appears twice");
  EXPECT_EQ(x(R"("strides":[1])"), "expected dtype, shape and data_offsets, found the key \"strides\"");
  EXPECT_EQ(x(join(R"("dtype":"F4")", kShape, kOffsets)),
            "dtype: expected one of F32 F16 BF16 F8_E4M3 F8_E5M2 F8_E8M0 I8 U8 I16 U16 I32 U32 I64 U64 F64 BOOL, found \"F4\"");
  EXPECT_EQ(x(join(R"("dtype":7)", kShape, kOffsets)), "dtype: expected a string, found the number 7");
  EXPECT_EQ(x(join(kU8, R"("shape":"1")", kOffsets)), "shape: expected an array, found the string \"1\"");
  EXPECT_EQ(x(join(kU8, R"("shape":[1,-1])", kOffsets)), "shape[1]: expected an integer from 0 to 2^63-1, found the number -1");
  EXPECT_EQ(x(join(kU8, R"("shape":[1.0])", kOffsets)), "shape[0]: expected an integer from 0 to 2^63-1, found the number 1.0");
  EXPECT_EQ(x(join(kU8, R"("shape":[9223372036854775808])", kOffsets)),
            "shape[0]: expected an integer from 0 to 2^63-1, found the number 9223372036854775808");
  EXPECT_EQ(x(join(kU8, R"("shape":[99999999999999999999999])", kOffsets)),
            "shape[0]: expected an integer from 0 to 2^63-1, found the number 99999999999999999999999");
  EXPECT_EQ(x(join(kU8, R"("shape":[1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1])", kOffsets)), "shape: more than 16 dimensions");
  EXPECT_EQ(x(join(kU8, kShape, R"("data_offsets":[0])")), "data_offsets: expected 2 numbers, found 1");
  EXPECT_EQ(x(join(kU8, kShape, R"("data_offsets":[0,1,2])")), "data_offsets: expected 2 numbers, found more");
  EXPECT_EQ(x(join(kU8, kShape, R"("data_offsets":[-1,0])")), "data_offsets: expected a byte offset, found the number -1");
  EXPECT_EQ(x(join(kU8, kShape, R"("data_offsets":null)")), "data_offsets: expected [begin, end], found null");
  EXPECT_EQ(x(join(kU8, kShape, R"("data_offsets":[1,0])")), "data_offsets [1, 0] end before they begin");
}

TEST(Safetensors, FindsFlippedDtypesAndAbsurdShapes) {
  EXPECT_EQ(fault(R"({"w":{"dtype":"F32","shape":[2,3],"data_offsets":[0,12]}})", 12),
            "f: tensor \"w\": F32 [2, 3] takes 24 bytes, but data_offsets [0, 12] hold 12");
  EXPECT_EQ(fault(R"({"w":{"dtype":"F32","shape":[4294967296,2147483648],"data_offsets":[0,0]}})", 0),
            "f: tensor \"w\": F32 [4294967296, 2147483648] is larger than 2^63 bytes");
  EXPECT_EQ(fault(R"({"w":{"dtype":"U8","shape":[4294967296,4294967296,0],"data_offsets":[0,0]}})", 0),
            "f: tensor \"w\": U8 [4294967296, 4294967296, 0] is larger than 2^63 bytes");
}

TEST(Safetensors, FindsWhatTheRangesDoNotCover) {
  auto two = [](std::string_view a, std::string_view b) {
    return R"({"a":{"dtype":"U8","shape":[4],"data_offsets":)" + std::string(a) + R"(},"b":{"dtype":"U8","shape":[4],"data_offsets":)" +
           std::string(b) + "}}";
  };
  EXPECT_EQ(fault(two("[4,8]", "[0,4]"), 8), "ok");
  EXPECT_EQ(fault(two("[0,4]", "[3,7]"), 7), "f: tensors \"a\" and \"b\" overlap: the first ends at data byte 4, the second begins at 3");
  EXPECT_EQ(fault(two("[0,4]", "[0,4]"), 4), "f: tensors \"a\" and \"b\" overlap: the first ends at data byte 4, the second begins at 0");
  EXPECT_EQ(fault(two("[0,4]", "[5,9]"), 9), "f: tensor \"b\" begins at data byte 5, expected 4: 1 bytes belong to no tensor");
  size_t begin = 8 + two("[0,4]", "[4,8]").size();
  auto at = [&](size_t byte) { return std::to_string(begin + byte); };
  EXPECT_EQ(fault(two("[0,4]", "[4,8]"), 7),
            "f: truncated: tensor \"b\" needs bytes " + at(4) + ".." + at(8) + " of the file, it has " + at(7) + "; download it again");
  EXPECT_EQ(fault(two("[0,4]", "[4,8]"), 9), "f: the tensors end at byte " + at(8) + ", but the file has " + at(9) + ": 1 bytes too many");
  EXPECT_THAT(fault(two("[0,4]", "[18446744073709551611,18446744073709551615]"), 8), HasSubstr("..18446744073709551615 of the file"));
}

TEST(Safetensors, FindsRepeatedAndUnprintableNames) {
  constexpr std::string_view kEmpty = R"({"dtype":"U8","shape":[0],"data_offsets":[0,0]})";
  auto named = [&](std::string_view name) { return "\"" + std::string(name) + "\":" + std::string(kEmpty); };
  EXPECT_EQ(fault("{" + named("a") + "," + named("b") + "," + named("a") + "}", 0), "f: tensor \"a\" appears twice in the header");
  EXPECT_EQ(fault("{" + named("a\\nb") + "}", 0), "f: tensor \"a\\x0ab\": the name contains a control character");
  EXPECT_THAT(fault("{" + named(std::string(513, 'n')) + "}", 0), HasSubstr("a name of 513 bytes, at most 512 are accepted"));
  EXPECT_EQ(fault(R"({"x":3})", 0), "f: tensor \"x\": expected an object with dtype, shape and data_offsets, found the number 3");
}

TEST(Safetensors, ChecksMetadata) {
  EXPECT_EQ(fault(R"({"__metadata__":[]})", 0), "f: __metadata__: expected an object, found an array");
  EXPECT_EQ(fault(R"({"__metadata__":{"n":1}})", 0), "f: __metadata__: \"n\": expected a string, found the number 1");
  EXPECT_EQ(fault(R"({"__metadata__":{"n":"1","n":"2"}})", 0), "f: __metadata__: the key \"n\" appears twice");
  EXPECT_EQ(fault(R"({"__metadata__":{},"__metadata__":{}})", 0), "f: __metadata__ appears twice in the header");
  std::string many = R"({"__metadata__":{)";
  for (size_t i = 0; i <= kMaxMetadataEntries; i++) many += (i == 0 ? "\"" : ",\"") + std::to_string(i) + "\":\"\"";
  EXPECT_EQ(fault(many + "}}", 0), "f: __metadata__: more than 65536 entries");
}

TEST(Safetensors, NeverReadsOutsideACutFile) {
  // Every prefix of a good file, copied so that the sanitizer sees a read behind it: all refused, none crashes.
  std::string text = safetensors_text(R"({"__metadata__":{"k":"v"},"a":{"dtype":"BF16","shape":[2],"data_offsets":[0,4]},)"
                                      R"("b":{"dtype":"U8","shape":[1],"data_offsets":[4,5]}})",
                                      5);
  ASSERT_TRUE(parse_safetensors_header(as_bytes(text), text.size(), "f").ok());
  for (size_t n = 0; n < text.size(); n++) {
    std::vector<std::byte> cut(as_bytes(text).begin(), as_bytes(text).begin() + static_cast<ptrdiff_t>(n));
    EXPECT_FALSE(parse_safetensors_header(cut, n, "f").ok()) << n;
    bool header_is_there = n >= text.size() - 5;
    EXPECT_EQ(parse_safetensors_header(cut, text.size(), "f").ok(), header_is_there) << n;
  }
}

TEST(SafetensorsWrite, RoundTripsAligned) {
  TestDirectory dir;
  std::string path = dir.file("out.safetensors");
  std::string bytes3 = "abc", bytes8 = "12345678";
  std::vector<TensorToWrite> tensors = {{"odd", Dtype::kI8, {3}, as_bytes(bytes3)},
                                        {"引号\"", Dtype::kF32, {2, 1}, as_bytes(bytes8)},
                                        {"scalar", Dtype::kI64, {}, as_bytes(bytes8)},
                                        {"empty", Dtype::kBf16, {4, 0}, {}}};
  auto written = write_safetensors(path, tensors, {{"format", "pt"}, {"注", "引\n"}});
  ASSERT_TRUE(written.ok()) << written.error().message;
  EXPECT_FALSE(file_exists(path + ".partial"));
  auto file = MappedFile::open(path);
  ASSERT_TRUE(file.ok());
  auto header = read_safetensors_header(*file);
  ASSERT_TRUE(header.ok()) << header.error().message;
  EXPECT_EQ(header->data_begin % 8, 0u);
  EXPECT_EQ(header->metadata.at("注"), "引\n");
  ASSERT_EQ(header->tensors.size(), 4u);
  size_t found = 0;
  for (const TensorInfo& info : header->tensors)
    for (const TensorToWrite& t : tensors)
      if (t.name == info.name) {
        found++;
        EXPECT_EQ(info.dtype, t.dtype);
        EXPECT_EQ(info.shape, t.shape);
        EXPECT_EQ(info.offset % dtype_bytes(info.dtype), 0u);
        ASSERT_EQ(info.bytes, t.data.size());
        EXPECT_TRUE(std::equal(t.data.begin(), t.data.end(), file->bytes().begin() + static_cast<ptrdiff_t>(info.offset)));
      }
  EXPECT_EQ(found, 4u);
}

TEST(SafetensorsWrite, RefusesWhatItCouldNotReadBack) {
  TestDirectory dir;
  std::string path = dir.file("out.safetensors");
  auto refused = [&](std::vector<TensorToWrite> tensors) {
    auto written = write_safetensors(path, tensors);
    EXPECT_FALSE(file_exists(path) || file_exists(path + ".partial"));
    std::string found = written.ok() ? "ok" : written.error().message;
    return found.starts_with(path + ": ") ? found.substr(path.size() + 2) : found;
  };
  EXPECT_EQ(refused({{"a", Dtype::kF32, {2}, as_bytes("1234")}}), "tensor \"a\": F32 [2] takes 8 bytes, the data has 4");
  EXPECT_EQ(refused({{"a", Dtype::kF32, {-1}, {}}}), "tensor \"a\": F32 [-1] takes more than 2^63 bytes, the data has 0");
  EXPECT_EQ(refused({{"a", Dtype::kU8, {1}, as_bytes("1")}, {"a", Dtype::kU8, {1}, as_bytes("1")}}), "tensor \"a\" is given twice");
  EXPECT_THAT(refused({{"__metadata__", Dtype::kU8, {0}, {}}}), HasSubstr("expected a name of at most 512 bytes"));
  EXPECT_THAT(refused({{"\xff", Dtype::kU8, {0}, {}}}), HasSubstr("cannot be written as JSON"));
  auto nowhere = write_safetensors(dir.file("no/where"), {});
  ASSERT_FALSE(nowhere.ok());
  EXPECT_EQ(nowhere.error().message, dir.file("no/where.partial") + ": cannot be written: No such file or directory");
}

TEST(SafetensorsWrite, AFailedWriteLeavesNoFile) {
  TestDirectory dir;
  std::string path = dir.file("big.safetensors"), data(100'000, 'x');
  rlimit before;  // a limit on the size of files stands for the full disk
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &before), 0);
  rlimit small{.rlim_cur = 50'000, .rlim_max = before.rlim_max};
  auto handler = ::signal(SIGXFSZ, SIG_IGN);
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &small), 0);
  auto written = write_safetensors(path, std::vector<TensorToWrite>{{"x", Dtype::kU8, {100'000}, as_bytes(data)}});
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &before), 0);
  ::signal(SIGXFSZ, handler);
  ASSERT_FALSE(written.ok());
  EXPECT_THAT(written.error().message, HasSubstr(path + ".partial: write failed with "));
  EXPECT_FALSE(file_exists(path) || file_exists(path + ".partial"));

  std::filesystem::create_directory(dir.file("taken"));  // rename cannot replace a directory
  auto taken = write_safetensors(dir.file("taken"), {});
  ASSERT_FALSE(taken.ok());
  EXPECT_THAT(taken.error().message, HasSubstr("taken: cannot be put in place: "));
  EXPECT_FALSE(file_exists(dir.file("taken.partial")));
}

TEST(ShapeText, BytesDoNotOverflow) {
  EXPECT_EQ(tensor_bytes(Dtype::kF32, std::vector<int64_t>{7168, 2048}), 7168ull * 2048 * 4);
  EXPECT_EQ(tensor_bytes(Dtype::kF64, {}), 8u);
  EXPECT_EQ(tensor_bytes(Dtype::kU8, std::vector<int64_t>{std::numeric_limits<int64_t>::max()}), (1ull << 63) - 1);
  EXPECT_EQ(tensor_bytes(Dtype::kF16, std::vector<int64_t>{std::numeric_limits<int64_t>::max()}), std::nullopt);
  EXPECT_EQ(tensor_bytes(Dtype::kU8, std::vector<int64_t>{0, -1}), std::nullopt);
  EXPECT_EQ(shape_text(std::vector<int64_t>{1, 2}), "[1, 2]");
  EXPECT_EQ(shape_text({}), "[]");
}

}  // namespace
}  // namespace dg
