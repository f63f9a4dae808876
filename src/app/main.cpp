// The program `dougong`: finds the command, checks its options, runs it, and turns an error into one line and an exit code.
#include <fmt/core.h>

#include <cstdio>
#include <cstdlib>
#include <new>
#include <string>
#include <vector>

#include "app/commands.h"
#include "app/terminal.h"
#include "base/log.h"

namespace dg {
namespace {

struct Runner {
  const char* name;
  Result<int> (*run)(const Options&);
};
constexpr Runner kRunners[] = {
    {"generate", run_generate}, {"chat", run_chat},         {"eval", run_eval},   {"inspect", run_inspect}, {"verify", run_verify},
    {"plan", run_plan},         {"tokenize", run_tokenize}, {"synth", run_synth}, {"version", run_version}, {"bench", run_bench},
#ifdef DG_HAVE_SERVER
    {"serve", run_serve},       {"keys", run_keys},
#endif
};

int fail(std::string_view where, const Error& error) {
  std::string line = fmt::format("{}: {}", where, error.message);
  for (char& c : line)
    if (c == '\n' || c == '\r') c = ' ';  // one line, whatever a message quotes
  print_error(line + "\n");
  return exit_code(error.kind);
}

void apply_log_level(const Options& options) {
  if (!options.has("log-level")) return;
  const std::string& level = options.text("log-level");
  set_log_level(level == "debug"   ? LogLevel::kDebug
                : level == "info"  ? LogLevel::kInfo
                : level == "error" ? LogLevel::kError
                : level == "off"   ? LogLevel::kOff
                                   : LogLevel::kWarning);
}

int run(const std::vector<std::string>& args) {
  if (args.empty() || args[0] == "help" || args[0] == "-h" || args[0] == "--help") {
    if (args.size() > 1 && find_command(args[1])) print_output(command_help(*find_command(args[1])));
    else print_output(program_help());
    return args.empty() ? exit_code(ErrorKind::kInput) : 0;
  }
  if (args[0] == "--help-markdown") {
    print_output(options_markdown());
    return 0;
  }
  std::string name = args[0] == "--version" ? "version" : args[0];
  const CommandRow* command = find_command(name);
  if (!command) {
    std::vector<std::string> known;
    for (const CommandRow& row : command_rows()) known.push_back(row.name);
    std::string near = nearest_word(name, known);
    return fail("dougong", input_error(fmt::format("unknown command {}; {}", in_quotes(name),
                                                   near.empty() ? "`dougong --help` lists the commands" : "did you mean " + near + "?")));
  }
  std::string where = std::string("dougong ") + command->name;
  auto options = parse_options(*command, std::span(args).subspan(1), process_environment());
  if (!options.ok()) return fail(where, options.error());
  if (options->flag("help")) {
    print_output(command_help(*command));
    return 0;
  }
  apply_log_level(*options);
  for (const Runner& runner : kRunners) {
    if (name != runner.name) continue;
    try {
      Result<int> code = runner.run(*options);
      return code.ok() ? *code : fail(where, code.error());
    } catch (const std::bad_alloc&) {
      return fail(where, resource_error("out of memory; use a smaller model, context (--max-model-len) or batch"));
    }
  }
  return fail(where, input_error("this build has no server: it was made for another machine, without Boost and OpenSSL"));
}

}  // namespace
}  // namespace dg

int main(int argc, char** argv) {
  dg::set_up_terminal();
  const int code = dg::run({argv + (argc > 0 ? 1 : 0), argv + argc});
  if (code != dg::exit_code(dg::ErrorKind::kDevice)) return code;
  std::fflush(nullptr);
  std::_Exit(code);  // the device is lost, and the driver's part in exit() could wait for it
}
