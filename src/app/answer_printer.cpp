#include "app/answer_printer.h"

#include <fmt/core.h>

#include <algorithm>

#include "app/terminal.h"

namespace dg {

AnswerPrinter::AnswerPrinter(AnswerStyle style, bool split, bool starts_in_reasoning) : style_(style) {
  if (split) splitter_.emplace(starts_in_reasoning);
}

void AnswerPrinter::push(std::string_view text) {
  if (text.empty()) return;
  if (!splitter_) return show(false, text);
  for (const ReasoningSplitter::Piece& piece : splitter_->push(text)) show(piece.reasoning, piece.text);
}

void AnswerPrinter::finish() {
  if (splitter_)
    for (const ReasoningSplitter::Piece& piece : splitter_->finish()) show(piece.reasoning, piece.text);
  if (in_reasoning_) close_reasoning();
  if (style_.print && last_ != '\n') put("\n");
}

void AnswerPrinter::show(bool reasoning, std::string_view text) {
  if (text.empty()) return;
  (reasoning ? reasoning_ : content_) += text;
  if (!style_.print) return;
  if (!reasoning) {
    if (in_reasoning_) close_reasoning();
    if (!content_begun_ && splitter_) {  // models put blank lines between reasoning and answer
      text.remove_prefix(std::min(text.find_first_not_of('\n'), text.size()));
      if (text.empty()) return;
    }
    content_begun_ = true;
    return put(style_.terminal ? without_control_characters(text) : std::string(text));
  }
  if (!in_reasoning_) {
    text.remove_prefix(std::min(text.find_first_not_of('\n'), text.size()));
    if (text.empty()) return;
    open_reasoning();
  }
  pieces_++;
  if (style_.thinking == ThinkingView::kFold && style_.terminal) {
    put(fmt::format("\r{}[thinking: {} tokens]{}", style_.colours ? "\x1b[2m" : "", pieces_, style_.colours ? "\x1b[0m" : ""));
  } else if (style_.thinking == ThinkingView::kShow) {
    size_t end = text.find_last_not_of('\n');
    size_t kept = end == std::string_view::npos ? 0 : end + 1;
    if (kept > 0) {
      put(std::string(newlines_held_, '\n') +
          (style_.terminal ? without_control_characters(text.substr(0, kept)) : std::string(text.substr(0, kept))));
      newlines_held_ = 0;
    }
    newlines_held_ += text.size() - kept;
  }
}

void AnswerPrinter::open_reasoning() {
  in_reasoning_ = true;
  newlines_held_ = 0;
  pieces_ = 0;
  if (style_.thinking != ThinkingView::kShow) return;
  if (style_.colours) put("\x1b[2m");
  else put("<think>\n");
}

void AnswerPrinter::close_reasoning() {
  in_reasoning_ = false;
  if (style_.thinking == ThinkingView::kFold && style_.terminal) {
    put(fmt::format("\r{}[thought for {} tokens]{} \n", style_.colours ? "\x1b[2m" : "", pieces_, style_.colours ? "\x1b[0m" : ""));
  } else if (style_.thinking == ThinkingView::kShow) {
    put(style_.colours ? "\x1b[0m\n\n" : "\n</think>\n\n");
  }
}

void AnswerPrinter::put(std::string_view text) {
  if (text.empty()) return;
  last_ = text.back();
  print_output(text);
}

}  // namespace dg
