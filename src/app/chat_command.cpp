// `dougong chat`: the terminal side of a conversation. Lines become messages; lines that begin with / are commands.
#include <fmt/core.h>

#include <utility>

#include "app/chat_session.h"
#include "app/commands.h"
#include "app/line_input.h"
#include "app/terminal.h"
#include "base/json.h"

namespace dg {
namespace {

constexpr const char* kHelp =
    "  /help                this list\n"
    "  /reset               forget the conversation (the system prompt stays)\n"
    "  /system TEXT         set the system prompt; without TEXT show it\n"
    "  /think on|off|fold   reason and show it, answer at once, or reason folded into one line\n"
    "  /stats               tokens and speed of the conversation\n"
    "  /save FILE           write the conversation as JSON\n"
    "  /quit                leave (also Ctrl-D)\n"
    "A line that ends in \\ goes on in the next one; \"\"\" begins and ends a block. Ctrl-C stops an answer.\n";

std::string trimmed(const std::string& text) {
  size_t begin = text.find_first_not_of(" \t\r"), end = text.find_last_not_of(" \t\r");
  return begin == std::string::npos ? "" : text.substr(begin, end - begin + 1);
}

class Chat {
 public:
  Chat(const Options& options, OpenedModel& model)
      : json_(options.flag("json")),
        quiet_(options.flag("quiet")),
        terminal_(input_is_terminal() && output_is_terminal() && !json_),
        session_(options, model),
        reader_(terminal_ ? make_terminal_line_reader("chat_history") : make_plain_line_reader()),
        interrupt_(3) {
    style_ = {.print = !json_,
              .terminal = output_is_terminal(),
              .colours = output_has_colours(),
              .thinking = options.flag("hide-thinking") ? ThinkingView::kHide : ThinkingView::kShow};
  }

  Result<int> run(const std::string& model_path) {
    if (terminal_) print_output(fmt::format("{}; /help lists the commands, Ctrl-D leaves\n", model_path));
    for (;;) {
      std::string message;
      switch (read_message(&message)) {
        case LineReader::Status::kEnd: return 0;
        case LineReader::Status::kInterrupted:
          interrupt_.clear();
          if (!terminal_ || std::exchange(interrupted_before_, true)) return exit_code(ErrorKind::kCancelled);
          print_output("(Ctrl-C once more or Ctrl-D leaves)\n");
          continue;
        case LineReader::Status::kLine: break;
      }
      interrupted_before_ = false;
      if (trimmed(message).empty()) continue;
      if (message[0] == '/' && !block_) {
        if (!obey(trimmed(message))) return 0;
        continue;
      }
      DG_ASSIGN(bool go_on, answer(message));
      if (!go_on) return exit_code(ErrorKind::kCancelled);
    }
  }

 private:
  LineReader::Status read_message(std::string* message) {
    block_ = false;
    std::string line;
    LineReader::Status status = reader_->read("> ", &line);
    if (status != LineReader::Status::kLine) return status;
    reader_->remember(line);
    if (line.starts_with("\"\"\"")) {
      block_ = true;
      std::string rest = line.substr(3);
      for (;;) {
        if (size_t end = rest.find("\"\"\""); end != std::string::npos) {
          *message += rest.substr(0, end);
          return status;
        }
        *message += rest + "\n";
        status = reader_->read(". ", &rest);
        if (status == LineReader::Status::kEnd) return message->empty() ? status : LineReader::Status::kLine;
        if (status != LineReader::Status::kLine) return status;
        reader_->remember(rest);
      }
    }
    while (line.ends_with('\\')) {
      line.pop_back();
      *message += line + "\n";
      status = reader_->read(". ", &line);
      if (status == LineReader::Status::kEnd) return LineReader::Status::kLine;
      if (status != LineReader::Status::kLine) return status;
      reader_->remember(line);
    }
    *message += line;
    return status;
  }

  // False: leave.
  bool obey(const std::string& line) {
    size_t blank = line.find(' ');
    std::string command = line.substr(0, blank), argument = blank == std::string::npos ? "" : trimmed(line.substr(blank));
    if (command == "/quit" || command == "/exit" || command == "/bye") return false;
    if (command == "/help") say(kHelp);
    else if (command == "/reset") session_.reset(), say("the conversation is forgotten\n");
    else if (command == "/system" && argument.empty()) say(session_.system().empty() ? "no system prompt\n" : session_.system() + "\n");
    else if (command == "/system") session_.set_system(argument), say("system prompt set\n");
    else if (command == "/think") think(argument);
    else if (command == "/stats") say(session_.statistics() + "\n");
    else if (command == "/save") save(argument);
    else say(fmt::format("unknown command {}; /help lists them\n", in_quotes(command)));
    return true;
  }

  void think(const std::string& how) {
    if (how == "on") style_.thinking = ThinkingView::kShow, session_.set_thinking(true);
    else if (how == "fold") style_.thinking = ThinkingView::kFold, session_.set_thinking(true);
    else if (how == "off") session_.set_thinking(false);
    else return say(fmt::format("/think: expected on, off or fold, found {}\n", in_quotes(how)));
    say(how == "off" ? "answers without thinking\n" : how == "on" ? "thinking is shown\n" : "thinking is folded\n");
  }

  void save(const std::string& path) {
    if (path.empty()) return say("/save: expected a file name\n");
    auto saved = session_.save(path);
    say(saved.ok() ? fmt::format("saved {} messages in {}\n", session_.turns().size(), path) : saved.error().message + "\n");
  }

  // False: interrupted without a terminal, which ends the program.
  Result<bool> answer(const std::string& message) {
    interrupt_.clear();
    auto result = session_.answer(message, style_, interrupt_.requested());
    if (!result.ok()) {
      // A message that does not fit is no reason to leave a conversation, but it fails a script.
      if (!terminal_ || result.error().kind != ErrorKind::kInput) return result.error();
      say(result.error().message + " (/reset forgets the conversation)\n");
      return true;
    }
    bool cancelled = result->reason == FinishReason::kCancelled;
    if (json_) {
      const ChatTurn empty{};
      const ChatTurn& turn = session_.turns().empty() || session_.turns().back().role != "assistant" ? empty : session_.turns().back();
      print_output(json_line({{"reasoning", turn.reasoning},
                              {"text", turn.content},
                              {"prompt_tokens", result->prompt_tokens},
                              {"cached_tokens", result->cached_tokens},
                              {"output_tokens", result->ids.size()},
                              {"finish_reason", finish_reason_name(result->reason)},
                              {"prefill_s", result->prefill_s},
                              {"decode_s", result->decode_s}}));
    } else if (!quiet_) {
      std::string line = statistics_line(*result);
      if (terminal_) print_output(style_.colours ? "\x1b[2m" + line + "\x1b[0m\n\n" : line + "\n\n");
      else print_error(line + "\n");
    }
    interrupt_.clear();
    return terminal_ || !cancelled;
  }

  void say(const std::string& text) { json_ ? print_error(text) : print_output(text); }

  const bool json_, quiet_, terminal_;
  ChatSession session_;
  std::unique_ptr<LineReader> reader_;
  InterruptScope interrupt_;
  AnswerStyle style_;
  bool block_ = false;  // the message came from a """ block: / is no command in it
  bool interrupted_before_ = false;
};

}  // namespace

Result<int> run_chat(const Options& options) {
  DG_ASSIGN(std::string name, model_argument(options));
  DG_ASSIGN(std::unique_ptr<OpenedModel> model, open_model(name, open_options(options)));
  if (!model->prompt) return no_chat_format(*model);
  Chat chat(options, *model);
  return chat.run(model->path);
}

}  // namespace dg
