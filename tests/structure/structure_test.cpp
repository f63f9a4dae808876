// The tree obeys docs/structure.md; and each check finds a tree that was made to be wrong.
#include <gtest/gtest.h>
#include <unistd.h>

#include <fstream>

#include "checks.h"

namespace dg::structure {
namespace {

namespace fs = std::filesystem;

std::string text(const Problems& problems) {
  std::string lines;
  for (const std::string& problem : problems) lines += "\n  " + problem;
  return lines;
}
#define EXPECT_CLEAN(expression)                     \
  do {                                               \
    Problems problems = (expression);                \
    EXPECT_TRUE(problems.empty()) << text(problems); \
  } while (0)

const fs::path kRoot = DG_SOURCE_DIR;

TEST(Structure, IncludesGoUpwardOnly) { EXPECT_CLEAN(check_includes(kRoot, floors())); }
TEST(Structure, NoIncludeCycle) { EXPECT_CLEAN(check_cycles(kRoot)); }
TEST(Structure, EveryFolderHasARow) { EXPECT_CLEAN(check_folders(kRoot, floors())); }
TEST(Structure, TableIsInOrder) { EXPECT_CLEAN(check_table(floors())); }
TEST(Structure, DocumentShowsTheTable) { EXPECT_CLEAN(check_document(kRoot / "docs/structure.md", floors())); }
TEST(Structure, TargetsFollowTheTable) { EXPECT_CLEAN(check_targets(kRoot / "src/CMakeLists.txt", floors())); }
TEST(Structure, FilesAreShort) { EXPECT_CLEAN(check_file_sizes(kRoot, 800)); }
TEST(Structure, NoAcceleratorSwitchAboveBackends) { EXPECT_CLEAN(check_accelerator_switches(kRoot)); }
TEST(Structure, HeadersAreLight) { EXPECT_CLEAN(check_light_headers(kRoot)); }

// A small right tree (base <- io, base <- text, app on top), to which each test adds one fault.
class StructureSelfTest : public testing::Test {
 protected:
  void SetUp() override {
    root_ = fs::temp_directory_path() / ("dougong_structure_" + std::to_string(::getpid()));
    fs::remove_all(root_);
    write("src/base/result.h", "#pragma once\n#include <string>\n");
    write("src/io/file.h", "#pragma once\n#include \"base/result.h\"\n");
    write("src/io/file.cpp", "#include \"io/file.h\"\n");
    write("src/text/bpe.h", "#pragma once\n#include \"base/result.h\"\n");
    write("src/app/main.cpp", "#include \"io/file.h\"\n#include \"text/bpe.h\"\n");
    write("src/CMakeLists.txt",
          "dg_floor(base)\ndg_floor(io DEPS base)\ndg_floor(text DEPS base)\ndg_floor(app_lib DIR app\n  DEPS io text)\n");
    write("structure.md", kDocument);
  }
  void TearDown() override { fs::remove_all(root_); }

  void write(const std::string& path, const std::string& content) {
    fs::create_directories((root_ / path).parent_path());
    std::ofstream(root_ / path) << content;
  }
  // The one problem that `problems` holds.
  static std::string only(const Problems& problems) {
    EXPECT_EQ(problems.size(), 1u) << text(problems);
    return problems.empty() ? "" : problems[0];
  }

  static constexpr const char* kDocument =
      "| `src/` | lives there | may use |\n|---|---|---|\n| `base/` | a | nothing |\n| `io/` | b | base |\n"
      "| `text/` | c | base |\n| `app/` | d | everything |\n\n| `tests/` | e |\n";
  const std::vector<Floor> table_ = {{"base", {}, {}}, {"io", {"base"}, {"text"}}, {"text", {"base"}, {}}, {"app", {"*"}, {}}};
  fs::path root_;
};

TEST_F(StructureSelfTest, RightTreeIsClean) {
  EXPECT_CLEAN(check_includes(root_, table_));
  EXPECT_CLEAN(check_cycles(root_));
  EXPECT_CLEAN(check_folders(root_, table_));
  EXPECT_CLEAN(check_table(table_));
  EXPECT_CLEAN(check_document(root_ / "structure.md", table_));
  EXPECT_CLEAN(check_targets(root_ / "src/CMakeLists.txt", table_));
  EXPECT_CLEAN(check_file_sizes(root_, 800));
  EXPECT_CLEAN(check_accelerator_switches(root_));
  EXPECT_CLEAN(check_light_headers(root_));
}

TEST_F(StructureSelfTest, FindsUpwardInclude) {
  write("src/base/bad.cpp", "// why\n  #  include \"io/file.h\"\n");
  EXPECT_EQ(only(check_includes(root_, table_)), "src/base/bad.cpp:2: base/ may not include io/ (io/file.h)");
}

TEST_F(StructureSelfTest, FindsUpwardIncludeInAngleBrackets) {
  write("src/text/bad.h", "#include <io/file.h>\n");
  EXPECT_EQ(only(check_includes(root_, table_)), "src/text/bad.h:1: text/ may not include io/ (io/file.h)");
}

TEST_F(StructureSelfTest, TestsMayUseMoreThanCode) {
  write("src/io/file_test.cpp", "#include \"text/bpe.h\"\n");
  EXPECT_CLEAN(check_includes(root_, table_));
  write("src/io/other.cpp", "#include \"text/bpe.h\"\n");
  EXPECT_EQ(only(check_includes(root_, table_)), "src/io/other.cpp:1: io/ may not include text/ (text/bpe.h)");
}

TEST_F(StructureSelfTest, FindsIncludeThatIsNoFile) {
  write("src/io/bad.cpp", "#include \"file.h\"\n");
  EXPECT_NE(only(check_includes(root_, table_)).find("\"file.h\" is no file of src/"), std::string::npos);
}

TEST_F(StructureSelfTest, FindsCycle) {
  write("src/base/a.h", "#include \"base/b.h\"\n");
  write("src/base/b.h", "#include \"base/c.h\"\n");
  write("src/base/c.h", "#include \"base/a.h\"\n");
  EXPECT_EQ(only(check_cycles(root_)), "include cycle: base/a.h -> base/b.h -> base/c.h -> base/a.h");
}

TEST_F(StructureSelfTest, FindsFolderWithoutRowAndRowWithoutFolder) {
  write("src/extra/thing.cpp", "\n");
  EXPECT_TRUE(only(check_folders(root_, table_)).starts_with("src/extra/thing.cpp: its folder has no row"));
  fs::remove_all(root_ / "src/extra");
  std::vector<Floor> longer = table_;
  longer.push_back({"server", {}, {}});
  EXPECT_EQ(only(check_folders(root_, longer)), "src/server/: in the table, but no such folder");
}

TEST_F(StructureSelfTest, FindsTableOutOfOrder) {
  EXPECT_EQ(only(check_table({{"io", {"base"}, {}}, {"base", {}, {}}})), "io/ uses base/, which stands no higher");
}

TEST_F(StructureSelfTest, FindsDocumentThatDiffers) {
  std::string document = kDocument;
  write("structure.md", std::string(document).replace(document.find("| base |"), 8, "| text |"));
  EXPECT_EQ(only(check_document(root_ / "structure.md", table_)), "structure.md: io/ may use text; floors.h has base");
  write("structure.md", std::string(document).erase(document.find("| `app/`")));
  EXPECT_EQ(only(check_document(root_ / "structure.md", table_)), "structure.md: no row for app/");
  write("structure.md", document + std::string(60, '\n'));
  EXPECT_NE(only(check_document(root_ / "structure.md", table_)).find("at most 60"), std::string::npos);
}

TEST_F(StructureSelfTest, FindsTargetAgainstTheTable) {
  write("src/CMakeLists.txt", "dg_floor(base DEPS io)\ndg_floor(io)  # dg_floor(text)\ndg_floor(app_lib DIR app DEPS nothing)\n");
  Problems problems = check_targets(root_ / "src/CMakeLists.txt", table_);
  ASSERT_EQ(problems.size(), 3u) << text(problems);
  EXPECT_EQ(problems[0], "src/CMakeLists.txt: no dg_floor for text/");
  EXPECT_EQ(problems[1], "src/CMakeLists.txt: app_lib depends on nothing, which is no floor");
  EXPECT_EQ(problems[2], "src/CMakeLists.txt: base may not depend on io");
}

TEST_F(StructureSelfTest, FindsLongFileButNotGeneratedOne) {
  write("src/text/table.cpp", "// Generated by tools/unicode/generate.mjs\n" + std::string(900, '\n'));
  EXPECT_CLEAN(check_file_sizes(root_, 800));
  write("src/text/long.cpp", std::string(801, '\n'));
  EXPECT_EQ(only(check_file_sizes(root_, 800)), "src/text/long.cpp: 801 lines, at most 800");
}

TEST_F(StructureSelfTest, FindsAcceleratorSwitch) {
  write("src/backends/cuda/fine.cpp", "#ifdef USE_CUDA\n#endif\n");
  EXPECT_CLEAN(check_accelerator_switches(root_));
  write("src/io/bad.cpp", "#if defined(DG_CUDA)\n#endif\n");
  EXPECT_EQ(only(check_accelerator_switches(root_)).find("src/io/bad.cpp:1: "), 0u);
}

TEST_F(StructureSelfTest, FindsHeavyHeader) {
  write("src/text/heavy.h", "#include \"base/json.h\"\n");
  write("src/text/heavy.cpp", "#include \"base/json.h\"\n");
  EXPECT_EQ(only(check_light_headers(root_)), "src/text/heavy.h:1: a header includes base/json.h; include base/json_fwd.h");
}

}  // namespace
}  // namespace dg::structure
