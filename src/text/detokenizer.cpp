#include "text/detokenizer.h"

#include <algorithm>

#include "text/decoder.h"
#include "text/unicode.h"

namespace dg {

StreamDetokenizer::StreamDetokenizer(const Tokenizer& tokenizer, bool skip_special, std::span<const int32_t> keep)
    : tokenizer_(tokenizer), skip_special_(skip_special), keep_(keep.begin(), keep.end()), separator_(tokenizer.decoder().separator()) {
  const Decoder::Start start = tokenizer.decoder().start();
  strip_content_ = start.content;
  drops_blanks_ = start.drops_blanks;
  reset();
}

void StreamDetokenizer::reset() {
  started_ = false;
  strip_left_ = tokenizer_.decoder().start().count;
  pending_.clear();
}

std::string StreamDetokenizer::push(int32_t id) {
  if (tokenizer_.content(id).empty()) return {};
  if (skip_special_ && tokenizer_.is_special(id) && std::find(keep_.begin(), keep_.end(), id) == keep_.end()) return {};
  const std::string_view bytes = tokenizer_.token_bytes(id);
  if (started_) {
    pending_ += separator_;
    pending_ += bytes;
  } else {
    append_first(bytes);
  }
  started_ = true;
  const size_t complete = unicode::complete_prefix(pending_);
  std::string_view ready = std::string_view(pending_).substr(0, complete);
  while (strip_left_ > 0 && !ready.empty()) {
    if (ready.substr(0, strip_content_.size()) != strip_content_) {
      strip_left_ = 0;
      break;
    }
    ready.remove_prefix(strip_content_.size());
    strip_left_--;
  }
  std::string out = unicode::replace_invalid(ready);
  pending_.erase(0, complete);
  return out;
}

void StreamDetokenizer::append_first(std::string_view bytes) {
  for (char c : bytes)
    if (!drops_blanks_ || c != ' ') pending_ += c;
}

std::string StreamDetokenizer::finish() {
  std::string out = unicode::replace_invalid(pending_);
  reset();
  return out;
}

}  // namespace dg
