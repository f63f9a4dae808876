// Jinja templates as chat templates use them: the language of jinja2 (Python) with the settings of transformers'
// apply_chat_template (trim_blocks, lstrip_blocks, loop controls, tojson without HTML escaping).
//
// A template comes from a downloaded model and is hostile input: parsing and rendering are bounded in nesting, steps and
// bytes, never touch files, and end with a one-line error that names the line of the template.
#pragma once
#include <cstdint>
#include <ctime>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "base/json_fwd.h"
#include "base/result.h"

namespace dg {

namespace jinja {
struct Program;
}

struct JinjaLimits {
  size_t max_source_bytes = size_t{256} << 10;   // the longest published template has 30 KB
  int64_t max_steps = 20'000'000;                // evaluated nodes plus work inside filters and methods
  size_t max_output_bytes = size_t{64} << 20;    // rendered text
  size_t max_created_bytes = size_t{256} << 20;  // everything ever created during one rendering, freed or not
  int max_depth = 400;                           // nested evaluations, macro calls included
};

// Immutable after parse(): any number of threads may render at the same time.
class JinjaTemplate {
 public:
  static Result<JinjaTemplate> parse(std::string_view source, JinjaLimits limits = {});

  // `variables`: a JSON object, its members become the template's global variables. `now` replaces the clock of strftime_now.
  Result<std::string> render(const Json& variables, std::optional<std::time_t> now = std::nullopt) const;

 private:
  JinjaTemplate(std::shared_ptr<const jinja::Program> program, JinjaLimits limits) : program_(std::move(program)), limits_(limits) {}

  std::shared_ptr<const jinja::Program> program_;
  JinjaLimits limits_;
};

}  // namespace dg
