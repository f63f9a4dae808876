#include "text/gguf_tokenizer.h"

#include <fmt/core.h>

#include <algorithm>
#include <charconv>

#include "base/file.h"
#include "base/json.h"
#include "text/bpe.h"
#include "text/bpe_tables.h"
#include "text/unicode.h"

namespace dg {
namespace {

constexpr int64_t kMaxGgufVocabulary = 1 << 24;

// What tokenizer.ggml.pre stands for: the Split patterns of the published tokenizer.json, in order.
// Source: llama.cpp llama-vocab.cpp and the tokenizers themselves (../spec tokenizer_and_chat section 2).
struct PreType {
  std::string_view names[3];  // the first is the one written
  std::string_view patterns[6];
  bool nfc;            // Qwen's normalizer
  bool ignore_merges;  // a piece that is a token is taken whole
  bool add_bos;        // when the file does not say
};

constexpr PreType kPreTypes[] = {
    {{"deepseek-v3", "joyai-llm"},
     {
         R"re(\p{N}{1,3})re",
         R"re([一-龥぀-ゟ゠-ヿ]+)re",
         R"re([!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+|)re"
         R"re( ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)re",
     },
     false,
     false,
     false},
    {{"deepseek-llm"},
     {R"re([\r\n])re",
      R"re(\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-)re"
      R"re(ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-ώᾀ-ᾴᾶ-ᾼιῂ-ῄῆ-ῌῐ-ΐῖ)re"
      R"re(-Ίῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤΩℨK-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ)re"
      R"re(-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃]+)re",
      R"re(\s?[!-/:-~！-／：-～‘-‟　-。]+)re", R"re(\s+$)re", R"re([一-龥ࠀ-一가-퟿]+)re", R"re(\p{N}+)re"},
     false,
     false,
     false},
    {{"deepseek-coder"},
     {R"re([\r\n])re", R"re(\s?\p{L}+)re", R"re(\s?\p{P}+)re", R"re([一-龥ࠀ-一가-퟿]+)re", R"re(\p{N})re"},
     false,
     false,
     false},
    {{"qwen2", "deepseek-r1-qwen"},
     {R"re((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)re"},
     true,
     false,
     false},
    {{"llama-bpe", "llama3", "llama-v3"},
     {R"re((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)re"},
     false,
     true,
     true},
};

const PreType* find_pre(std::string_view name) {
  for (const PreType& pre : kPreTypes)
    for (std::string_view known : pre.names)
      if (!known.empty() && name == known) return &pre;
  return nullptr;
}

// A pattern may hold line ends themselves or their escapes.
std::string with_escapes(std::string_view pattern) {
  std::string out;
  for (char c : pattern) {
    if (c == '\r') out += "\\r";
    else if (c == '\n') out += "\\n";
    else out += c;
  }
  return out;
}

void append_json_text(std::string& out, std::string_view text) {
  out += '"';
  for (char c : text) {
    if (c == '"' || c == '\\') (out += '\\') += c;
    else if (static_cast<unsigned char>(c) < 0x20) out += fmt::format("\\u{:04x}", static_cast<unsigned char>(c));
    else out += c;
  }
  out += '"';
}

// llama.cpp's converter makes control tokens of all that look like one; in DeepSeek's tokenizers only the begin, end,
// padding and place holder tokens are special, and text like <｜User｜> stays visible.
bool looks_deepseek(std::string_view token) { return token.starts_with("<｜") && token.ends_with("｜>"); }
bool looks_special(std::string_view token) {
  return looks_deepseek(token) || (token.starts_with("<|") && token.ends_with("|>")) || token == "<pad>" || token == "<mask>";
}

class GgufTokenizerText {
 public:
  GgufTokenizerText(const GgufVocabulary& vocabulary, const std::string& origin) : v_(vocabulary), origin_(origin) {}

  Result<void> check() {
    pre_ = find_pre(v_.pre);
    if (!pre_)
      return input_error(
          fmt::format("{}: tokenizer.ggml.pre: expected one of {}, found \"{}\"; convert the model again with a current "
                      "converter, or use the Hugging Face checkpoint",
                      origin_, gguf_pre_names(), printable(v_.pre)));
    if (v_.tokens.empty() || v_.tokens.size() > static_cast<size_t>(kMaxGgufVocabulary))
      return input_error(
          fmt::format("{}: tokenizer.ggml.tokens: expected 1 to {} tokens, found {}", origin_, kMaxGgufVocabulary, v_.tokens.size()));
    if (!v_.types.empty() && v_.types.size() != v_.tokens.size())
      return input_error(fmt::format("{}: tokenizer.ggml.token_type: expected a type for each of the {} tokens, found {}", origin_,
                                     v_.tokens.size(), v_.types.size()));
    for (size_t i = 0; i < v_.tokens.size(); i++)
      if (unicode::first_invalid(v_.tokens[i]) != std::string_view::npos)
        return input_error(fmt::format("{}: tokenizer.ggml.tokens[{}]: expected UTF-8, found \"{}\"", origin_, i, printable(v_.tokens[i])));
    for (size_t i = 0; i < v_.merges.size(); i++)
      if (unicode::first_invalid(v_.merges[i]) != std::string_view::npos)
        return input_error(fmt::format("{}: tokenizer.ggml.merges[{}]: expected UTF-8, found \"{}\"", origin_, i, printable(v_.merges[i])));
    if (unicode::first_invalid(v_.chat_template) != std::string_view::npos)
      return input_error(fmt::format("{}: tokenizer.chat_template: expected UTF-8, found an ill-formed byte at {}", origin_,
                                     unicode::first_invalid(v_.chat_template)));
    for (auto [id, key] : {std::pair(v_.bos, "bos"), std::pair(v_.eos, "eos"), std::pair(v_.padding, "padding")})
      if (id && (*id < 0 || static_cast<size_t>(*id) >= v_.tokens.size()))
        return input_error(
            fmt::format("{}: tokenizer.ggml.{}_token_id: expected an id below {}, found {}", origin_, key, v_.tokens.size(), *id));
    return {};
  }

  // The tokenizer.json, its vocab and merges as views of the vocabulary.
  Result<BpeTables> tables() const {
    BpeTables tables;
    std::string added;
    std::string& ids = tables.unescaped.emplace_back();
    ids.reserve(v_.tokens.size() * 8);  // of at most 8 digits: views of it stay
    tables.tokens.reserve(v_.tokens.size());
    tables.merges.reserve(v_.merges.size());
    for (size_t i = 0; i < v_.tokens.size(); i++) {
      const GgufTokenType type = v_.types.empty() ? GgufTokenType::kNormal : static_cast<GgufTokenType>(v_.types[i]);
      if (type == GgufTokenType::kUnused || v_.tokens[i].empty()) continue;
      if (type == GgufTokenType::kControl || type == GgufTokenType::kUserDefined) {
        added += added.empty() ? "" : ",";
        added += fmt::format("{{\"id\":{},\"special\":{},\"normalized\":false,\"content\":", i, is_special(i, type) ? "true" : "false");
        append_json_text(added, v_.tokens[i]);
        added += '}';
      } else {
        char digits[8];
        const auto count = static_cast<size_t>(std::to_chars(digits, digits + sizeof digits, i).ptr - digits);
        const size_t begin = ids.size();
        ids.append(digits, count);
        tables.tokens.push_back({v_.tokens[i], std::string_view(ids).substr(begin)});
      }
    }
    for (size_t i = 0; i < v_.merges.size(); i++) {
      const std::string_view merge = v_.merges[i];
      const size_t space = merge.find(' ');
      if (space == std::string_view::npos || merge.find(' ', space + 1) != std::string_view::npos)
        return input_error(fmt::format("{}: tokenizer.ggml.merges[{}]: expected two tokens with a space between them, found \"{}\"",
                                       origin_, i, printable(merge)));
      tables.merges.push_back({merge.substr(0, space), merge.substr(space + 1)});
    }
    std::string splits;
    for (std::string_view pattern : pre_->patterns) {
      if (pattern.empty()) continue;
      splits += R"({"type":"Split","behavior":"Isolated","invert":false,"pattern":{"Regex":)";
      append_json_text(splits, pattern);
      splits += "}},";
    }
    constexpr std::string_view kByteLevel = R"({"type":"ByteLevel","add_prefix_space":false,"trim_offsets":true,"use_regex":false})";
    tables.rest = fmt::format(
        R"({{"added_tokens":[{}],"normalizer":{},"pre_tokenizer":{{"type":"Sequence","pretokenizers":[{}{}]}},"decoder":{},)"
        R"("model":{{"type":"BPE","ignore_merges":{},"vocab":{{}},"merges":[]}}}})",
        added, pre_->nfc ? R"({"type":"NFC"})" : "null", splits, kByteLevel, kByteLevel, pre_->ignore_merges ? "true" : "false");
    return tables;
  }

  std::string config_json() const {
    SortedJson config = SortedJson::object();
    if (v_.bos) config["bos_token"] = v_.tokens[static_cast<size_t>(*v_.bos)];
    if (v_.eos) config["eos_token"] = v_.tokens[static_cast<size_t>(*v_.eos)];
    config["add_bos_token"] = v_.bos && v_.add_bos.value_or(pre_->add_bos);
    config["add_eos_token"] = v_.eos && v_.add_eos.value_or(false);
    if (!v_.chat_template.empty()) config["chat_template"] = v_.chat_template;
    return config.dump();
  }

 private:
  static std::string printable(std::string_view text) {
    std::string out;
    for (char c : text.substr(0, 60)) out += c >= 0x20 && c < 0x7f ? c : '?';
    return out;
  }
  bool is_special(size_t i, GgufTokenType type) const {
    if (type != GgufTokenType::kControl) return false;
    const auto id = static_cast<int64_t>(i);
    if (id == v_.bos || id == v_.eos || id == v_.padding || !looks_deepseek(v_.tokens[i])) return true;
    return v_.tokens[i] == "<｜▁pad▁｜>" || v_.tokens[i].find("place▁holder") != std::string::npos;
  }

  const GgufVocabulary& v_;
  const std::string& origin_;
  const PreType* pre_ = nullptr;
};

}  // namespace

std::string gguf_pre_names() {
  std::string names;
  for (const PreType& pre : kPreTypes)
    for (std::string_view name : pre.names)
      if (!name.empty()) names += (names.empty() ? "" : ", ") + std::string(name);
  return names;
}

Result<std::unique_ptr<Tokenizer>> make_gguf_tokenizer(const GgufVocabulary& vocabulary, const std::string& origin) {
  GgufTokenizerText text(vocabulary, origin);
  DG_TRY(text.check());
  DG_ASSIGN(const BpeTables tables, text.tables());
  return Tokenizer::from_tables(tables, text.config_json(), origin + ": tokenizer.ggml");
}

Result<GgufVocabulary> read_gguf_vocabulary(const std::string& directory, int64_t size) {
  const std::string path = directory + "/tokenizer.json";
  DG_ASSIGN(const SortedJson root, read_sorted_json_file(path));
  // The tokenizer checks the file and knows what tokenizer_config.json and chat_template.jinja add.
  DG_ASSIGN(std::unique_ptr<Tokenizer> tokenizer, Tokenizer::load(directory));
  std::vector<std::string> patterns;
  const SortedJson::json_pointer list("/pre_tokenizer/pretokenizers"), regex("/pattern/Regex");
  if (root.contains(list) && root.at(list).is_array())
    for (const SortedJson& stage : root.at(list))
      if (stage.contains(regex) && stage.at(regex).is_string()) patterns.push_back(with_escapes(stage.at(regex).get<std::string>()));
  GgufVocabulary v;
  for (const PreType& pre : kPreTypes) {
    std::vector<std::string> known;
    for (std::string_view pattern : pre.patterns)
      if (!pattern.empty()) known.emplace_back(pattern);
    if (known == patterns) v.pre = pre.names[0];
  }
  if (v.pre.empty())
    return input_error(
        fmt::format("{}: pre_tokenizer: expected the patterns of one of {}, found {} others; this tokenizer has no name in GGUF", path,
                    gguf_pre_names(), patterns.size()));
  if (tokenizer->vocab_size() > size)
    return input_error(fmt::format("{}: expected at most vocab_size {} ids, found {}", path, size, tokenizer->vocab_size()));
  for (int64_t i = 0; i < size; i++) {
    const auto id = static_cast<int32_t>(i);
    const std::string content(tokenizer->content(id));
    GgufTokenType type = GgufTokenType::kNormal;
    if (content.empty()) type = GgufTokenType::kUnused;
    else if (tokenizer->is_special(id) || (tokenizer->is_added(id) && looks_special(content))) type = GgufTokenType::kControl;
    else if (tokenizer->is_added(id)) type = GgufTokenType::kUserDefined;
    v.tokens.push_back(content.empty() ? fmt::format("[PAD{}]", i) : content);
    v.types.push_back(static_cast<int32_t>(type));
  }
  const SortedJson::json_pointer merges("/model/merges");
  if (root.contains(merges) && root.at(merges).is_array())
    for (const SortedJson& merge : root.at(merges)) {
      const bool pair = merge.is_array() && merge.size() == 2 && merge[0].is_string() && merge[1].is_string();
      if (!pair && !merge.is_string()) return input_error(fmt::format("{}: model.merges: expected strings or pairs of strings", path));
      v.merges.push_back(pair ? merge[0].get<std::string>() + " " + merge[1].get<std::string>() : merge.get<std::string>());
    }
  v.bos = tokenizer->bos_id();
  v.eos = tokenizer->eos_id();
  v.add_bos = tokenizer->add_bos();
  v.chat_template = tokenizer->chat_template();
  return v;
}

GgufVocabulary byte_gguf_vocabulary(int64_t size) {
  GgufVocabulary v;
  v.pre = "qwen2";
  for (int byte = 0; byte < 256; byte++)
    unicode::append_utf8(v.tokens.emplace_back(), ByteAlphabet::char_of(static_cast<unsigned char>(byte)));
  v.types.assign(256, static_cast<int32_t>(GgufTokenType::kNormal));
  for (const char* special : {"<|begin_of_text|>", "<|end_of_text|>"}) {
    v.tokens.emplace_back(special);
    v.types.push_back(static_cast<int32_t>(GgufTokenType::kControl));
  }
  // One merge: llama.cpp refuses a vocabulary without any.
  v.tokens.emplace_back("\xc4\xa0\xc4\xa0");
  v.types.push_back(static_cast<int32_t>(GgufTokenType::kNormal));
  v.merges.emplace_back("\xc4\xa0 \xc4\xa0");
  for (auto i = static_cast<int64_t>(v.tokens.size()); i < size; i++) {
    v.tokens.push_back(fmt::format("[PAD{}]", i));
    v.types.push_back(static_cast<int32_t>(GgufTokenType::kUnused));
  }
  v.bos = 256;
  v.eos = 257;
  v.add_bos = false;
  return v;
}

}  // namespace dg
