// Small tokenizers, one for each feature of tokenizer.json that the published ones in the tests do not use.
// generate_vectors.mjs runs them through Hugging Face's library.
const alphabet = [...'abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,!?;:\'"-_()[]{}<>/|\\@#$%^&*+=~`'];

export function byteChars() {
  const chars = [];
  let next = 256;
  for (let b = 0; b < 256; b++) {
    const printable = (b >= 33 && b <= 126) || (b >= 0xa1 && b <= 0xac) || b >= 0xae;
    chars.push(String.fromCodePoint(printable ? b : next++));
  }
  return chars;
}

function model(symbols, merges, options = {}) {
  const vocab = {};
  for (const s of symbols) if (!(s in vocab)) vocab[s] = Object.keys(vocab).length;
  for (const [a, b] of merges) if (!(a + b in vocab)) vocab[a + b] = Object.keys(vocab).length;
  return {
    type: 'BPE', dropout: null, unk_token: null, continuing_subword_prefix: null, end_of_word_suffix: null, fuse_unk: false,
    byte_fallback: false, ...options, vocab, merges: merges.some((pair) => pair.join('').includes(' ')) ? merges : merges.map((pair) => pair.join(' ')),
  };
}
const words = [['t', 'h'], ['th', 'e'], ['i', 'n'], ['a', 'n'], ['an', 'd'], ['h', 'e'], ['l', 'l'], ['he', 'll'], ['hell', 'o'], ['o', 'r']];
const byteModel = (options) => model(byteChars(), [...words, ['Ġ', 'the'], ['Ġ', 'a'], ['Ġ', 'Ġ'], ['ĠĠ', 'ĠĠ'], ['1', '2']], options);
const metaModel = (options) =>
  model(['<unk>', '<s>', '</s>', ...Array.from({ length: 256 }, (_, b) => `<0x${b.toString(16).toUpperCase().padStart(2, '0')}>`), '▁', ...alphabet],
    [['▁', 't'], ['▁t', 'he'], ...words, ['▁', 'a'], ['▁', '▁']], { unk_token: '<unk>', byte_fallback: true, fuse_unk: true, ...options });
const charModel = (options) => model(['<unk>', ' ', ...alphabet], [...words, [' ', ' ']], options);

const byteLevel = { type: 'ByteLevel', add_prefix_space: false, trim_offsets: true, use_regex: false };
const added = (id, content, rest = {}) => ({ id, content, single_word: false, lstrip: false, rstrip: false, normalized: false, special: false, ...rest });
const llamaDecoder = {
  type: 'Sequence',
  decoders: [
    { type: 'Replace', pattern: { String: '▁' }, content: ' ' }, { type: 'ByteFallback' }, { type: 'Fuse' },
    { type: 'Strip', content: ' ', start: 1, stop: 0 },
  ],
};
function tokenizer(parts) {
  return {
    version: '1.0', truncation: null, padding: null, added_tokens: [], normalizer: null, pre_tokenizer: null, post_processor: null, decoder: null, ...parts,
  };
}
const splitRegex = (Regex, behavior, invert = false) => ({ type: 'Split', pattern: { Regex }, behavior, invert });
const sequence = (...pretokenizers) => ({ type: 'Sequence', pretokenizers });
const byteSplit = (...stages) => tokenizer({ model: byteModel(), pre_tokenizer: sequence(...stages, byteLevel), decoder: byteLevel });

export const variants = {
  byte_level_regex: tokenizer({ model: byteModel(), pre_tokenizer: { ...byteLevel, use_regex: true }, decoder: byteLevel }),
  byte_level_prefix_space: tokenizer({ model: byteModel(), pre_tokenizer: { ...byteLevel, use_regex: true, add_prefix_space: true }, decoder: byteLevel }),
  ignore_merges: tokenizer({ model: byteModel({ ignore_merges: true }), pre_tokenizer: byteLevel, decoder: byteLevel }),
  llama_sentencepiece: tokenizer({
    model: metaModel(),
    normalizer: { type: 'Sequence', normalizers: [{ type: 'Prepend', prepend: '▁' }, { type: 'Replace', pattern: { String: ' ' }, content: '▁' }] },
    decoder: llamaDecoder,
    added_tokens: [added(0, '<unk>', { special: true }), added(1, '<s>', { special: true }), added(2, '</s>', { special: true })],
    post_processor: {
      type: 'TemplateProcessing',
      single: [{ SpecialToken: { id: '<s>', type_id: 0 } }, { Sequence: { id: 'A', type_id: 0 } }, { SpecialToken: { id: '</s>', type_id: 0 } }],
      pair: [{ Sequence: { id: 'A', type_id: 0 } }, { Sequence: { id: 'B', type_id: 1 } }],
      special_tokens: { '<s>': { id: '<s>', ids: [1], tokens: ['<s>'] }, '</s>': { id: '</s>', ids: [2], tokens: ['</s>'] } },
    },
  }),
  metaspace_always: tokenizer({
    model: metaModel(), pre_tokenizer: { type: 'Metaspace', replacement: '▁', prepend_scheme: 'always', split: true },
    decoder: { type: 'Metaspace', replacement: '▁', prepend_scheme: 'always', split: true },
  }),
  metaspace_first: tokenizer({
    model: metaModel(), pre_tokenizer: { type: 'Metaspace', replacement: '▁', prepend_scheme: 'first', split: false },
    decoder: { type: 'Metaspace', replacement: '▁', prepend_scheme: 'first', split: false },
    added_tokens: [added(1, '<s>', { special: true })],
  }),
  metaspace_never: tokenizer({
    model: metaModel(), pre_tokenizer: { type: 'Metaspace', replacement: '▁', prepend_scheme: 'never', split: true },
    decoder: { type: 'Metaspace', replacement: '▁', prepend_scheme: 'never', split: true },
  }),
  unknown_single: tokenizer({ model: charModel({ unk_token: '<unk>' }) }),
  unknown_fused: tokenizer({ model: charModel({ unk_token: '<unk>', fuse_unk: true }) }),
  unknown_dropped: tokenizer({ model: charModel() }),
  fuse_decoder: tokenizer({ model: charModel(), decoder: { type: 'Fuse' } }),
  removed: byteSplit(splitRegex('\\s+', 'Removed')),
  removed_inverted: byteSplit(splitRegex('\\w+', 'Removed', true)),
  merged_with_previous: byteSplit(splitRegex('[aeiou.]', 'MergedWithPrevious')),
  merged_with_next: byteSplit(splitRegex('[aeiou.]', 'MergedWithNext')),
  contiguous: byteSplit(splitRegex('[aeiou.]', 'Contiguous')),
  contiguous_inverted: byteSplit(splitRegex('[aeiou.]', 'Contiguous', true)),
  previous_inverted: byteSplit(splitRegex('[aeiou.]', 'MergedWithPrevious', true)),
  next_inverted: byteSplit(splitRegex('[aeiou.]', 'MergedWithNext', true)),
  string_pattern: byteSplit({ type: 'Split', pattern: { String: 'the' }, behavior: 'Isolated', invert: false }),
  look_split: byteSplit(splitRegex('(?=[A-Z])|(?<=[.,])', 'Isolated')),
  empty_matches: byteSplit(splitRegex('x*', 'Isolated')),
  interval_plus: byteSplit(splitRegex('\\p{N}{1,3}+|[a-z]{2}?|.', 'Isolated')),
  possessive: byteSplit(splitRegex('[a-z]++o|[a-z]+o|\\s++(?!\\S)|.', 'Isolated')),
  lazy_and_groups: byteSplit(splitRegex('(?:ab?|c(?:de)*?f)+?\\d|(?>he|hell)o|\\h{2,}|\\R', 'Isolated')),
  class_algebra: byteSplit(splitRegex('[\\p{L}&&[^a-m\\d]]+|[[:punct:]]|[^\\W\\d_]', 'Isolated')),
  line_anchors: byteSplit(splitRegex('^\\w|\\w$|\\b[A-Z]', 'Isolated')),
  ignore_case: byteSplit(splitRegex("(?i)hello|(?i:STRASSE|ſ)|É", 'Isolated')),
  o200k_like: byteSplit(splitRegex("[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]*[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|" +
    "[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]+[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\\p{N}{1,3}|" +
    ' ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+', 'Isolated')),
  deepseek_llm: byteSplit(splitRegex('[\r\n]', 'Isolated'), splitRegex('\\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿͰ-ͳΆΈ-ΊҊ-ԯＡ-Ｚａ-ｚ𐐀-𐑏]+', 'Isolated'),
    splitRegex('\\s?[!-/:-~！-／：-～‘-‟　-。]+', 'Isolated'), splitRegex('\\s+$', 'Isolated'), splitRegex('[一-龥ࠀ-一가-퟿]+', 'Isolated'),
    { type: 'Digits', individual_digits: true }),
  deepseek_coder: byteSplit(splitRegex('[\r\n]', 'Isolated'), splitRegex('\\s?\\p{L}+', 'Isolated'), splitRegex('\\s?\\p{P}+', 'Isolated'),
    splitRegex('[一-龥ࠀ-一가-퟿]+', 'Isolated'), { type: 'Digits', individual_digits: true }),
  digits: byteSplit({ type: 'Digits', individual_digits: false }),
  punctuation: byteSplit({ type: 'Punctuation', behavior: 'Isolated' }),
  whitespace: byteSplit({ type: 'Whitespace' }),
  whitespace_split: byteSplit({ type: 'WhitespaceSplit' }),
  scripts: byteSplit(splitRegex('[\\p{Han}\\p{Hiragana}\\p{Katakana}]+|\\p{Hangul}+|\\p{Cyrillic}+|\\p{Arabic}+|\\p{^L}', 'Isolated')),
  nfc: tokenizer({ model: byteModel(), normalizer: { type: 'NFC' }, pre_tokenizer: byteLevel, decoder: byteLevel }),
  nfd: tokenizer({ model: byteModel(), normalizer: { type: 'NFD' }, pre_tokenizer: byteLevel, decoder: byteLevel }),
  nfkc: tokenizer({ model: byteModel(), normalizer: { type: 'NFKC' }, pre_tokenizer: byteLevel, decoder: byteLevel }),
  nfkd_strip_accents: tokenizer({
    model: byteModel(), pre_tokenizer: byteLevel, decoder: byteLevel,
    normalizer: { type: 'Sequence', normalizers: [{ type: 'NFKD' }, { type: 'StripAccents' }, { type: 'Lowercase' }, { type: 'Strip', strip_left: true, strip_right: false }] },
  }),
  replace_regex: tokenizer({
    model: byteModel(), pre_tokenizer: byteLevel, decoder: byteLevel,
    normalizer: { type: 'Sequence', normalizers: [{ type: 'Replace', pattern: { Regex: '\\s+' }, content: '_' }, { type: 'Strip', strip_left: false, strip_right: true }] },
  }),
  added_tokens: tokenizer({
    model: byteModel(), normalizer: { type: 'Lowercase' }, pre_tokenizer: byteLevel, decoder: byteLevel,
    added_tokens: [
      added(271, '<sp>', { special: true }), added(272, '<spx>'), added(273, 'tha', { single_word: true }), added(274, '[L]', { lstrip: true }),
      added(275, '[R]', { rstrip: true }), added(276, 'HELLO', { normalized: true }), added(277, '[B]', { lstrip: true, rstrip: true, special: true }),
      added(278, 'and and', { normalized: true }), added(279, ' in'), added(233, 'é'),
    ],
  }),
};

export const texts = [
  '', ' ', '  ', 'the', 'The', ' the', 'hello', 'Hello HELLO hello', 'in the hall and the inn', 'and and and', 'thethe', '123 1234567 12 1',
  'a  b   c    d\t\te\n\nf \n g\r\nh ', ' leading', 'trailing ', 'trailing\n', '\n', ' \n ', "it's WE'LL don't I'D ſ STRASSE strasse Straße", 'aeiou.aeiou..', 'xxaxx',
  '<sp>', '<spx>', '<sp', 'a<sp>b', '<sp><sp>', 'the<sp>the', '  [L]  x', 'x  [R]  y', ' [B] [B] ', '[R] [L]', 'xx [R]   [L] yy', 'tha thab xtha tha, étha tha', 'other the bathe the.', 'x in the inn',
  'café résumé naïve', 'cafe\u0301 E\u0301', '\u1e9b\u0323 \ufb01 \uff21\uff22 \u2460 \u00bd \u2126 \uac00\u1100\u1161\u11a8', 'ÀÉÎ İı ΑΣ ς',
  '你好，世界！', 'こんにちは カタカナ ー', '한국어 텍스트', 'привет МИР', 'مرحبا ١٢٣', 'नमस्ते ५६', '👩‍💻🇨🇳 emoji', '𐐀𐐨 𠀀', 'mixed中文and日本語text', '1,234.56 ²③Ⅷ ٣٤٥',
  'ab12abb3cf4cdef5cdedef6', 'deadBEEF 00ff', 'a_b-c.d/e\\f|g', '{"key": [1, 2.5, null]}', 'for (int i = 0; i < n; i++) {\n    x += y[i];\n}\n', '… — “quoted” ‘x’ ™ ©',
  '\u00a0nbsp\u3000wide\u2003em\u2028ls\u0085nel', '\u200bzero\ufeffwidth\u00ad', 'ABC Def gHI jKl', 'camelCaseHTMLParser', '<s>the</s>', 'the <s> the', '▁the ▁', '\u0000\u0001\u007f', 'hello\u0301',
  'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa', 'thethethethethethethethethethethethethethethethethethethethehellohellohello',
];
