// `dougong version`: what this binary is and can do.
#include <fmt/core.h>

#include "app/commands.h"
#include "app/model_options.h"
#include "app/terminal.h"
#include "app/version.h"
#include "backends/cpu/cpu.h"
#include "base/json.h"
#include "quant/formats.h"

namespace dg {
namespace {

#if defined(__x86_64__)
constexpr const char* kTarget = "x86_64";
#elif defined(__aarch64__)
constexpr const char* kTarget = "aarch64";
#elif defined(__riscv)
constexpr const char* kTarget = "riscv64";
#else
constexpr const char* kTarget = "unknown";
#endif

#if defined(__clang__)
constexpr const char* kCompiler = "clang " __clang_version__;
#else
constexpr const char* kCompiler = "gcc " __VERSION__;
#endif

std::string joined(const std::vector<std::string>& words) {
  std::string out;
  for (const std::string& word : words) out += (out.empty() ? "" : " ") + word;
  return out;
}

}  // namespace

Result<int> run_version(const Options& options) {
  std::vector<std::string> formats;
  for (const Format* format : all_formats()) formats.emplace_back(format->name);
  if (options.flag("json")) {
    print_output(json_line({{"version", kVersion},
                            {"compiler", kCompiler},
                            {"target", kTarget},
                            {"instruction_sets", usable_cpu_isas()},
                            {"architectures", architecture_names()},
                            {"formats", formats},
                            {"chat_formats", prompt_encoder_names()}}));
    return 0;
  }
  print_output(fmt::format(
      "dougong {} ({}, {})\ninstruction sets usable here: {}\narchitectures: {}\nweight formats (--quantization): {}\nchat formats: {}\n",
      kVersion, kTarget, kCompiler, joined(usable_cpu_isas()), joined(architecture_names()), joined(formats),
      joined(prompt_encoder_names())));
  return 0;
}

}  // namespace dg
