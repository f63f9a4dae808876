#include "io/mapped_file.h"

#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstring>
#include <utility>

#include "io/error_text.h"
#include "io/test_files.h"

namespace dg {
namespace {

std::string message(const Result<MappedFile>& result) { return result.ok() ? "ok" : result.error().message; }

TEST(MappedFile, MapsAndReads) {
  TestDirectory dir;
  std::string content(100'000, '\0');
  for (size_t i = 0; i < content.size(); i++) content[i] = static_cast<char>(i * 7 / 3);
  std::string path = dir.write("a b 权重.bin", content);
  auto file = MappedFile::open(path);
  ASSERT_TRUE(file.ok()) << message(file);
  EXPECT_EQ(file->path(), path);
  EXPECT_EQ(file->size(), content.size());
  ASSERT_EQ(file->bytes().size(), content.size());
  EXPECT_EQ(std::memcmp(file->bytes().data(), content.data(), content.size()), 0);
  std::string part(5000, 'x');
  ASSERT_TRUE(file->read_into(70'001, std::as_writable_bytes(std::span(part))).ok());
  EXPECT_EQ(part, content.substr(70'001, 5000));
  EXPECT_TRUE(file->read_into(content.size(), {}).ok());
}

TEST(MappedFile, HintsKeepTheContent) {
  TestDirectory dir;
  std::string content(3 * 65536 + 17, 'q');
  auto file = MappedFile::open(dir.write("f", content));
  ASSERT_TRUE(file.ok());
  file->will_need(0, UINT64_MAX);
  file->will_need(UINT64_MAX, UINT64_MAX);
  file->will_need(5, 0);
  EXPECT_EQ(std::memcmp(file->bytes().data(), content.data(), content.size()), 0);
  file->drop(1, UINT64_MAX);
  file->drop(0, 100);
  file->drop(UINT64_MAX, 1);
  file->drop(4095, 70'000);
  EXPECT_EQ(std::memcmp(file->bytes().data(), content.data(), content.size()), 0);
}

TEST(MappedFile, DropGivesPagesBack) {
  TestDirectory dir;
  std::string content(64 * 65536, 'q');
  auto file = MappedFile::open(dir.write("f", content));
  ASSERT_TRUE(file.ok());
  auto resident_kb = [&] {  // "Rss:" of our mapping in smaps
    FILE* smaps = fopen("/proc/self/smaps", "r");
    char line[1024];
    bool ours = false;
    long kb = -1;
    auto want = reinterpret_cast<uintptr_t>(file->bytes().data());
    while (smaps != nullptr && fgets(line, sizeof line, smaps) != nullptr) {
      uintptr_t begin = 0, end = 0;
      if (sscanf(line, "%zx-%zx ", &begin, &end) == 2) ours = begin == want;
      if (ours && kb < 0) sscanf(line, "Rss: %ld", &kb);
    }
    if (smaps != nullptr) fclose(smaps);
    return kb;
  };
  unsigned sum = 0;
  for (std::byte b : file->bytes()) sum += std::to_integer<unsigned>(b);
  EXPECT_EQ(sum, content.size() * 'q');
  if (resident_kb() < 0) GTEST_SKIP() << "no /proc/self/smaps (qemu-user)";
  EXPECT_EQ(resident_kb(), 64 * 64);
  file->drop(0, content.size() / 2);
  EXPECT_LE(resident_kb(), 32 * 64);
}

TEST(MappedFile, MovesOwnership) {
  TestDirectory dir;
  auto a = MappedFile::open(dir.write("a", "aaaa"));
  auto b = MappedFile::open(dir.write("b", "bb"));
  ASSERT_TRUE(a.ok() && b.ok());
  MappedFile moved = std::move(*a);
  moved = std::move(*b);
  EXPECT_EQ(moved.bytes().size(), 2u);
  EXPECT_EQ(std::to_integer<char>(moved.bytes()[0]), 'b');
  std::byte out[2];
  EXPECT_TRUE(moved.read_into(0, out).ok());
}

TEST(MappedFile, AcceptsAnEmptyFile) {
  TestDirectory dir;
  auto file = MappedFile::open(dir.write("empty", ""));
  ASSERT_TRUE(file.ok()) << message(file);
  EXPECT_TRUE(file->bytes().empty());
  file->will_need(0, 10);
  file->drop(0, 10);
  std::byte one[1];
  EXPECT_EQ(file->read_into(0, one).error().message, dir.file("empty") + ": 1 bytes at offset 0 are outside the file, which has 0 bytes");
}

TEST(MappedFile, RefusesReadsOutside) {
  TestDirectory dir;
  auto file = MappedFile::open(dir.write("f", "0123456789"));
  ASSERT_TRUE(file.ok());
  std::byte out[4];
  EXPECT_EQ(file->read_into(7, out).error().message, dir.file("f") + ": 4 bytes at offset 7 are outside the file, which has 10 bytes");
  EXPECT_FALSE(file->read_into(UINT64_MAX - 1, out).ok());
}

TEST(MappedFile, AFileThatShrinksIsAnErrorAndNoSignal) {
  TestDirectory dir;
  std::string path = dir.write("f", std::string(100'000, 'x'));
  auto file = MappedFile::open(path);
  ASSERT_TRUE(file.ok());
  ASSERT_EQ(::truncate(path.c_str(), 60'000), 0);
  std::vector<std::byte> out(50'000);
  EXPECT_TRUE(file->read_into(10'000, out).ok());
  auto read = file->read_into(20'000, out);
  ASSERT_FALSE(read.ok());
  EXPECT_EQ(read.error().message, path +
                                      ": bytes 20000..70000 are needed, but the file shrank from 100000 to 60000 bytes while it was "
                                      "read; restore the file and start again");
  EXPECT_EQ(exit_code(read.error().kind), 2);
}

TEST(MappedFile, NamesWhatIsNoFile) {
  TestDirectory dir;
  EXPECT_EQ(message(MappedFile::open(dir.file("none"))), dir.file("none") + ": cannot be opened: No such file or directory");
  EXPECT_EQ(message(MappedFile::open(dir.path())), dir.path() + ": expected a regular file, found a directory");

  ASSERT_EQ(::mkfifo(dir.file("fifo").c_str(), 0644), 0);  // opening it for reading would wait for a writer
  EXPECT_EQ(message(MappedFile::open(dir.file("fifo"))), dir.file("fifo") + ": expected a regular file, found a FIFO (named pipe)");
  EXPECT_EQ(message(MappedFile::open("/dev/zero")), "/dev/zero: expected a regular file, found a device");

  dir.write("f", "x");
  EXPECT_EQ(message(MappedFile::open(dir.file("f/g"))), dir.file("f/g") + ": cannot be opened: Not a directory");
  EXPECT_EQ(message(MappedFile::open(std::string("a\0b", 3))), "\"a\\x00b\": a path has no NUL byte");
  EXPECT_NE(message(MappedFile::open(dir.file(std::string(5000, 'n')))).find("File name too long"), std::string::npos);
}

TEST(MappedFile, FollowsLinksButNotLoops) {
  TestDirectory dir;
  dir.write("blob", "data");
  std::filesystem::create_symlink("blob", dir.file("good"));
  EXPECT_TRUE(MappedFile::open(dir.file("good")).ok());

  std::filesystem::create_symlink("loop2", dir.file("loop1"));
  std::filesystem::create_symlink("loop1", dir.file("loop2"));
  EXPECT_EQ(message(MappedFile::open(dir.file("loop1"))),
            dir.file("loop1") + ": cannot be opened: the symbolic links form a loop; replace the link by the file it should name");

  std::filesystem::create_symlink("../blobs/abc", dir.file("dangling"));
  EXPECT_EQ(message(MappedFile::open(dir.file("dangling"))),
            dir.file("dangling") + ": cannot be opened: symbolic link to a missing file \"../blobs/abc\"; download it again");
}

TEST(MappedFile, NamesAnUnreadableFile) {
  TestDirectory dir;
  std::string path = dir.write("f", "secret");
  ASSERT_EQ(::chmod(dir.path().c_str(), 0755), 0);
  ASSERT_EQ(::chmod(path.c_str(), 0000), 0);
  bool root = ::geteuid() == 0;  // root reads everything: be somebody else meanwhile
  if (root && ::seteuid(65534) != 0) GTEST_SKIP() << "root cannot change its user here";
  std::string found = message(MappedFile::open(path));
  CHECK(!root || ::seteuid(0) == 0);
  EXPECT_EQ(found, path + ": cannot be opened: permission denied; let this user read it (chmod, chown or run as its owner)");
}

TEST(MappedFile, RunningOutOfDescriptorsIsAResourceError) {
  TestDirectory dir;
  std::string path = dir.write("f", "x");
  rlimit before;
  ASSERT_EQ(::getrlimit(RLIMIT_NOFILE, &before), 0);
  rlimit none{.rlim_cur = 0, .rlim_max = before.rlim_max};
  ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &none), 0);
  auto file = MappedFile::open(path);
  ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &before), 0);
  ASSERT_FALSE(file.ok());
  EXPECT_EQ(file.error().message, path + ": cannot be opened: too many open files; raise the limit (ulimit -n)");
  EXPECT_EQ(file.error().kind, ErrorKind::kResource);
}

TEST(QuoteText, MakesOneprintableLine) {
  EXPECT_EQ(quote_text("模型.权重"), "\"模型.权重\"");
  EXPECT_EQ(quote_text("a\nb\x7f\"\\"), "\"a\\x0ab\\x7f\\\"\\\\\"");
  EXPECT_EQ(quote_text("\xff\xc0\x80\xed\xa0\x80\xe4\xb8"), "\"\\xff\\xc0\\x80\\xed\\xa0\\x80\\xe4\\xb8\"");  // none is UTF-8
  EXPECT_EQ(quote_text("模型", 4), "\"模...\"");
  EXPECT_EQ(quote_text("模型", 6), "\"模型\"");
  EXPECT_EQ(quote_text(""), "\"\"");
}

}  // namespace
}  // namespace dg
