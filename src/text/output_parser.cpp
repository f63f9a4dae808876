// Three layers, each fed by the one before: marks of tool calls are found first (outside of JSON strings, where they are
// data), then text between calls goes through the ReasoningSplitter, and what that calls content waits here as long as it is
// white space that may belong to the markup.
//
//   kText    text; a begin mark starts a call, every other mark is dropped, and so is any mark inside reasoning
//   kCall    a ToolReader reads; until it knows the name the text is kept, to be given back as content if it is no call
//   kBroken  a call whose beginning was handed out became invalid: its rest is dropped up to the next mark
//   kDone    without parallel calls: everything behind the first
#include "text/output_parser.h"

#include <utility>

#include "text/json_prefix.h"
#include "text/reasoning.h"
#include "text/tool_reader.h"

namespace dg {

struct OutputParser::Impl {
  explicit Impl(const OutputParserOptions& given)
      : options(given), marks(tool_marks(given.tools)), splitter(given.parse_reasoning && given.starts_in_reasoning) {}

  enum class State { kText, kCall, kBroken, kDone };

  void feed(char c);
  void finish();
  std::vector<OutputEvent> take();

  const OutputParserOptions options;
  const std::span<const ToolMarkText> marks;
  int complete = 0;  // calls

 private:
  void put(char c);
  void put_call(char c);
  void put_mark(ToolMark mark);
  void text_mark(ToolMark mark);
  void end_call(bool at_mark);
  void give_back();
  void publish();
  void flush_plain();
  void split(const std::vector<ReasoningSplitter::Piece>& pieces);
  void content(std::string_view text);
  void emit(OutputEvent::Kind kind, std::string_view text);

  std::vector<OutputEvent> out;
  State state = State::kText;
  std::string held;   // the beginning of a mark
  std::string plain;  // text for the splitter
  ReasoningSplitter splitter;

  // White space at the end of the content: dropped between marks and at the end behind one, else handed out with what follows.
  std::string space;
  bool space_at_mark = false;
  bool any_content = false;

  std::unique_ptr<ToolReader> reader;
  int call = -1;           // number of the last call
  bool announced = false;  // the name of the call being read was handed out
  std::string call_text;   // what was read of it, until then
  bool giving_back = false;
};

void OutputParser::Impl::emit(OutputEvent::Kind kind, std::string_view text) {
  const bool joins = kind != OutputEvent::kToolName && kind != OutputEvent::kToolEnd;
  const int number = kind == OutputEvent::kReasoning || kind == OutputEvent::kContent ? 0 : call;
  if (joins && !out.empty() && out.back().kind == kind && out.back().call == number) out.back().text += text;
  else out.push_back({kind, std::string(text), number});
}

void OutputParser::Impl::content(std::string_view text) {
  if (options.tools == ToolFormat::kNone) {
    emit(OutputEvent::kContent, text);
    return;
  }
  for (char c : text) {
    if (is_json_space(c)) {
      space += c;
      continue;
    }
    // Behind a call that began the answer white space separates nothing.
    if (!space.empty() && (call < 0 || any_content)) emit(OutputEvent::kContent, space);
    space.clear();
    space_at_mark = false;
    any_content = true;
    emit(OutputEvent::kContent, std::string_view(&c, 1));
  }
}

void OutputParser::Impl::split(const std::vector<ReasoningSplitter::Piece>& pieces) {
  for (const ReasoningSplitter::Piece& piece : pieces) {
    if (piece.reasoning) emit(OutputEvent::kReasoning, piece.text);
    else content(piece.text);
  }
}

void OutputParser::Impl::flush_plain() {
  if (plain.empty()) return;
  if (options.parse_reasoning) split(splitter.push(plain));
  else content(plain);
  plain.clear();
}

void OutputParser::Impl::publish() {
  if (reader->name && !announced) {
    announced = true;
    call++;
    call_text.clear();
    space.clear();
    emit(OutputEvent::kToolName, *reader->name);
  }
  if (reader->arguments.empty()) return;
  emit(OutputEvent::kToolArguments, reader->arguments);
  reader->arguments.clear();
}

// The text since the begin mark was no call. Marks in it (inside strings of what looked like JSON) are dropped, not read
// again: that keeps the work linear in the length of the answer.
void OutputParser::Impl::give_back() {
  state = State::kText;
  reader.reset();
  const std::string text = std::exchange(call_text, {});
  const std::string rest = std::exchange(held, {});
  giving_back = true;
  for (char c : text) feed(c);
  for (char c : std::exchange(held, {})) put(c);
  giving_back = false;
  held = rest;
}

void OutputParser::Impl::end_call(bool at_mark) {
  if (state == State::kCall) {
    const bool whole = reader->end(at_mark);
    publish();
    if (!announced) {
      give_back();
      return;
    }
    if (whole) {
      complete++;
      emit(OutputEvent::kToolEnd, "");
    }
  }
  reader.reset();
  state = options.parallel_tool_calls ? State::kText : State::kDone;
}

// A mark between calls.
void OutputParser::Impl::text_mark(ToolMark mark) {
  flush_plain();
  if (options.parse_reasoning) {
    if (splitter.in_reasoning()) return;  // a call that is only thought about
    split(splitter.finish());
  }
  space_at_mark = true;
  if (mark != ToolMark::kCallBegin) return;
  state = State::kCall;
  announced = false;
  reader = make_tool_reader(options.tools);
}

void OutputParser::Impl::put_mark(ToolMark mark) {
  if (giving_back || state == State::kDone) return;
  if (mark == ToolMark::kSeparator && state != State::kText) {
    if (state == State::kBroken || reader->put_separator()) return;
    if (announced) state = State::kBroken;
    else give_back();
    return;
  }
  if (state != State::kText) end_call(true);
  if (state == State::kText) text_mark(mark);
}

void OutputParser::Impl::put_call(char c) {
  if (!announced) call_text += c;
  if (reader->put(c)) publish();
  else if (announced) state = State::kBroken;
  else give_back();
}

void OutputParser::Impl::put(char c) {
  if (state == State::kText) plain += c;
  else if (state == State::kCall) put_call(c);
}

void OutputParser::Impl::feed(char c) {
  // A mark begins with '<' and has no other one.
  if (held.empty() && (c != '<' || marks.empty() || (state == State::kCall && reader->in_string()))) {
    put(c);
    return;
  }
  held += c;
  while (!held.empty()) {
    bool possible = false;
    for (const ToolMarkText& mark : marks) {
      if (held == mark.text) {
        held.clear();
        put_mark(mark.mark);
        return;
      }
      possible = possible || mark.text.starts_with(held);
    }
    if (possible) return;
    const char first = held[0];
    held.erase(0, 1);
    put(first);
  }
}

void OutputParser::Impl::finish() {
  const std::string rest = std::exchange(held, {});
  if (state == State::kCall) {
    // The beginning of a mark is not part of the arguments.
    if (!announced) call_text += rest;
    end_call(false);
  } else {
    for (char c : rest) put(c);
  }
  flush_plain();
  if (options.parse_reasoning) split(splitter.finish());
  if (!space.empty() && !space_at_mark) emit(OutputEvent::kContent, space);
  space.clear();
}

std::vector<OutputEvent> OutputParser::Impl::take() {
  flush_plain();
  return std::exchange(out, {});
}

OutputParser::OutputParser(const OutputParserOptions& options) : impl_(std::make_unique<Impl>(options)) {}
OutputParser::~OutputParser() = default;

std::vector<OutputEvent> OutputParser::push(std::string_view text) {
  for (char c : text) impl_->feed(c);
  return impl_->take();
}

std::vector<OutputEvent> OutputParser::finish() {
  impl_->finish();
  return impl_->take();
}

int OutputParser::calls() const { return impl_->complete; }

}  // namespace dg
