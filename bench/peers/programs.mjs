// How the two sides are started and timed. Ours: bench_model, which answers one line of standard input with one measurement and so can
// stay loaded between rounds, and `dougong serve`. The peer: llama-batched-bench, a process for each measurement, and llama-server.
import { execFile, spawn } from 'node:child_process';
import { request } from 'node:http';
import { createServer } from 'node:net';
import { createInterface } from 'node:readline';
import { promisify } from 'node:util';

const kTimeoutMs = 15 * 60 * 1000;
const children = new Set();
export const stopAll = () => { for (const child of children) child.kill('SIGKILL'); };
const track = (child) => { children.add(child); child.once('exit', () => children.delete(child)); return child; };
export const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
const lastLines = (text) => text.trim().split('\n').slice(-3).join(' | ').slice(0, 300);

// bench_model with a model; run('prefill 512') gives its JSON.
export async function startOurs(program, model, works, threads) {
  const options = works.flatMap((w) => [`--${w.kind}`, w.kind === 'decode' ? `${w.streams}x${w.context}` : `${w.context}`]);
  const child = track(spawn(program, [model, '--interactive', '--threads', `${threads}`, '--tokens',
    `${Math.max(1, ...works.map((w) => w.tokens ?? 0))}`, ...options],
    { stdio: ['pipe', 'pipe', 'pipe'] }));
  let errors = '';
  child.stderr.on('data', (d) => (errors = (errors + d).slice(-4000)));
  const waiting = [], early = [];
  let failed = null;
  const fail = (error) => { failed = error; while (waiting.length) waiting.shift().reject(error); };
  createInterface({ input: child.stdout }).on('line', (line) => (waiting.length
    ? waiting.shift().resolve(JSON.parse(line)) : early.push(JSON.parse(line))));
  child.stdin.on('error', () => {});  // a program that died is reported by its exit
  child.once('error', fail);
  child.once('exit', (code, signal) => fail(new Error(`bench_model ended with ${code ?? signal}: ${lastLines(errors)}`)));
  const next = () => (early.length ? Promise.resolve(early.shift()) : failed ? Promise.reject(failed) : new Promise((resolve,
    reject) => waiting.push({ resolve, reject })));
  const header = await next();
  return {
    header,
    run: (w) => { child.stdin.write(w.kind === 'prefill'
      ? `prefill ${w.context}\n` : `decode ${w.streams}x${w.context} ${w.tokens}\n`); return next(); },
    stop: () => new Promise((resolve) => { if (child.exitCode !== null || child.signalCode) resolve(); else { child.once('exit',
      resolve); child.stdin.end(); } }),
  };
}

// Options of the peer's programs, from one set of settings.
export const peerOptions = (s) => ['-t', `${s.threads}`, '-tb', `${s.threads}`, '-fa', s.flash ? 'on' : 'off', '-ub', `${s.ubatch}`, '-b',
  '2048',
  '--load-mode', s.mmap ? 'mmap' : 'none', ...(s.repack ? [] : ['--no-repack'])];
// malloc asks for huge pages (glibc 2.35): llama.cpp itself never does. Memory-mapped weights cannot have them.
export const peerEnvironment = () => ({ ...process.env, GLIBC_TUNABLES: 'glibc.malloc.hugetlb=1' });
export const describe = (s) => `${s.threads} thread${s.threads > 1 ? 's' : ''}, ${s.flash ? 'flash' : 'no flash'}, ubatch ${s.ubatch}, ` +
  `${s.repack ? 'repack' : 'no repack'}, ${s.mmap ? 'mmap' : 'huge pages'}`;

// tokens/s of the wanted part of llama-batched-bench. Every stream and step has random tokens.
export async function runPeer(peer, model, work, settings, extra = {}) {
  const prefill = work.kind === 'prefill';
  const streams = work.streams ?? 1, steps = prefill ? 1 : work.tokens;
  // A short prompt in front of the one that is timed touches all buffers.
  const prompts = prefill ? `64,${work.context}` : `${work.context}`;
  const args = ['-m', model, ...peerOptions(settings), '-c', `${streams * (work.context + steps + 64)}`, '-npp', prompts, '-ntg',
    `${steps}`, '-npl', `${streams}`,
    '--output-format', 'jsonl'];
  try {
    const { stdout } = await promisify(execFile)(peer.batched, args, { env: peerEnvironment(), timeout: extra.timeout ?? kTimeoutMs,
      killSignal: 'SIGKILL', maxBuffer: 1 << 26 });
    const rows = stdout.split('\n').filter((l) => l.startsWith('{')).map((l) => JSON.parse(l.replace(/\b-?(nan|inf)\b/g, 'null')));
    const row = rows.find((r) => r.pp === work.context && r.pl === streams);
    if (!row) return { failed: `no result: ${lastLines(stdout)}` };
    return { rate: prefill ? row.speed_pp : row.speed_tg };
  } catch (error) {
    return { failed: error.signal
      ? `killed by ${error.signal}: ${lastLines(error.stderr ?? '')}` : lastLines(error.stderr || error.message) };
  }
}

const freePort = () => new Promise((resolve, reject) => {
  const server = createServer();
  server.once('error', reject);
  server.listen(0, '127.0.0.1', () => { const { port } = server.address(); server.close(() => resolve(port)); });
});

const makeServer = (child, url) => ({
  url,
  stop: () => new Promise((resolve) => {
    if (child.exitCode !== null || child.signalCode) return resolve();
    const kill = setTimeout(() => child.kill('SIGKILL'), 10000);
    child.removeAllListeners('exit');
    children.add(child);
    child.once('exit', () => { clearTimeout(kill); children.delete(child); resolve(); });
    child.kill('SIGTERM');
  }),
});

export async function serveOurs(dougong, model, { threads, streams, context, warmup = true }) {
  const child = track(spawn(dougong, ['serve', model, '--port', '0', '--admin-port', '0', '--json', '--quiet', '--threads', `${threads}`,
    '--max-num-seqs', `${streams}`,
    '--max-model-len', `${context}`, ...(warmup ? [] : ['--no-warm-up'])], { stdio: ['ignore', 'pipe', 'pipe'] }));
  let errors = '';
  child.stderr.on('data', (d) => (errors = (errors + d).slice(-4000)));
  const line = await new Promise((resolve, reject) => {
    createInterface({ input: child.stdout }).once('line', resolve);
    child.once('error', reject);
    child.once('exit', (code, signal) => reject(new Error(`dougong serve ended with ${code ?? signal}: ${lastLines(errors)}`)));
  });
  return makeServer(child, JSON.parse(line).api);
}

export async function servePeer(peer, model, settings, { streams, context, warmup = true }) {
  const port = await freePort();
  const child = track(spawn(peer.server, ['-m', model, ...peerOptions(settings), '-c', `${streams * context}`, '-np', `${streams}`,
    '--host', '127.0.0.1', '--port', `${port}`,
    '--cache-ram', '0', '--fit', 'off', ...(warmup ? [] : ['--no-warmup'])], { stdio: ['ignore', 'ignore', 'pipe'],
      env: peerEnvironment() }));
  let errors = '', ended = null;
  child.stderr.on('data', (d) => (errors = (errors + d).slice(-4000)));
  child.once('error', (error) => (ended = error.message));
  child.once('exit', (code, signal) => (ended = `ended with ${code ?? signal}: ${lastLines(errors)}`));
  const url = `http://127.0.0.1:${port}`;
  for (const begin = Date.now(); ; await sleep(10)) {
    if (ended) throw new Error(`llama-server ${ended}`);
    if (Date.now() - begin > kTimeoutMs) { child.kill('SIGKILL'); throw new Error('llama-server does not become ready'); }
    const ready = await fetch(`${url}/health`).then((r) => r.ok, () => false);
    if (ready) return makeServer(child, url);
  }
}

// By node:http: fetch() gives up after 300 s without headers, which 8192 tokens of a prompt can take.
export const post = (url, body) => new Promise((resolve, reject) => {
  const call = request(url, { method: 'POST', headers: { 'content-type': 'application/json' }, signal: AbortSignal.timeout(kTimeoutMs) });
  call.once('error', reject);
  call.once('response', (response) => {
    let text = '';
    response.setEncoding('utf8').on('data', (d) => (text += d)).once('error', reject).once('end', () => {
      if (response.statusCode !== 200) reject(new Error(`${url}: ${response.statusCode}: ${text.slice(0, 200)}`));
      else resolve(JSON.parse(text));
    });
  });
  call.end(JSON.stringify(body));
});

// One answer of `tokens` tokens by llama-server, whose cache keeps the prompt: decode steps per second.
export async function decodeByServer(server, prompt, tokens) {
  const r = await post(`${server.url}/completion`, { prompt, n_predict: tokens + 1, cache_prompt: true, id_slot: 0, ignore_eos: true,
    temperature: 0, top_k: 1, samplers: ['top_k'] });
  if (r.timings.predicted_n !== tokens + 1) throw new Error(`llama-server: expected ${tokens + 1} tokens, found ${r.timings.predicted_n}`);
  return (1000 * tokens) / r.timings.predicted_ms;  // the first token comes with the prompt
}
