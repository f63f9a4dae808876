#include "text/tokenizer.h"

#include "text/tokenizer_impl.h"
#include "text/unicode.h"

namespace dg {
namespace {

class BpeSink final : public PieceSink {
 public:
  BpeSink(const Bpe& model, Bpe::Scratch& scratch, std::vector<int32_t>& out) : model_(model), scratch_(scratch), out_(out) {}
  void piece(std::string_view text) override { model_.encode(text, scratch_, out_); }

 private:
  const Bpe& model_;
  Bpe::Scratch& scratch_;
  std::vector<int32_t>& out_;
};

}  // namespace

std::string_view Tokenizer::Impl::content(int32_t id) const {
  if (const AddedToken* token = added_token(id)) return token->content;
  return id >= 0 && id <= model->largest_id() ? std::string_view(model->content(id)) : std::string_view();
}

std::optional<int32_t> Tokenizer::Impl::id_of(std::string_view token) const {
  if (auto it = added_by_content.find(std::string(token)); it != added_by_content.end()) return it->second;
  const int32_t id = model->id_of(token);
  return id < 0 ? std::nullopt : std::optional(id);
}

void Tokenizer::Impl::encode_normalized(std::string_view text, bool at_start, EncodeScratch& scratch, std::vector<int32_t>& out) const {
  BpeSink sink(*model, scratch.bpe, out);
  pre_tokenizer.split(text, at_start, scratch.pre, sink);
}

void Tokenizer::Impl::encode_section(std::string_view text, bool at_start, bool parse_added, EncodeScratch& scratch,
                                     std::vector<int32_t>& out) const {
  std::string changed;
  if (!normalizer.empty()) {
    changed = normalizer.apply(text, scratch.regex);
    text = changed;
  }
  if (!parse_added || normalized_matcher.empty()) return encode_normalized(text, at_start, scratch, out);
  scratch.normalized_spans.clear();
  normalized_matcher.split(text, scratch.normalized_spans);
  for (const AddedTokenMatcher::Span& span : scratch.normalized_spans) {
    if (span.id >= 0) out.push_back(span.id);
    else encode_normalized(text.substr(span.begin, span.end - span.begin), at_start && span.begin == 0, scratch, out);
  }
}

Tokenizer::Tokenizer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Tokenizer::~Tokenizer() = default;

std::vector<int32_t> Tokenizer::encode(std::string_view text, EncodeOptions options) const {
  std::string repaired;
  if (unicode::first_invalid(text) != std::string_view::npos) {
    repaired = unicode::replace_invalid(text);
    text = repaired;
  }
  std::vector<int32_t> out;
  out.reserve(text.size() / 3 + 16);
  if (options.add_special) out = impl_->prefix;
  auto scratch = impl_->scratch.take();
  if (!options.parse_added || impl_->raw_matcher.empty()) {
    impl_->encode_section(text, true, options.parse_added, *scratch, out);
  } else {
    scratch->raw_spans.clear();
    impl_->raw_matcher.split(text, scratch->raw_spans);
    for (const AddedTokenMatcher::Span& span : scratch->raw_spans) {
      if (span.id >= 0) out.push_back(span.id);
      else impl_->encode_section(text.substr(span.begin, span.end - span.begin), span.begin == 0, true, *scratch, out);
    }
  }
  impl_->scratch.give(std::move(scratch));
  if (options.add_special) out.insert(out.end(), impl_->suffix.begin(), impl_->suffix.end());
  return out;
}

std::string Tokenizer::decode(std::span<const int32_t> ids, bool skip_special) const {
  if (impl_->decoder.concatenates()) {
    std::string joined;
    for (int32_t id : ids)
      if (!skip_special || !is_special(id)) joined += token_bytes(id);
    return unicode::first_invalid(joined) == std::string_view::npos ? joined : unicode::replace_invalid(joined);
  }
  std::vector<std::string_view> contents;
  for (int32_t id : ids) {
    if (skip_special && is_special(id)) continue;
    std::string_view content = impl_->content(id);
    if (!content.empty()) contents.push_back(content);
  }
  return impl_->decoder.decode(contents);
}

std::string_view Tokenizer::token_bytes(int32_t id) const {
  if (id < 0 || id >= vocab_size()) return {};
  const uint32_t begin = impl_->offsets[static_cast<size_t>(id)], end = impl_->offsets[static_cast<size_t>(id) + 1];
  return std::string_view(impl_->bytes).substr(begin, end - begin);
}

std::string_view Tokenizer::content(int32_t id) const { return impl_->content(id); }
int32_t Tokenizer::vocab_size() const { return impl_->vocab_size(); }
std::optional<int32_t> Tokenizer::id_of(std::string_view token) const { return impl_->id_of(token); }

bool Tokenizer::is_special(int32_t id) const {
  const AddedToken* token = impl_->added_token(id);
  return token != nullptr && token->special;
}
bool Tokenizer::is_added(int32_t id) const { return impl_->added_token(id) != nullptr; }

std::optional<int32_t> Tokenizer::bos_id() const { return impl_->bos_id; }
std::optional<int32_t> Tokenizer::eos_id() const { return impl_->eos_id; }
bool Tokenizer::add_bos() const { return impl_->bos_id && !impl_->prefix.empty() && impl_->prefix[0] == *impl_->bos_id; }
const std::string& Tokenizer::bos_token() const { return impl_->bos_token; }
const std::string& Tokenizer::eos_token() const { return impl_->eos_token; }
const std::string& Tokenizer::chat_template() const { return impl_->chat_template; }
const Decoder& Tokenizer::decoder() const { return impl_->decoder; }

}  // namespace dg
