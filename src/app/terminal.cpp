#include "app/terminal.h"

#include <fmt/core.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <cerrno>
#include <clocale>
#include <csignal>
#include <cstdlib>
#include <cstring>

namespace dg {
namespace {

// A signal handler has no other way to reach its owner.
std::atomic<bool> g_interrupted{false};
std::atomic<int> g_presses{0};
std::atomic<int> g_patience{1};
struct sigaction g_previous;

void on_interrupt(int) {
  g_interrupted.store(true, std::memory_order_relaxed);
  if (g_presses.fetch_add(1) + 1 >= g_patience.load()) _exit(130);
}

void write_all(int fd, std::string_view text) {
  while (!text.empty()) {
    ssize_t written = ::write(fd, text.data(), text.size());
    if (written >= 0) {
      text.remove_prefix(static_cast<size_t>(written));
    } else if (errno != EINTR) {
      if (errno == EPIPE) _exit(128 + SIGPIPE);  // where SIGPIPE is blocked
      if (fd == STDERR_FILENO) return;
      print_error(fmt::format("dougong: standard output: {}\n", std::strerror(errno)));
      _exit(2);
    }
  }
}

}  // namespace

void set_up_terminal() {
  std::signal(SIGPIPE, SIG_DFL);  // whatever the parent left: `dougong ... | head` ends quietly
  // Only for the width of characters in the line editor; numbers are always written the same way.
  if (!std::setlocale(LC_CTYPE, "") || MB_CUR_MAX == 1) std::setlocale(LC_CTYPE, "C.UTF-8");
}

bool input_is_terminal() { return ::isatty(STDIN_FILENO); }
bool output_is_terminal() { return ::isatty(STDOUT_FILENO); }
bool error_is_terminal() { return ::isatty(STDERR_FILENO); }

int terminal_columns() {
  winsize size{};
  return ::ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0 ? size.ws_col : 80;
}

bool output_has_colours() {
  const char* no_color = std::getenv("NO_COLOR");
  const char* term = std::getenv("TERM");
  return output_is_terminal() && !(no_color && *no_color) && term && std::strcmp(term, "dumb") != 0;
}

void print_output(std::string_view text) { write_all(STDOUT_FILENO, text); }
void print_error(std::string_view text) { write_all(STDERR_FILENO, text); }

std::string without_control_characters(std::string_view text) {
  std::string out;
  for (size_t i = 0; i < text.size(); i++) {
    auto c = static_cast<unsigned char>(text[i]);
    bool c1 = c == 0xc2 && i + 1 < text.size() && static_cast<unsigned char>(text[i + 1]) < 0xa0;  // U+0080 .. U+009F
    if ((c < 0x20 && c != '\n' && c != '\t') || c == 0x7f || c1) {
      out += "\xef\xbf\xbd";
      i += c1;
    } else {
      out += text[i];
    }
  }
  return out;
}

InterruptScope::InterruptScope(int patience) {
  clear();
  g_patience = patience;
  struct sigaction action {};
  action.sa_handler = on_interrupt;  // without SA_RESTART: a read of the keyboard returns
  sigemptyset(&action.sa_mask);
  sigaction(SIGINT, &action, &g_previous);
}
InterruptScope::~InterruptScope() { sigaction(SIGINT, &g_previous, nullptr); }
const std::atomic<bool>& InterruptScope::requested() const { return g_interrupted; }
void InterruptScope::clear() {
  g_interrupted = false;
  g_presses = 0;
}

}  // namespace dg
