// The parts of the commands that need no model.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>

#include "app/answer_printer.h"
#include "app/model_options.h"
#include "app/perplexity.h"
#include "app/terminal.h"
#include "app/version.h"

namespace dg {
namespace {

Options parse(std::vector<std::string> args, const char* command = "generate") {
  auto options = parse_options(*find_command(command), args, [](const char*) -> const char* { return nullptr; });
  EXPECT_TRUE(options.ok()) << options.error().message;
  return *options;
}

TEST(Version, IsThatOfTheProject) {
  std::ifstream file(DG_SOURCE_DIR "/CMakeLists.txt");
  std::string text((std::istreambuf_iterator<char>(file)), {});
  EXPECT_NE(text.find(std::string("project(dougong VERSION ") + kVersion), std::string::npos);
}

TEST(ModelOptions, SamplingDefaultsComeFromTheModel) {
  GenerationConfig none, samples, greedy;
  samples.do_sample = true;
  samples.temperature = 0.6;
  samples.top_p = 0.95;
  samples.top_k = 20;
  greedy.do_sample = false;
  greedy.temperature = 0.7;
  EXPECT_TRUE(sampling_params(parse({"m"}), none, true).greedy());
  EXPECT_TRUE(sampling_params(parse({"m"}), greedy, true).greedy()) << "do_sample false wins over its temperature";
  SamplingParams p = sampling_params(parse({"m"}), samples, true);
  EXPECT_EQ(p.temperature, 0.6);
  EXPECT_EQ(p.top_p, 0.95);
  EXPECT_EQ(p.top_k, 20);
  p = sampling_params(parse({"m", "--temperature", "0", "--top-k", "5", "--seed", "9"}), samples, true);
  EXPECT_TRUE(p.greedy());
  EXPECT_EQ(p.top_k, 5);
  EXPECT_EQ(p.seed, 9u);
  EXPECT_EQ(sampling_params(parse({"m", "--top-p", "0.5"}), none, true).temperature, 1) << "who asks for a filter samples";
  EXPECT_TRUE(sampling_params(parse({"m"}, "eval"), samples, false).greedy()) << "evaluations are greedy";
  EXPECT_EQ(sampling_params(parse({"m"}, "eval"), samples, false).top_p, 1);
}

TEST(ModelOptions, ModelComesFromFlagOrArgument) {
  std::vector<std::string> rest;
  EXPECT_EQ(*model_argument(parse({"a", "b"}), &rest), "a");
  EXPECT_THAT(rest, testing::ElementsAre("b"));
  EXPECT_EQ(*model_argument(parse({"b", "--model", "a"}), &rest), "a");
  EXPECT_THAT(rest, testing::ElementsAre("b"));
  EXPECT_FALSE(model_argument(parse({}), &rest).ok());
  EXPECT_FALSE(model_argument(parse({"x", "-m", "a"}, "chat")).ok()) << "two models";
}

TEST(Perplexity, DocumentsAreSeparatedByPercentLines) {
  EXPECT_THAT(split_documents("a\n%%\nb\n%% \n%%\n"), testing::ElementsAre("a", "b\n%% ", ""));
  EXPECT_THAT(split_documents("one"), testing::ElementsAre("one"));
  EXPECT_NEAR((PerplexityResult{.nll = 10, .tokens = 5}).value(), std::exp(2), 1e-12);
}

TEST(Terminal, ControlCharactersAreReplaced) {
  EXPECT_EQ(without_control_characters("a\x1b[31mb\n\tc\r\x7f"), "a\xef\xbf\xbd[31mb\n\tc\xef\xbf\xbd\xef\xbf\xbd");
  EXPECT_EQ(without_control_characters("\xc2\x9b"
                                       "1m \xc2\xa9 你好"),
            "\xef\xbf\xbd"
            "1m \xc2\xa9 你好");
}

std::string printed(ThinkingView view, bool colours, bool terminal, const std::vector<std::string>& pieces) {
  testing::internal::CaptureStdout();
  AnswerPrinter printer({.print = true, .terminal = terminal, .colours = colours, .thinking = view}, true, true);
  for (const std::string& piece : pieces) printer.push(piece);
  printer.finish();
  return testing::internal::GetCapturedStdout();
}

TEST(AnswerPrinter, SeparatesReasoningFromTheAnswer) {
  const std::vector<std::string> pieces = {"\n", "12 + ", "30\n", "\n= 42\n", "</thi", "nk>", "\n\n", "It is", " 42."};
  EXPECT_EQ(printed(ThinkingView::kShow, false, false, pieces), "<think>\n12 + 30\n\n= 42\n</think>\n\nIt is 42.\n");
  EXPECT_EQ(printed(ThinkingView::kShow, true, true, pieces), "\x1b[2m12 + 30\n\n= 42\x1b[0m\n\nIt is 42.\n");
  EXPECT_EQ(printed(ThinkingView::kHide, true, true, pieces), "It is 42.\n");
  EXPECT_EQ(printed(ThinkingView::kFold, false, false, pieces), "It is 42.\n");
  EXPECT_THAT(printed(ThinkingView::kFold, false, true, pieces), testing::EndsWith("tokens] \nIt is 42.\n"));
  EXPECT_EQ(printed(ThinkingView::kShow, false, false, {"cut off"}), "<think>\ncut off\n</think>\n\n");
  EXPECT_EQ(printed(ThinkingView::kShow, false, false, {"</think>", "x"}), "x\n") << "empty reasoning is not shown";
}

}  // namespace
}  // namespace dg
