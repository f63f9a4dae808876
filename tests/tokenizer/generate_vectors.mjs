// Writes vectors/variants.jsonl and vectors/mini_r1.jsonl with Hugging Face's Rust tokenizers (npm @anush008/tokenizers).
//   node tests/tokenizer/generate_vectors.mjs build/npm/node_modules
// The other vectors were made with transformers 5.17 and are kept as they came.
import fs from 'node:fs';
import { createRequire } from 'node:module';
import path from 'node:path';
import { texts, variants } from './variants.mjs';

const modules = process.argv[2];
if (!modules) {
  console.error('usage: node generate_vectors.mjs NODE_MODULES');
  process.exit(2);
}
const { Tokenizer } = createRequire(path.resolve(modules) + '/')('@anush008/tokenizers');
const here = path.dirname(new URL(import.meta.url).pathname);

const lines = [];
for (const [name, json] of Object.entries(variants)) {
  const tokenizer = Tokenizer.fromString(JSON.stringify(json));
  const cases = [];
  for (const text of texts) {
    const plain = (await tokenizer.encode(text, null, { addSpecialTokens: false })).getIds();
    const special = (await tokenizer.encode(text, null, { addSpecialTokens: true })).getIds();
    cases.push({
      text, ids: plain, special: JSON.stringify(special) === JSON.stringify(plain) ? undefined : special,
      decoded: await tokenizer.decode(plain, false), skipped: await tokenizer.decode(special, true),
    });
  }
  lines.push(JSON.stringify({ name, tokenizer: json, cases }));
}
fs.writeFileSync(path.join(here, 'vectors/variants.jsonl'), lines.join('\n') + '\n');

// mini-r1: the texts of the DeepSeek-V3 vectors, whose pipeline it shares.
const mini = Tokenizer.fromFile(path.join(here, '../../models/mini-r1/tokenizer.json'));
const rows = fs.readFileSync(path.join(here, 'vectors/deepseek_v3.jsonl'), 'utf8').trim().split('\n').slice(0, 150).map((l) => JSON.parse(l).text);
const out = [];
for (const text of [...rows, ...texts]) {
  const ids = (await mini.encode(text, null, { addSpecialTokens: false })).getIds();
  out.push(JSON.stringify({ text, ids, decoded: await mini.decode(ids, false) }));
}
fs.writeFileSync(path.join(here, 'vectors/mini_r1.jsonl'), out.join('\n') + '\n');
console.log(`${Object.keys(variants).length} variants x ${texts.length} texts, ${out.length} mini-r1 rows`);
