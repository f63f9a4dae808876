#include "text/chat.h"

#include <fmt/core.h>

#include <algorithm>

#include "base/json.h"
#include "text/prompt_native.h"

namespace dg {
namespace {

std::string name_list() {
  std::string list;
  for (auto& name : prompt_encoder_names()) list += (list.empty() ? "" : ", ") + name;
  return list;
}

Error no_template(const ChatModelInfo& info) {
  return input_error(
      fmt::format("chat template: the model (model_type \"{}\") has none in tokenizer_config.json or chat_template.jinja; "
                  "pass --chat-format with one of {}",
                  info.model_type.substr(0, 60), name_list()));
}

}  // namespace

Result<std::unique_ptr<PromptEncoder>> make_prompt_encoder(const ChatModelInfo& info, std::string_view choice) {
  auto& formats = native_formats();
  auto named = std::find_if(formats.begin(), formats.end(), [choice](auto& format) { return choice == format.name; });
  if (named != formats.end()) return std::unique_ptr<PromptEncoder>(named->make(info));
  if (choice != "auto" && choice != "jinja")
    return input_error(fmt::format("--chat-format: expected auto or one of {}, found \"{}\"", name_list(), choice.substr(0, 60)));
  if (info.chat_template.empty()) return no_template(info);
  DG_ASSIGN(auto reference, make_jinja_encoder(info));
  if (choice == "auto") {
    for (auto& format : formats) {
      auto native = format.make(info);
      if (renders_equal(*native, *reference)) return std::unique_ptr<PromptEncoder>(std::move(native));
    }
  }
  return reference;
}

std::vector<std::string> prompt_encoder_names() {
  std::vector<std::string> names = {"jinja"};
  for (auto& format : native_formats())
    if (names.back() != format.name) names.emplace_back(format.name);
  return names;
}

bool prompt_ends_in_reasoning(std::string_view prompt) {
  while (!prompt.empty() && (prompt.back() == '\n' || prompt.back() == ' ')) prompt.remove_suffix(1);
  return prompt.ends_with("<think>");
}

}  // namespace dg
