// Standard output and error of the commands: whether they are terminals, colours, writing, and Ctrl-C.
#pragma once
#include <atomic>
#include <string>
#include <string_view>

namespace dg {

// Signal dispositions and the character type of the locale; called once by main before anything else.
void set_up_terminal();

bool input_is_terminal();
bool output_is_terminal();
bool error_is_terminal();
int terminal_columns();  // of standard output; 80 when unknown

// Whether escape sequences may be written to standard output: a terminal, TERM is not "dumb", NO_COLOR is unset or empty.
bool output_has_colours();

// Write all at once, unbuffered, so that a stream of tokens appears as it comes. A reader that went away ends the process
// quietly, as other tools do; a full disk ends it with one line and exit code 2.
void print_output(std::string_view text);
void print_error(std::string_view text);

// Text of a model with control characters replaced by U+FFFD (but newline and tab): it must not steer the terminal.
std::string without_control_characters(std::string_view text);

// While one lives, Ctrl-C sets requested() instead of ending the process; `patience` presses in a row without clear() end
// it after all with exit code 130 (a step may take long). One at a time.
class InterruptScope {
 public:
  explicit InterruptScope(int patience);
  ~InterruptScope();
  InterruptScope(const InterruptScope&) = delete;
  InterruptScope& operator=(const InterruptScope&) = delete;

  const std::atomic<bool>& requested() const;
  void clear();
};

}  // namespace dg
