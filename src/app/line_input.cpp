#include "app/line_input.h"

#include <fmt/core.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>

#include "app/terminal.h"

#if DG_HAVE_LIBEDIT
#include <histedit.h>
#endif

namespace dg {
namespace {

class PlainLineReader : public LineReader {
 public:
  PlainLineReader(bool shows_prompt, size_t max_bytes) : shows_prompt_(shows_prompt), max_bytes_(max_bytes) {}

  Status read(const std::string& prompt, std::string* line) override {
    if (shows_prompt_) print_output(prompt);
    for (;;) {
      size_t newline = buffer_.find('\n', searched_);
      if (newline != std::string::npos) {
        *line = buffer_.substr(0, newline);
        buffer_.erase(0, newline + 1);
        searched_ = 0;
        return Status::kLine;
      }
      searched_ = buffer_.size();
      if (buffer_.size() >= max_bytes_) return rest(line);
      char chunk[65536];
      ssize_t n = ::read(STDIN_FILENO, chunk, sizeof chunk);
      if (n < 0 && errno == EINTR) {
        buffer_.clear();
        searched_ = 0;
        if (shows_prompt_) print_output("\n");
        return Status::kInterrupted;
      }
      if (n <= 0) return buffer_.empty() ? Status::kEnd : rest(line);
      buffer_.append(chunk, static_cast<size_t>(n));
    }
  }
  void remember(const std::string&) override {}

 private:
  Status rest(std::string* line) {
    *line = std::move(buffer_);
    buffer_.clear();
    searched_ = 0;
    return Status::kLine;
  }

  const bool shows_prompt_;
  const size_t max_bytes_;
  std::string buffer_;
  size_t searched_ = 0;  // no newline before
};

#if DG_HAVE_LIBEDIT
std::string state_directory() {
  std::string base;
  if (const char* state = std::getenv("XDG_STATE_HOME"); state && *state) base = state;
  else if (const char* home = std::getenv("HOME"); home && *home) base = std::string(home) + "/.local/state";
  else return "";
  std::string path = base + "/dougong";
  for (size_t at = 1; at != std::string::npos;) {  // mkdir -p
    at = path.find('/', at + 1);
    ::mkdir(path.substr(0, at).c_str(), 0700);
  }
  return path;
}

class EditLineReader : public LineReader {
 public:
  explicit EditLineReader(const std::string& history_name) {
    history_ = history_init();
    HistEvent event;
    history(history_, &event, H_SETSIZE, 1000);
    history(history_, &event, H_SETUNIQUE, 1);
    if (std::string directory = state_directory(); !directory.empty()) path_ = directory + "/" + history_name;
    if (!path_.empty()) history(history_, &event, H_LOAD, path_.c_str());
    editor_ = el_init("dougong", stdin, stdout, stderr);
    if (!editor_) return;
    el_set(editor_, EL_CLIENTDATA, this);
    el_set(editor_, EL_PROMPT, &EditLineReader::show_prompt);
    el_set(editor_, EL_EDITOR, "emacs");
    el_set(editor_, EL_SIGNAL, 0);
    el_set(editor_, EL_HIST, history, history_);
    el_set(editor_, EL_BIND, "^R", "em-inc-search-prev", nullptr);
    el_source(editor_, nullptr);  // ~/.editrc
  }
  ~EditLineReader() override {
    if (editor_) el_end(editor_);
    history_end(history_);
  }

  Status read(const std::string& prompt, std::string* line) override {
    if (!editor_) return plain_.read(prompt, line);
    prompt_ = prompt;
    int count = 0;
    errno = 0;
    const char* text = el_gets(editor_, &count);
    if (!text || count <= 0) {
      bool interrupted = count < 0 && errno == EINTR;
      el_reset(editor_);
      print_output("\n");
      return interrupted ? Status::kInterrupted : Status::kEnd;
    }
    line->assign(text);
    if (line->ends_with('\n')) line->pop_back();
    return Status::kLine;
  }

  void remember(const std::string& line) override {
    if (line.empty()) return;
    HistEvent event;
    history(history_, &event, H_ENTER, line.c_str());
    if (!path_.empty()) history(history_, &event, H_SAVE, path_.c_str());
  }

 private:
  static char* show_prompt(EditLine* editor) {
    void* self = nullptr;
    el_get(editor, EL_CLIENTDATA, &self);
    return static_cast<EditLineReader*>(self)->prompt_.data();
  }

  EditLine* editor_ = nullptr;
  History* history_ = nullptr;
  std::string path_, prompt_;
  PlainLineReader plain_{true, size_t{1} << 20};
};
#endif

}  // namespace

std::unique_ptr<LineReader> make_plain_line_reader(size_t max_bytes) { return std::make_unique<PlainLineReader>(false, max_bytes); }

std::unique_ptr<LineReader> make_terminal_line_reader(const std::string& history_name) {
#if DG_HAVE_LIBEDIT
  return std::make_unique<EditLineReader>(history_name);
#else
  (void)history_name;
  return std::make_unique<PlainLineReader>(true, size_t{1} << 20);
#endif
}

Result<std::string> read_standard_input(size_t max_bytes) {
  std::string text;
  char buffer[65536];
  for (;;) {
    ssize_t n = ::read(STDIN_FILENO, buffer, sizeof buffer);
    if (n == 0) return text;
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return io_error(fmt::format("standard input: {}", std::strerror(errno)));
    text.append(buffer, static_cast<size_t>(n));
    if (text.size() > max_bytes) return input_error(fmt::format("standard input: more than {} bytes", max_bytes));
  }
}

}  // namespace dg
