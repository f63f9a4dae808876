#include "app/bench_serve_stream.h"

#include <fmt/core.h>

#include "base/json.h"
#include "config/options.h"

namespace dg {
namespace {

constexpr size_t kMaxLineBytes = size_t{16} << 20;
constexpr size_t kShownBytes = 120;

bool is_filled_text(const SortedJson& object, const char* name) {
  auto it = object.find(name);
  return it != object.end() && it->is_string() && !it->get_ref<const std::string&>().empty();
}

int64_t token_count(const SortedJson& usage, const char* name) {
  auto it = usage.find(name);
  return it != usage.end() && it->is_number_integer() ? it->get<int64_t>() : -1;
}

}  // namespace

std::string bench_reply_reason(const std::string& body) {
  const SortedJson json = SortedJson::parse(body, nullptr, false);
  std::string reason = body;
  if (json.is_object()) {
    auto error = json.find("error");
    const SortedJson& holder = error != json.end() && error->is_object() ? *error : json;
    if (error != json.end() && error->is_string()) reason = error->get<std::string>();
    else if (is_filled_text(holder, "message")) reason = holder["message"].get<std::string>();
  }
  std::string line;
  for (char c : reason.substr(0, 300)) line += static_cast<unsigned char>(c) < 0x20 || c == 0x7f ? ' ' : c;
  while (!line.empty() && line.back() == ' ') line.pop_back();
  return line.empty() ? "no reason given" : line;
}

bool BenchStream::fail(std::string kind, std::string message) {
  error_kind_ = std::move(kind);
  error_ = std::move(message);
  return false;
}

bool BenchStream::push(std::string_view bytes, double now_s) {
  now_s_ = now_s;
  while (!bytes.empty() && !done_) {
    const size_t end = bytes.find('\n');
    partial_ += bytes.substr(0, end);
    if (partial_.size() > kMaxLineBytes)
      return fail("malformed", fmt::format("a line of the stream has more than {} bytes", kMaxLineBytes));
    if (end == std::string_view::npos) break;
    bytes.remove_prefix(end + 1);
    if (!partial_.empty() && partial_.back() == '\r') partial_.pop_back();
    const bool good = line(partial_);
    partial_.clear();
    if (!good) return false;
  }
  return true;
}

bool BenchStream::line(std::string_view text) {
  if (text.empty()) return event();
  if (text.starts_with(':')) return true;  // a comment keeps the connection alive
  if (!text.starts_with("data:")) {
    if (text.starts_with("event:") || text.starts_with("id:") || text.starts_with("retry:")) return true;
    return fail("malformed", fmt::format("expected a line \"data: ...\" in the stream, found {}", in_quotes(text.substr(0, kShownBytes))));
  }
  text.remove_prefix(5);
  if (text.starts_with(' ')) text.remove_prefix(1);
  if (has_data_) data_ += '\n';
  data_ += text;
  has_data_ = true;
  return true;
}

// Whether an event of this choice carries something generated: a first event with only a role does not.
bool BenchStream::has_text(const SortedJson& choice) const {
  if (!chat_) {
    auto finish = choice.find("finish_reason");
    return is_filled_text(choice, "text") || (choice.contains("text") && (finish == choice.end() || finish->is_null()));
  }
  auto delta = choice.find("delta");
  if (delta == choice.end() || !delta->is_object()) return false;
  auto calls = delta->find("tool_calls");
  return is_filled_text(*delta, "content") || is_filled_text(*delta, "reasoning_content") || is_filled_text(*delta, "reasoning") ||
         (calls != delta->end() && calls->is_array() && !calls->empty());
}

bool BenchStream::event() {
  if (!has_data_) return true;
  std::string data;
  data.swap(data_);
  has_data_ = false;
  if (data == "[DONE]") {
    done_ = true;
    return true;
  }
  const SortedJson json = SortedJson::parse(data, nullptr, false);
  if (!json.is_object())
    return fail("malformed",
                fmt::format("expected a JSON object in an event, found {}", in_quotes(std::string_view(data).substr(0, kShownBytes))));
  if (auto error = json.find("error"); error != json.end() && !error->is_null()) return fail("error_event", bench_reply_reason(data));
  if (auto usage = json.find("usage"); usage != json.end() && usage->is_object()) {
    prompt_tokens_ = token_count(*usage, "prompt_tokens");
    completion_tokens_ = token_count(*usage, "completion_tokens");
  }
  auto choices = json.find("choices");
  if (choices == json.end() || !choices->is_array() || choices->empty() || !choices->front().is_object()) return true;
  const SortedJson& choice = choices->front();
  if (auto finish = choice.find("finish_reason"); finish != choice.end() && !finish->is_null()) finished_ = true;
  if (!has_text(choice)) return true;
  if (text_events_++ == 0) first_s_ = now_s_;
  else gaps_s_.push_back(now_s_ - last_s_);
  last_s_ = now_s_;
  return true;
}

bool BenchStream::finish() {
  if (!partial_.empty()) {
    std::string rest;
    rest.swap(partial_);
    if (!line(rest)) return false;
  }
  if (!event()) return false;
  if (!done_ && !finished_)
    return fail("closed", fmt::format("the stream ended after {} events without data: [DONE] and without a finish_reason", text_events_));
  return true;
}

void BenchStream::fill(BenchOutcome& outcome) const {
  if (prompt_tokens_ >= 0) outcome.prompt_tokens = prompt_tokens_;
  outcome.output_tokens = completion_tokens_ >= 0 ? completion_tokens_ : text_events_;
  outcome.ttft_s = first_s_;
  outcome.latency_s = last_s_;
  outcome.itl_s = gaps_s_;
}

}  // namespace dg
