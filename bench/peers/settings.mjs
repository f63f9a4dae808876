// The peer's best settings for one kind of work on one model: threads, flash attention, physical batch, repacked weights, memory-mapped
// or in huge pages. One setting after the other is varied from the best so far; what does not run (llama.cpp 0.5.0 aborts on MLA models
// with repacked weights on AMX) is out. Found once and kept, by model, peer and processor: it takes some minutes.
import { existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { describe, runPeer } from './programs.mjs';

const median = (list) => [...list].sort((a, b) => a - b)[list.length >> 1];

export class Settings {
  constructor(file, peer, threads, log) {
    this.file = file;
    this.peer = peer;
    this.threads = threads;
    this.log = log;
    this.kept = existsSync(file) ? JSON.parse(readFileSync(file, 'utf8')) : {};
  }

  // {settings, tried: [{settings, rate | failed}]}; settings null when nothing runs.
  async best(name, model, work, from, varied) {
    const key = `${this.peer.version} ${this.threads} ${name} ${work.kind} ${work.streams ?? 1}x${work.context}`;
    if (this.kept[key]) return this.kept[key];
    this.log(`finding the best settings of llama.cpp for ${name}, ${work.kind} ${work.streams ?? 1} x ${work.context}`);
    const tried = [];
    const measure = async (settings) => {
      const rates = [];
      for (let i = 0; i < 2; i++) {
        const r = await runPeer(this.peer, model, work, settings);
        if (r.failed) { tried.push({ settings, failed: r.failed }); return 0; }
        rates.push(r.rate);
      }
      const rate = Math.max(...rates);
      tried.push({ settings, rate });
      return rate;
    };
    let best = from ?? { threads: this.threads, flash: true, ubatch: 512, repack: true, mmap: false };
    let rate = await measure(best);
    if (rate === 0) {  // before anything else it must run
      best = { ...best, repack: false };
      rate = await measure(best);
    }
    for (const [field, values] of Object.entries(varied))
      for (const value of values) {
        if (best[field] === value || tried.some((t) => describe(t.settings) === describe({ ...best, [field]: value }))) continue;
        const other = { ...best, [field]: value };
        const r = await measure(other);
        if (r > rate) { best = other; rate = r; }
      }
    const result = { settings: rate > 0 ? best : null, tried };
    for (const t of tried) this.log(`  ${describe(t.settings)}: ${t.failed ? `failed (${t.failed})` : `${t.rate.toFixed(2)} tokens/s`}`);
    this.kept[key] = result;
    mkdirSync(path.dirname(this.file), { recursive: true });
    writeFileSync(this.file, JSON.stringify(this.kept, null, 1) + '\n');
    return result;
  }
}

// The values that are tried: all cores and half of them, and so on.
export const variations = (threads) => ({ repack: [false, true], mmap: [true], flash: [false], ubatch: [256, 1024], threads: threads > 1
  ? [threads >> 1] : [] });
export { median };
