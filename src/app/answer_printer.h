// Shows an answer while it is generated: reasoning apart from the answer proper, dim or folded or not at all. Also keeps both
// texts, for JSON and for the conversation.
#pragma once
#include <optional>
#include <string>
#include <string_view>

#include "text/reasoning.h"

namespace dg {

enum class ThinkingView {
  kShow,  // on a terminal dim, elsewhere between the lines <think> and </think>
  kFold,  // on a terminal one line that counts, elsewhere nothing
  kHide,
};

struct AnswerStyle {
  bool print = true;      // false: only collect
  bool terminal = false;  // control characters of the model are replaced, folding redraws its line
  bool colours = false;
  ThinkingView thinking = ThinkingView::kShow;
};

class AnswerPrinter {
 public:
  // Without `split` the text is shown as it is (plain continuation). `starts_in_reasoning`: the prompt ended in <think>.
  AnswerPrinter(AnswerStyle style, bool split, bool starts_in_reasoning);

  void push(std::string_view text);
  void finish();  // ends the line

  const std::string& reasoning() const { return reasoning_; }
  const std::string& content() const { return content_; }

 private:
  void show(bool reasoning, std::string_view text);
  void open_reasoning();
  void close_reasoning();
  void put(std::string_view text);

  const AnswerStyle style_;
  std::optional<ReasoningSplitter> splitter_;
  std::string reasoning_, content_;
  bool in_reasoning_ = false, content_begun_ = false;
  size_t newlines_held_ = 0;  // of the reasoning: shown only if more of it follows
  int64_t pieces_ = 0;
  char last_ = '\n';
};

}  // namespace dg
