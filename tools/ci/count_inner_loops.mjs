#!/usr/bin/env node
// count_inner_loops.mjs FAMILY OBJECT: instructions per multiply-add of the product loops of a kernel object, for instruction sets
// that cannot be timed here (docs/kernels_isa.md). A loop is the range of a backward branch without another inside; those that
// hold instructions of the family's products are printed, with the share of these: the ideal is all of them.
//   integer: the int8 products, float: multiply-adds of f32, or bf16 products and in `few` those of a few tokens. `helpers` belong to a product in families without a dot product.
// Of the loops over the same products (2 to 16 rows at a time) the one with the most multiply-adds is what prefill runs.
import { execFileSync } from 'node:child_process';

// [products, multiply-adds of one, other instructions an ideal loop needs for it]
const families = {
  generic: { objdump: 'aarch64-linux-gnu-objdump', integer: [/^smu?l[al]*l2?$/, 8, /^sadalp$/], float: [/^fmla$/, 4] },
  dotprod: { objdump: 'aarch64-linux-gnu-objdump', integer: [/^sdot$/, 16], float: [/^fmla$/, 4] },
  i8mm: { objdump: 'aarch64-linux-gnu-objdump', integer: [/^smmla$/, 32], float: [/^bfmmla$/, 16], few: [/^bfdot$/, 8] },
  sve2: { objdump: 'aarch64-linux-gnu-objdump', integer: [/^smmla$/, 32], float: [/^bfmmla$/, 16], few: [/^bfdot$/, 8] },
  rvv: { objdump: 'llvm-objdump-14', arguments: ['--mattr=+v,+m,+a,+d,+c'], integer: [/^vwm(ul|acc)\.vx$/, 16, /^vwadd\.wv$/], float: [/^vfm(acc|add)\.vf$/, 16] },
  avx2: { objdump: 'objdump', integer: [/^vpmaddubsw$/, 32, /^(vpsignb|vpmaddwd|vpaddd)$/], float: [/^vfmadd\d+ps$/, 8] },
  avx_vnni: { objdump: 'objdump', integer: [/^vpdpbusd$/, 32], float: [/^vfmadd\d+ps$/, 8] },
  avx512: { objdump: 'objdump', integer: [/^vpmaddubsw$/, 64, /^(vpsubb|vpmaddwd|vpaddd)$/], float: [/^vfmadd\d+ps$/, 16] },
  avx512_vnni: { objdump: 'objdump', integer: [/^vpdpbusd$/, 64], float: [/^vfmadd\d+ps$/, 16] },
};

const [name, object] = process.argv.slice(2);
const family = families[name];
if (!family || !object) {
  console.error(`usage: count_inner_loops.mjs ${Object.keys(families).join('|')} OBJECT`);
  process.exit(2);
}

// Functions of a disassembly with their instructions: address, mnemonic, operands.
function functions(text) {
  const found = [];
  for (const line of text.split('\n')) {
    if (/^[0-9a-f]+ <.*>:$/.test(line)) {
      found.push({ name: line.replace(/^[0-9a-f]+ <(.*)>:$/, '$1'), code: [] });
      continue;
    }
    const m = /^\s*([0-9a-f]+):\s+(?:\{\w+\}\s*)?(\S+)\s*(.*)$/.exec(line);
    if (m && found.length) found.at(-1).code.push({ at: parseInt(m[1], 16), op: m[2], args: m[3] });
  }
  return found;
}

function innermost(code) {
  const index = new Map(code.map((c, i) => [c.at, i]));
  const loops = [];
  code.forEach((c, i) => {
    if (!/^(j|b|cb|tb)/.test(c.op) || /^(bl|blr|bic|bif|bit|bsl|bextr|br)$/.test(c.op)) return;
    const target = /(?:^|[,\s])(?:0x)?([0-9a-f]+) </.exec(c.args);
    const start = target && index.get(parseInt(target[1], 16));
    if (start !== undefined && start !== null && start <= i) loops.push([start, i]);
  });
  return loops.filter(([s, e]) => !loops.some(([s2, e2]) => s2 >= s && e2 <= e && (s2 !== s || e2 !== e)));
}

const text = execFileSync(family.objdump, ['-d', '--no-show-raw-insn', ...(family.arguments ?? []), object], { maxBuffer: 1 << 30 }).toString();
const best = new Map();
for (const f of functions(text)) {
  for (const [start, end] of innermost(f.code)) {
    const loop = f.code.slice(start, end + 1);
    for (const kind of ['integer', 'float', 'few'].filter((k) => family[k])) {
      const [products, each, helpers] = family[kind];
      const count = loop.filter((c) => products.test(c.op)).length;
      if (count < 4) continue;
      const needed = count + (helpers ? loop.filter((c) => helpers.test(c.op)).length : 0);
      const row = { kind, products: count, needed, all: loop.length, macs: count * each };
      const key = `${kind} ${count} ${loop.length}`;
      if (!best.has(key)) best.set(key, row);
    }
  }
}
console.log('loop      multiply-adds  products  with helpers  instructions  per 1000 multiply-adds  share');
for (const r of [...best.values()].sort((a, b) => a.kind.localeCompare(b.kind) || b.macs - a.macs)) {
  const cells = [r.kind.padEnd(8), String(r.macs).padStart(14), String(r.products).padStart(9), String(r.needed).padStart(13)];
  cells.push(String(r.all).padStart(13), ((r.all / r.macs) * 1000).toFixed(1).padStart(23), `${Math.round((r.needed / r.all) * 100)} %`.padStart(6));
  console.log(cells.join(' '));
}
