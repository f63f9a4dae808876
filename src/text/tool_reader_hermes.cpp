// Calls of Hermes and Qwen: one JSON object with "name" and "arguments" (some models write "parameters"), in any order and
// among other members. The arguments are cut out of it while it streams; where they come before the name they wait for it.
#include "base/json.h"
#include "text/json_prefix.h"
#include "text/tool_reader.h"

namespace dg {
namespace {

// The text of a JSON string with its quotes; nullopt when it cannot be decoded (a lone surrogate).
std::optional<std::string> decode_json_string(const std::string& quoted) {
  Json value = Json::parse(quoted, nullptr, false);
  if (!value.is_string()) return std::nullopt;
  return value.get<std::string>();
}

// The JSON object in `text` without white space around it; "" when it is none.
std::string whole_object(std::string_view text) {
  std::string object;
  JsonPrefix json;
  for (char c : text) {
    if (object.empty() && is_json_space(c)) continue;
    if ((object.empty() && c != '{') || !json.put(c)) return "";
    object += c;
  }
  while (!object.empty() && is_json_space(object.back())) object.pop_back();
  return json.complete() ? object : "";
}

class HermesReader final : public ToolReader {
 public:
  bool put(char c) override {
    const bool at_member = object_.depth() == 1;
    const bool key_begins = at_member && object_.expects_key() && c == '"';
    const bool value_begins = at_member && object_.expects_value() && !is_json_space(c);
    const bool begins = object_.depth() == 0 && !object_.complete() && !is_json_space(c);
    if ((begins && c != '{') || !object_.put(c)) return false;
    if (key_begins) {
      part_ = Part::kKey;
      token_.clear();
    } else if (value_begins && !begin_member(c)) {
      return false;
    }
    return put_part(c);
  }

  bool end(bool /*at_mark*/) override {
    if (!object_.complete() || name_.empty()) return false;
    if (!has_arguments_) {  // a function without parameters
      has_arguments_ = true;
      name = name_;
      arguments = "{}";
    }
    return true;
  }

  bool in_string() const override { return object_.in_string(); }

 private:
  enum class Part { kOther, kKey, kName, kArguments, kArgumentsText };

  // The first character of the value of member `key_`. The first of several members with one meaning counts.
  bool begin_member(char c) {
    part_ = Part::kOther;
    token_.clear();
    if (key_ == "\"name\"" && name_.empty()) {
      part_ = Part::kName;
      return c == '"';
    }
    if ((key_ == "\"arguments\"" || key_ == "\"parameters\"") && !has_arguments_) {
      if (c == 'n') return true;  // null: none
      if (c != '{' && c != '"') return false;
      part_ = c == '{' ? Part::kArguments : Part::kArgumentsText;
      has_arguments_ = true;
    }
    return true;
  }

  bool put_part(char c) {
    switch (part_) {
      case Part::kOther: return true;
      case Part::kArguments:
        hand_out(std::string_view(&c, 1));
        if (object_.depth() == 1) part_ = Part::kOther;
        return true;
      default: break;
    }
    token_ += c;
    if (object_.in_string()) return true;
    const Part part = part_;
    part_ = Part::kOther;
    if (part == Part::kKey) {
      key_ = token_;
      return true;
    }
    std::optional<std::string> text = decode_json_string(token_);
    if (!text) return false;
    if (part == Part::kName) {
      if (!is_tool_name(*text)) return false;
      name_ = *text;
      if (has_arguments_) hand_out("");
      return true;
    }
    // Arguments as a string that contains JSON, as in the API's own messages.
    const std::string object = whole_object(*text);
    if (object.empty()) return false;
    hand_out(object);
    return true;
  }

  void hand_out(std::string_view piece) {
    waiting_ += piece;
    if (name_.empty()) return;
    if (!name) name = name_;
    arguments += waiting_;
    waiting_.clear();
  }

  JsonPrefix object_;
  Part part_ = Part::kOther;
  std::string token_;  // the string being read, with its quotes
  std::string key_;    // of the member being read, with its quotes
  std::string name_;
  bool has_arguments_ = false;
  std::string waiting_;  // arguments that came before the name
};

}  // namespace

std::unique_ptr<ToolReader> make_hermes_reader() { return std::make_unique<HermesReader>(); }

}  // namespace dg
