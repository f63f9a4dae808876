// Splits generated text into reasoning and content while it streams.
//
// No <think> or </think> ever leaves the splitter, in whatever pieces the text arrives: a possible beginning of a tag is
// held back. The result does not depend on where the stream is cut. One splitter serves one generation, one thread.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace dg {

class ReasoningSplitter {
 public:
  // starts_in_reasoning: the prompt ended with <think>, so the text starts inside it.
  explicit ReasoningSplitter(bool starts_in_reasoning);

  struct Piece {
    bool reasoning;
    std::string text;
  };

  // What has become certain; neighbouring text of one kind is one piece, no piece is empty.
  std::vector<Piece> push(std::string_view text);
  std::vector<Piece> finish();  // the rest, at the end of the generation (or before other markup, after which text may go on)

  bool in_reasoning() const { return reasoning_; }

 private:
  void put(char c, std::vector<Piece>& out);
  void feed(char c, std::vector<Piece>& out);
  void flush_space(std::vector<Piece>& out);
  void emit(std::string_view text, std::vector<Piece>& out) const;

  bool reasoning_;
  bool section_empty_ = true;     // nothing but held white space since the section began
  bool after_reasoning_ = false;  // content that follows a reasoning section
  std::string tag_;               // a proper prefix of a tag
  std::string space_;             // white space whose fate the next character decides
};

}  // namespace dg
