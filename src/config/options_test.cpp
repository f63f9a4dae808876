#include "config/options.h"

#include <fmt/core.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>
#include <set>
#include <sstream>

namespace dg {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;

const Environment kNoEnvironment = [](const char*) -> const char* { return nullptr; };

Result<Options> parse(const std::string& command, std::vector<std::string> args, const Environment& environment = kNoEnvironment) {
  return parse_options(*find_command(command), args, environment);
}

std::string message(const std::string& command, std::vector<std::string> args, const Environment& environment = kNoEnvironment) {
  auto options = parse(command, std::move(args), environment);
  if (options.ok()) return "";
  EXPECT_EQ(options.error().message.find('\n'), std::string::npos) << "one line";
  EXPECT_EQ(exit_code(options.error().kind), 2);
  return options.error().message;
}

TEST(Options, BothSpellingsAliasesAndUnderscores) {
  auto options =
      parse("generate", {"my model", "--max-tokens=5", "--temperature", "0.25", "-p", "hello", "--top_k", "7", "--repeat-penalty", "1.5"});
  ASSERT_TRUE(options.ok()) << options.error().message;
  EXPECT_THAT(options->arguments(), ElementsAre("my model"));
  EXPECT_EQ(options->integer("max-tokens"), 5);
  EXPECT_EQ(options->number("temperature"), 0.25);
  EXPECT_EQ(options->text("prompt"), "hello");
  EXPECT_EQ(options->integer("top-k"), 7);
  EXPECT_EQ(options->number("repetition-penalty"), 1.5);
  EXPECT_TRUE(options->given("top-k"));
  EXPECT_FALSE(options->given("top-p"));
  EXPECT_EQ(options->text("backend"), "auto") << "the default";
}

TEST(Options, FlagsCanBeNegatedOrGivenAValue) {
  EXPECT_FALSE(parse("generate", {"m"})->given("thinking"));
  EXPECT_TRUE(parse("generate", {"m", "--thinking"})->flag("thinking"));
  auto off = parse("generate", {"m", "--no-thinking"});
  EXPECT_TRUE(off->given("thinking"));
  EXPECT_FALSE(off->flag("thinking"));
  EXPECT_FALSE(parse("generate", {"m", "--thinking=false"})->flag("thinking"));
  EXPECT_TRUE(parse("tokenize", {"m"})->flag("bos"));
  EXPECT_FALSE(parse("tokenize", {"m", "--no-bos"})->flag("bos"));
  EXPECT_TRUE(parse("generate", {"m", "--no-thinking", "--thinking"})->flag("thinking")) << "the last one counts";
  EXPECT_THAT(message("generate", {"m", "--thinking=maybe"}), HasSubstr("--thinking: expected true or false, found \"maybe\""));
  EXPECT_THAT(message("generate", {"m", "--no-thinking=1"}), HasSubstr("--no-thinking: expected no value"));
}

TEST(Options, ValuesMayBeginWithADash) {
  EXPECT_EQ(parse("generate", {"m", "--top-k", "-1"})->integer("top-k"), -1);
  EXPECT_EQ(parse("generate", {"m", "--prompt", "- a list"})->text("prompt"), "- a list");
  EXPECT_EQ(parse("generate", {"m", "--prompt", "--strange"})->text("prompt"), "--strange");
  EXPECT_EQ(parse("generate", {"m", "--prompt=--seed"})->text("prompt"), "--seed");
  EXPECT_EQ(parse("generate", {"m", "--prompt-file", "-"})->text("prompt-file"), "-");
  EXPECT_THAT(parse("tokenize", {"m", "--", "--json", "-x"})->arguments(), ElementsAre("m", "--json", "-x"));
  EXPECT_THAT(message("generate", {"m", "--prompt", "--seed", "3"}), HasSubstr("--prompt: expected a value (TEXT), found \"--seed\""));
  EXPECT_THAT(message("generate", {"m", "--seed"}), HasSubstr("--seed: expected a value (N), found the end of the command line"));
}

TEST(Options, ListsKeepOrder) {
  EXPECT_THAT(parse("generate", {"m", "--stop", "b", "--stop=a", "-r", ""})->list("stop"), ElementsAre("b", "a", ""));
}

TEST(Options, UnknownOptionNamesTheNearest) {
  EXPECT_EQ(message("generate", {"m", "--max-token", "5"}), "unknown option \"--max-token\"; did you mean --max-tokens?");
  EXPECT_THAT(message("generate", {"m", "--tempratuer=1"}), HasSubstr("did you mean --temperature?"));
  EXPECT_THAT(message("generate", {"m", "--no-thinkin"}), HasSubstr("did you mean --no-thinking?"));
  EXPECT_THAT(message("generate", {"m", "--zzzzzzzzz"}), HasSubstr("`dougong generate --help` lists the options"));
  EXPECT_THAT(message("tokenize", {"m", "--temperature", "1"}), HasSubstr("it belongs to: generate chat eval"));
  EXPECT_THAT(message("generate", {"m", "--a\nb"}), HasSubstr("\"--a\\nb\""));
}

TEST(Options, WrongTypesAndRanges) {
  EXPECT_EQ(message("generate", {"m", "--max-tokens", "many"}), "--max-tokens: expected an integer from 0 to 1073741824, found \"many\"");
  EXPECT_THAT(message("generate", {"m", "--max-tokens", "5.5"}), HasSubstr("found \"5.5\""));
  EXPECT_THAT(message("generate", {"m", "--max-tokens", ""}), HasSubstr("found \"\""));
  EXPECT_THAT(message("generate", {"m", "--max-tokens", "99999999999999999999"}), HasSubstr("expected an integer"));
  EXPECT_THAT(message("generate", {"m", "--top-p", "1.01"}), HasSubstr("--top-p: expected a number from 0 to 1, found \"1.01\""));
  EXPECT_THAT(message("generate", {"m", "--temperature", "nan"}), HasSubstr("--temperature: expected a number from 0 to 100"));
  EXPECT_THAT(message("generate", {"m", "--backend", "cpus"}),
              HasSubstr("--backend: expected one of auto, cpu, cuda, reference, checked, checked-cuda, found \"cpus\"; did you mean cpu?"));
}

TEST(Options, Positionals) {
  EXPECT_THAT(message("verify", {}), HasSubstr("expected DIR, found no argument; usage: dougong verify DIR"));
  EXPECT_THAT(message("version", {"x"}), HasSubstr("unexpected argument \"x\""));
  EXPECT_TRUE(parse("tokenize", {"m", "a", "b", "c", "d"}).ok());
}

TEST(Options, EnvironmentIsBelowTheCommandLine) {
  Environment environment = [](const char* name) -> const char* {
    if (std::string_view(name) == "DOUGONG_MAX_TOKENS") return "9";
    if (std::string_view(name) == "DOUGONG_TOP_P") return "2";
    return nullptr;
  };
  EXPECT_EQ(parse("generate", {"m", "--top-p", "1", "--max-tokens", "3"}, environment)->integer("max-tokens"), 3);
  EXPECT_EQ(parse("generate", {"m", "--top-p", "1"}, environment)->integer("max-tokens"), 9);
  EXPECT_EQ(message("generate", {"m"}, environment), "environment variable DOUGONG_TOP_P: expected a number from 0 to 1, found \"2\"");
}

TEST(Options, HelpWinsOverErrors) {
  auto options = parse("verify", {"--no-such-thing", "--help"});
  ASSERT_TRUE(options.ok());
  EXPECT_TRUE(options->flag("help"));
  EXPECT_FALSE(parse("tokenize", {"m", "--", "-h"})->flag("help"));
}

// --profile takes a value only behind '=': what follows it is an argument or an option of its own.
TEST(Options, OptionalText) {
  EXPECT_FALSE(parse("generate", {"m"})->given("profile"));
  auto bare = parse("generate", {"m", "--profile", "a prompt"});
  ASSERT_TRUE(bare.ok()) << bare.error().message;
  EXPECT_TRUE(bare->given("profile"));
  EXPECT_EQ(bare->text("profile"), "");
  EXPECT_THAT(bare->arguments(), ElementsAre("m", "a prompt"));
  auto file = parse("generate", {"--profile=a b=c.json", "m"});
  EXPECT_EQ(file->text("profile"), "a b=c.json");
  EXPECT_THAT(file->arguments(), ElementsAre("m"));
  auto last = parse("generate", {"m", "--profile"});
  EXPECT_TRUE(last.ok() && last->given("profile"));
  const Environment set = [](const char* name) { return std::string_view(name) == "DOUGONG_PROFILE" ? "t.json" : nullptr; };
  EXPECT_EQ(parse("generate", {"m"}, set)->text("profile"), "t.json");
  EXPECT_THAT(command_help(*find_command("generate")), HasSubstr("--profile[=FILE.json]"));
}

// The table itself: every row is consistent and reachable, and no two rows of a command claim the same word.
TEST(OptionTable, IsConsistent) {
  for (const CommandRow& command : command_rows()) {
    std::set<std::string> words;
    for (const OptionRow& row : option_rows()) {
      if (!belongs_to(row, command)) continue;
      EXPECT_TRUE(words.insert(std::string("--") + row.name).second) << row.name;
      std::istringstream aliases(row.aliases);
      for (std::string alias; aliases >> alias;) {
        EXPECT_TRUE(words.insert(alias).second) << command.name << " " << alias;
        EXPECT_TRUE(alias.starts_with('-')) << alias;
      }
    }
    EXPECT_EQ(find_command(command.name), &command);
    std::string help = command_help(command);
    std::istringstream lines(help);
    for (std::string line; std::getline(lines, line);) EXPECT_LE(line.size(), 140u) << line;
  }
  for (const OptionRow& row : option_rows()) {
    std::istringstream commands(row.commands);
    for (std::string name; commands >> name;) EXPECT_TRUE(name == "*" || find_command(name)) << row.name << ": " << name;
    if (*row.fallback && row.type != OptionType::kFlag && std::string_view(row.commands) != "*") {
      std::string command = std::string(row.commands).substr(0, std::string_view(row.commands).find(' '));
      std::vector<std::string> args(static_cast<size_t>(std::max(1, find_command(command)->min_arguments)), "m");
      args.push_back(fmt::format("--{}={}", row.name, row.fallback));
      EXPECT_TRUE(parse(command, args).ok()) << row.name << ": its own default";
    }
  }
}

TEST(OptionTable, HelpListsEverything) {
  for (const CommandRow& command : command_rows()) {
    EXPECT_THAT(program_help(), HasSubstr(std::string("  ") + command.name));
    for (const OptionRow& row : option_rows())
      if (belongs_to(row, command) && !row.hidden) {
        EXPECT_THAT(command_help(command), HasSubstr(row.name));
      }
  }
  EXPECT_THAT(program_help(), HasSubstr("130 interrupted"));
  EXPECT_THAT(command_help(*find_command("version")), Not(HasSubstr("--temperature")));
}

TEST(OptionTable, DocumentationIsCurrent) {
  std::ifstream file(DG_SOURCE_DIR "/docs/options.md");
  std::string content((std::istreambuf_iterator<char>(file)), {});
  EXPECT_TRUE(content == options_markdown()) << "docs/options.md is not current: run `dougong --help-markdown > docs/options.md`";
}

TEST(NearestWord, SwapsAndPrefixesAreNear) {
  std::vector<std::string> known = {"generate", "chat", "eval", "verify"};
  EXPECT_EQ(nearest_word("genreate", known), "generate");
  EXPECT_EQ(nearest_word("gener", known), "generate");
  EXPECT_EQ(nearest_word("cat", known), "chat");
  EXPECT_EQ(nearest_word("xyz", known), "");
  EXPECT_EQ(nearest_word(std::string(100000, 'a'), known), "");
}

}  // namespace
}  // namespace dg
