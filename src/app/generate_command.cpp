// `dougong generate`: one prompt, one answer.
#include <fmt/core.h>

#include "app/answer_printer.h"
#include "app/commands.h"
#include "app/line_input.h"
#include "app/model_options.h"
#include "app/terminal.h"
#include "base/file.h"
#include "base/json.h"

namespace dg {
namespace {

constexpr size_t kMaxPromptBytes = size_t{64} << 20;

Result<std::string> find_prompt(const Options& options, const std::vector<std::string>& rest) {
  int sources = options.given("prompt") + options.given("prompt-file") + !rest.empty();
  if (rest.size() > 1) return input_error(fmt::format("unexpected argument {}: quote a prompt that has blanks", in_quotes(rest[1])));
  if (sources > 1) return input_error("expected one prompt, found several: give an argument, --prompt or --prompt-file");
  if (options.given("prompt")) return options.text("prompt");
  if (!rest.empty()) return rest[0];
  if (sources == 0 && input_is_terminal())
    return input_error("expected a prompt: give it as an argument, with --prompt, --prompt-file, or on standard input");
  bool from_file = options.given("prompt-file") && options.text("prompt-file") != "-";
  DG_ASSIGN(std::string text, from_file ? read_file(options.text("prompt-file"), kMaxPromptBytes) : read_standard_input(kMaxPromptBytes));
  if (text.ends_with('\n')) text.pop_back();  // the one that ends the last line belongs to the file, not to the prompt
  return text;
}

}  // namespace

Result<int> run_generate(const Options& options) {
  std::vector<std::string> rest;
  DG_ASSIGN(std::string name, model_argument(options, &rest));
  if (options.flag("raw") && options.flag("chat")) return input_error("--raw and --chat contradict each other: choose one");
  if (options.flag("raw") && (options.given("system") || options.given("thinking")))
    return input_error("--raw continues plain text: it cannot be combined with --system or --thinking");
  DG_ASSIGN(std::string prompt, find_prompt(options, rest));

  DG_ASSIGN(std::unique_ptr<OpenedModel> model, open_model(name, open_options(options)));
  bool chat = options.flag("chat") || (!options.flag("raw") && (model->prompt || options.given("system") || options.given("thinking")));
  bool in_reasoning = false;
  GenerateRequest request;
  if (chat) {
    Json messages = Json::array();
    if (options.given("system")) messages.push_back({{"role", "system"}, {"content", options.text("system")}});
    messages.push_back({{"role", "user"}, {"content", prompt}});
    DG_ASSIGN(EncodedChat encoded, encode_chat(*model, messages, nullptr, chat_options(options)));
    request.prompt = std::move(encoded.ids);
    in_reasoning = encoded.in_reasoning;
  } else {
    request.prompt = model->tokenizer->encode(prompt);
  }
  request.sampling = sampling_params(options, model->generation, true);
  request.max_tokens = options.integer("max-tokens");
  if (!options.flag("ignore-eos")) request.eos = model->eos;
  request.stop = options.list("stop");

  bool json = options.flag("json");
  AnswerPrinter printer({.print = !json,
                         .terminal = output_is_terminal(),
                         .colours = output_has_colours(),
                         .thinking = options.flag("hide-thinking") ? ThinkingView::kHide : ThinkingView::kShow},
                        chat, in_reasoning);
  Generator generator(*model->executor, *model->tokenizer, generate_limits(options, *model));
  InterruptScope interrupt(2);
  SamplingParams sampling = request.sampling;
  DG_ASSIGN(GenerateResult result,
            generator.run(
                std::move(request), [&](int32_t, std::string_view text) { printer.push(text); }, &interrupt.requested()));
  printer.finish();

  if (json) {
    Json out = {{"model", model->path},
                {"prompt_tokens", result.prompt_tokens},
                {"output_tokens", result.ids.size()},
                {"finish_reason", finish_reason_name(result.reason)},
                {"stop", result.stop.empty() ? Json(nullptr) : Json(result.stop)},
                {"reasoning", printer.reasoning()},
                {"text", printer.content()},
                {"ids", result.ids},
                {"seed", sampling.seed},
                {"temperature", sampling.temperature},
                {"prefill_s", result.prefill_s},
                {"decode_s", result.decode_s},
                {"prefill_tokens_per_s", prefill_tokens_per_s(result)},
                {"decode_tokens_per_s", decode_tokens_per_s(result)}};
    print_output(json_line(out));
  } else if (!options.flag("quiet")) {
    print_error(statistics_line(result) + "\n");
  }
  return result.reason == FinishReason::kCancelled ? exit_code(ErrorKind::kCancelled) : 0;
}

}  // namespace dg
