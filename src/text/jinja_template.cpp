#include "text/jinja_template.h"

#include <fmt/core.h>

#include <new>
#include <stdexcept>

#include "base/json.h"
#include "text/jinja_eval.h"
#include "text/jinja_parser.h"

namespace dg {
namespace {

// One line for people, whatever the template or the data put into the message.
Error template_error(const char* what, const std::string& message, int line) {
  constexpr size_t kMaxShown = 500;
  std::string text = message.substr(0, kMaxShown);
  for (char& c : text)
    if (static_cast<unsigned char>(c) < 0x20) c = ' ';
  return input_error(fmt::format("chat template, line {}: {}{}", line, what, text));
}

}  // namespace

Result<JinjaTemplate> JinjaTemplate::parse(std::string_view source, JinjaLimits limits) {
  if (source.size() > limits.max_source_bytes)
    return input_error(fmt::format("chat template: {} bytes, at most {} are accepted", source.size(), limits.max_source_bytes));
  try {
    jinja::Parser parser(jinja::tokenize(source));
    return JinjaTemplate(std::make_shared<const jinja::Program>(parser.parse()), limits);
  } catch (const jinja::Failure& failure) {
    return template_error("syntax error: ", failure.message, failure.line);
  } catch (const std::bad_alloc&) {
    return resource_error("chat template: not enough memory to parse it");
  }
}

Result<std::string> JinjaTemplate::render(const Json& variables, std::optional<std::time_t> now) const {
  if (!variables.is_object()) return input_error("chat template: the variables must be a JSON object");
  jinja::Interpreter interpreter(limits_, now);
  try {
    return interpreter.run(*program_, variables);
  } catch (const jinja::Failure& failure) {
    return template_error("", failure.message, failure.line > 0 ? failure.line : interpreter.line());
  } catch (const std::bad_alloc&) {
    return resource_error("chat template: not enough memory to render it");
  } catch (const std::length_error&) {
    return resource_error("chat template: a text or list is too long");
  }
}

}  // namespace dg
