// Calls of V3 and R1, `function<sep>name\n```json\n{...}\n```, and of V3.1, `name<sep>{...}`. Both readers take both shapes,
// since models trained on one have seen the other, with or without the fence.
#include "text/json_prefix.h"
#include "text/tool_reader.h"

namespace dg {
namespace {

constexpr size_t kFenceTicks = 3;

std::string_view trim_spaces(std::string_view text) {
  while (!text.empty() && is_json_space(text.front())) text.remove_prefix(1);
  while (!text.empty() && is_json_space(text.back())) text.remove_suffix(1);
  return text;
}

bool is_fence_label(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); }

class DeepseekReader final : public ToolReader {
 public:
  explicit DeepseekReader(ToolFormat format) : v3_(format == ToolFormat::kDeepseekV3) {}

  bool put(char c) override {
    switch (state_) {
      case State::kHead:
        if (head_.size() >= kMaxToolNameBytes) return false;
        head_ += c;
        return true;
      case State::kName: return put_name(c);
      case State::kBeforeArguments: return put_before_arguments(c);
      case State::kFence: return put_fence(c);
      case State::kArguments:
        if (!json_.put(c)) return false;
        arguments += c;
        if (json_.complete()) {
          state_ = State::kTail;
          ticks_ = 0;
        }
        return true;
      case State::kTail:
        if (c == '`') return ++ticks_ <= kFenceTicks;
        return is_json_space(c);
    }
    return false;
  }

  bool put_separator() override {
    if (state_ != State::kHead) return false;
    head_ = trim_spaces(head_);
    state_ = State::kName;
    return true;
  }

  bool end(bool at_mark) override {
    if (state_ == State::kTail) return true;
    // A function without parameters: some models leave its empty object out. Only a mark shows that nothing was cut off.
    if (!at_mark || (state_ != State::kName && state_ != State::kBeforeArguments) || !take_name()) return false;
    arguments = "{}";
    return true;
  }

  bool in_string() const override { return state_ == State::kArguments && json_.in_string(); }

 private:
  enum class State { kHead, kName, kBeforeArguments, kFence, kArguments, kTail };

  // What stands before the separator is the call's type, always "function", or the name itself.
  bool head_is_type() const { return v3_ || head_ == "function"; }

  bool put_name(char c) {
    if (c == '\n' && !name_.empty()) state_ = State::kBeforeArguments;
    else if (c == '{' || c == '`' || (name_.empty() && is_json_space(c))) return put_before_arguments(c);
    else if (!head_is_type() || name_.size() >= kMaxToolNameBytes) return false;
    else name_ += c;
    return true;
  }

  bool put_before_arguments(char c) {
    if (c == '{') return begin_arguments();
    if (c == '`') {
      state_ = State::kFence;
      ticks_ = 1;
      return true;
    }
    return is_json_space(c);
  }

  bool put_fence(char c) {
    if (c == '`' && !fence_closed_ && ticks_ < kFenceTicks) {
      ticks_++;
      return true;
    }
    if (ticks_ < kFenceTicks) return false;
    if (c == '{') return begin_arguments();
    if (is_json_space(c)) {
      fence_closed_ = true;
      return true;
    }
    return is_fence_label(c) && !fence_closed_;
  }

  bool begin_arguments() {
    if (!take_name()) return false;
    json_.put('{');
    arguments += '{';
    state_ = State::kArguments;
    return true;
  }

  bool take_name() {
    const std::string_view second = trim_spaces(name_);
    if (second.empty() && v3_ && head_ == "function") return false;  // the type alone
    const std::string_view chosen = second.empty() ? std::string_view(head_) : second;
    if (!is_tool_name(chosen)) return false;
    name = std::string(chosen);
    return true;
  }

  const bool v3_;
  State state_ = State::kHead;
  std::string head_, name_;
  size_t ticks_ = 0;           // of the fence
  bool fence_closed_ = false;  // white space followed its label
  JsonPrefix json_;
};

}  // namespace

std::unique_ptr<ToolReader> make_tool_reader(ToolFormat format) {
  if (format == ToolFormat::kHermes) return make_hermes_reader();
  return std::make_unique<DeepseekReader>(format);
}

bool is_tool_name(std::string_view name) {
  if (name.empty() || name.size() > kMaxToolNameBytes) return false;
  for (char c : name)
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) return false;
  return true;
}

}  // namespace dg
