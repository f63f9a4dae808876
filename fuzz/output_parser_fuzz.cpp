// Fuzzes the parser of answers: the first byte chooses the options, the second how the text is cut. However it is cut, the
// events are the same, no work is lost or invented, and complete arguments are JSON.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>
#include <vector>

#include "base/json.h"
#include "text/json_prefix.h"
#include "text/output_parser.h"
#include "text/unicode.h"

namespace {

using Events = std::vector<dg::OutputEvent>;

void require(bool condition) {
  if (!condition) std::abort();
}

void join(Events& all, const Events& events) {
  for (const dg::OutputEvent& event : events) {
    const bool piece = event.kind != dg::OutputEvent::kToolName && event.kind != dg::OutputEvent::kToolEnd;
    require(event.text.empty() == (event.kind == dg::OutputEvent::kToolEnd));
    if (piece && !all.empty() && all.back().kind == event.kind && all.back().call == event.call) all.back().text += event.text;
    else all.push_back(event);
  }
}

Events parse(const dg::OutputParserOptions& options, std::string_view text, size_t step) {
  dg::OutputParser parser(options);
  Events all;
  for (size_t at = 0; at < text.size(); at += step) join(all, parser.push(text.substr(at, step)));
  join(all, parser.finish());
  int ends = 0;
  for (const dg::OutputEvent& event : all) ends += event.kind == dg::OutputEvent::kToolEnd;
  require(ends == parser.calls());
  return all;
}

// Valid JSON that nlohmann's parser refuses all the same: lone surrogates, and numbers above the range of double.
bool is_beyond_the_parser(const std::string& text) {
  size_t digits = 0;
  for (char c : text) digits += c >= '0' && c <= '9';
  return digits > 300 || text.find_first_of("eE") != std::string::npos || text.find("\\ud") != std::string::npos ||
         text.find("\\uD") != std::string::npos;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size < 2) return 0;
  const dg::OutputParserOptions options{.parse_reasoning = (data[0] & 1) == 0,
                                        .starts_in_reasoning = (data[0] & 2) != 0,
                                        .tools = static_cast<dg::ToolFormat>((data[0] >> 2) & 3),
                                        .parallel_tool_calls = (data[0] & 16) == 0};
  const std::string_view text(reinterpret_cast<const char*>(data) + 2, size - 2);
  const Events whole = parse(options, text, text.size() + 1);
  for (size_t step : {size_t{1}, size_t{2} + data[1] % 30}) {
    const Events cut = parse(options, text, step);
    require(cut.size() == whole.size());
    for (size_t i = 0; i < cut.size(); i++)
      require(cut[i].kind == whole[i].kind && cut[i].call == whole[i].call && cut[i].text == whole[i].text);
  }
  const bool valid = dg::unicode::first_invalid(text) == std::string_view::npos;
  size_t bytes = 0;
  int call = -1;
  for (size_t i = 0; i < whole.size(); i++) {
    const dg::OutputEvent& event = whole[i];
    bytes += event.text.size();
    if (valid) require(dg::unicode::first_invalid(event.text) == std::string_view::npos);
    if (event.kind == dg::OutputEvent::kToolName) require(event.call == ++call);
    if (event.kind != dg::OutputEvent::kToolArguments) continue;
    require(i > 0 && whole[i - 1].kind == dg::OutputEvent::kToolName && event.call == call && event.text[0] == '{');
    dg::JsonPrefix json;
    for (char c : event.text) require(json.put(c));
    const bool ends = i + 1 < whole.size() && whole[i + 1].kind == dg::OutputEvent::kToolEnd;
    require(!ends || json.complete());
    if (ends && valid && !is_beyond_the_parser(event.text)) require(dg::Json::accept(event.text));
  }
  require(bytes <= text.size());  // "{}" for a call without arguments replaces two longer marks
  return 0;
}
