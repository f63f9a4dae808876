// `dougong bench serve` against a small server whose answers are known.
import {spawnSync} from 'node:child_process';
import fs from 'node:fs';
import http from 'node:http';
import https from 'node:https';
import path from 'node:path';

import {done, equal, ok, program, root, start, temporaryFolder, userError} from './helpers.mjs';

const folder = temporaryFolder();
const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

// --- the server: what it does depends on the model's name
const seen = {requests: [], open: 0, most: 0, left: 0, keys: new Set()};
const event = (value) => `data: ${typeof value === 'string' ? value : JSON.stringify(value)}\n\n`;
async function answer(request, response) {
  let text = '';
  for await (const piece of request) text += piece;
  seen.keys.add(request.headers.authorization ?? '');
  if (request.url === '/v1/models') return response.end(JSON.stringify({data: [{id: 'plain'}]}));
  const body = text ? JSON.parse(text) : {};
  if (request.url === '/tokenize') {
    if (body.model === 'words') return response.writeHead(404).end('{}');
    return response.end(JSON.stringify({tokens: body.prompt.split(' ').map((_, i) => 1000 + i)}));
  }
  const chat = request.url === '/v1/chat/completions';
  seen.requests.push({...body, path: request.url});
  seen.most = Math.max(seen.most, ++seen.open);
  response.on('close', () => {
    seen.open--;
    if (!response.writableFinished) seen.left++;
  });
  const index = seen.requests.length;
  const model = body.model;
  if (model === 'broken' || (model === 'half' && index % 2)) {
    return response.writeHead(500).end(JSON.stringify({error: {message: 'out of\npaper'}}));
  }
  if (model === 'html') return response.end('<html></html>');
  response.writeHead(200, {'content-type': 'text/event-stream; charset=utf-8'});
  const token = (word) => event(chat ? {choices: [{delta: {content: word}, finish_reason: null}]} : {choices: [{text: word, finish_reason: null}]});
  if (model === 'garbage') return response.end(token('a') + 'data: {"choices": [\n\n');
  if (model === 'lines') return response.end('hello\n\n');
  if (model === 'cut') return response.end(token('a') + token('b'));
  if (model === 'dies') {
    response.write(token('a'));
    return setTimeout(() => response.destroy(), 20);
  }
  if (model === 'hangs') return response.write(token('a'));
  if (model === 'refuses') return response.end(token('a') + event({error: {message: 'no blocks left'}}) + event('[DONE]'));
  if (chat) response.write(': comment\n\n' + event({choices: [{delta: {role: 'assistant', content: ''}, finish_reason: null}]}));
  if (model === 'together') {  // nobody gets an answer before all have asked
    const all = seen.all ??= {};
    all.come ??= new Promise((resolve) => { all.resolve = resolve; });
    if (seen.open === 1200) all.resolve();
    await all.come;
  }
  if (model === 'slow start') await pause(200);
  for (let i = 0; i < body.max_tokens && !response.destroyed; i++) {
    if (model === 'steady') await pause(20);
    const bytes = Buffer.from(token('字'));
    response.write(bytes.subarray(0, 20));  // events arrive in pieces
    if (model === 'plain') await pause(0);
    response.write(bytes.subarray(20));
    if (model === 'long') await pause(5);
  }
  response.write(event({choices: [chat ? {delta: {}, finish_reason: 'length'} : {text: '', finish_reason: 'length'}]}));
  const prompt = body.prompt ?? body.messages[0].content;
  const count = Array.isArray(prompt) ? prompt.length : prompt.split(' ').length;
  if (body.stream_options?.include_usage && model !== 'no usage')
    response.write(event({choices: [], usage: {prompt_tokens: count + 1, completion_tokens: body.max_tokens}}));
  response.end(event('[DONE]'));
}
const listen = (server, where) => new Promise((resolve) => server.listen(where, () => resolve(server)));
const server = await listen(http.createServer(answer), {port: 0, host: '127.0.0.1', backlog: 4096});
const url = `http://127.0.0.1:${server.address().port}`;

// Runs the program while this process serves.
async function bench(args, options = {}) {
  const p = start(program, ['bench', 'serve', ...(options.url === null ? [] : ['--url', options.url ?? url]), ...args], options.env);
  seen.requests = [];
  seen.most = seen.left = 0;
  if (options.interrupt_ms) setTimeout(() => p.child.kill('SIGINT'), options.interrupt_ms);
  const {code, signal} = await p.ended;
  const result = {code, signal, out: p.out, err: p.err, value: {}};
  try {
    result.value = JSON.parse(p.out);
  } catch { /* the table */ }
  return result;
}
const small = ['--num-prompts', '6', '--random-input-len', '10', '--random-output-len', '5'];

// --- counts
const plain = await bench([...small, '--json', '--result-file', path.join(folder, '结果.json')]);
const v = plain.value;
equal([plain.code, v.completed, v.failed, v.total_input_tokens, v.total_output_tokens, v.model_id, v.errors, plain.err],
  [0, 6, 0, 66, 30, 'plain', {}, ''], 'counts of the server');
const keys = ['duration', 'completed', 'failed', 'total_input_tokens', 'total_output_tokens', 'request_throughput', 'output_throughput',
  'total_token_throughput', ...['ttft', 'tpot', 'itl', 'e2el'].flatMap((f) => ['mean', 'median', 'std', 'p99'].map((k) => `${k}_${f}_ms`))];
equal(keys.filter((key) => typeof v[key] !== 'number' || !Number.isFinite(v[key])), [], 'keys of vllm bench serve');
equal(JSON.parse(fs.readFileSync(path.join(folder, '结果.json'), 'utf8')), v, '--result-file');
ok(Math.abs(v.output_throughput - 30 / v.duration) < 1e-6 && Math.abs(v.request_throughput - 6 / v.duration) < 1e-6, 'rates are counts by duration');
ok(v.mean_ttft_ms > 0 && v.mean_ttft_ms <= v.mean_e2el_ms && v.median_e2el_ms <= v.p99_e2el_ms, 'times are in order', plain.out);
ok(seen.requests.every((r) => r.stream && r.ignore_eos === true && r.max_tokens === 5 && r.temperature === 0 && Array.isArray(r.prompt) &&
  r.prompt.length === 10 && r.prompt.every((id) => id >= 1000)), 'random prompts are token ids of the server', JSON.stringify(seen.requests[0]));
const prompts = (requests) => requests.map((r) => r.prompt ?? r.messages);
const first = prompts(seen.requests);
await bench([...small, '--json', '--seed', '0', '--concurrency', '1']);
equal(prompts(seen.requests).map(String).sort(), first.map(String).sort(), 'the same seed, the same prompts');
equal(seen.most, 1, '--concurrency 1');
await bench([...small, '--seed', '7', '--random-prefix-len', '4', '--no-ignore-eos', '--temperature', '0.5']);
ok(seen.requests.every((r) => r.prompt.length === 14 && String(r.prompt.slice(0, 4)) === String(seen.requests[0].prompt.slice(0, 4)) &&
  r.ignore_eos === undefined && r.temperature === 0.5), 'prefix, temperature, --no-ignore-eos');
ok(new Set(seen.requests.map((r) => String(r.prompt))).size === 6, 'prompts differ behind the prefix');
const words = await bench([...small, '--model', 'words', '--json']);
equal([words.value.total_input_tokens, typeof seen.requests[0].prompt, seen.requests[0].prompt.split(' ').length], [66, 'string', 10],
  'words where there is no /tokenize');
const uncounted = await bench([...small, '--model', 'no usage', '--json']);
equal([uncounted.value.total_input_tokens, uncounted.value.total_output_tokens], [60, 30], 'without usage events are counted');
const chat = await bench([...small, '--endpoint', '/v1/chat/completions', '--model', 'slow start', '--json']);
equal([chat.value.completed, chat.value.total_output_tokens, seen.requests[0].messages?.[0].role], [6, 30, 'user'], 'chats');
ok(chat.value.mean_ttft_ms >= 199, 'the event with the role is not the first token', chat.value.mean_ttft_ms);
const steady = await bench(['--num-prompts', '3', '--random-output-len', '10', '--model', 'steady', '--json']);
const {median_itl_ms: itl, mean_tpot_ms: tpot} = steady.value;
ok(itl >= 15 && tpot >= 15 && Math.abs(itl - tpot) < 20 && steady.value.mean_e2el_ms >= 180, 'times between tokens', steady.out);
const table = await bench(small);
ok(/^completed requests +6\n/.test(table.out) && /\ntime to first token +[\d.]+ +[\d.]+ +[\d.]+ +[\d.]+\n/.test(table.out) && table.code === 0,
  'a table for people', table.out);
await bench([...small, '--api-key', 'sk-secret']);
ok(seen.keys.has('Bearer sk-secret'), '--api-key');
const paced = await bench(['--num-prompts', '20', '--request-rate', '50', '--json']);
ok(paced.value.duration > 0.1 && paced.value.request_rate === 50 && paced.value.completed === 20, '--request-rate', paced.out);
const many = await bench(['--num-prompts', '1200', '--random-output-len', '40', '--model', 'together', '--timeout', '60', '--json']);
equal([many.value.completed, many.value.failed, many.value.total_output_tokens], [1200, 0, 48000], '1200 streams', many.out);
equal(seen.most, 1200, 'at the same time');

// --- files
const file = path.join(folder, 'prompts 问.jsonl');
fs.writeFileSync(file, '{"prompt": "a \\"b\\""}\n\n{"prompt": [1, 2], "max_tokens": 3}\n');
const fromFile = await bench(['--dataset', file, '--num-prompts', '4', '--concurrency', '1', '--json']);
equal([fromFile.value.completed, prompts(seen.requests), seen.requests.map((r) => r.max_tokens), seen.requests[0].ignore_eos],
  [4, ['a "b"', [1, 2], 'a "b"', [1, 2]], [64, 3, 64, 3], undefined], 'lines of a file, in turn');
const share = path.join(folder, 'share.json');
fs.writeFileSync(share, JSON.stringify([{conversations: [{from: 'system', value: 'x'}, {from: 'human', value: 'hi'}, {from: 'gpt', value: 'y'}]}]));
await bench(['--dataset', share, '--endpoint', '/v1/chat/completions']);
equal(seen.requests.map((r) => r.messages), [[{role: 'user', content: 'hi'}]], 'ShareGPT');
for (const [content, parts] of [['{"prompt": 5}\n', ['line 1.prompt: expected a text']], ['{"prompt": "a"}\n{]\n', ['line 2: not valid JSON']],
  ['{"messages": [{"role": "user", "content": "a"}]}\n', ['line 1: has messages; use --endpoint /v1/chat/completions']],
  ['\n', ['expected at least one record']]]) {
  fs.writeFileSync(file, content);
  userError(await bench(['--dataset', file]), [file, ...parts], `a file: ${parts[0]}`);
}

// --- failures
const kinds = {broken: ['http_500', 'out of paper'], html: ['malformed', 'text/event-stream'], garbage: ['malformed', 'expected a JSON object'],
  lines: ['malformed', 'expected a line \\"data: ...\\"'], cut: ['closed', 'without data: [DONE]'], dies: ['closed', 'events'],
  refuses: ['error_event', 'no blocks left']};
for (const [name, [kind, text]] of Object.entries(kinds)) {
  const r = await bench([...small, '--model', name, '--json']);
  ok(r.code === 1 && r.value.failed === 6 && r.value.completed === 0 && r.value.errors[kind] === 6 &&
    JSON.stringify(r.value.error_examples[kind]).includes(text) && !r.value.error_examples[kind].includes('\n'), `a server that is ${name}: ${kind}`, r.out + r.err);
}
const half = await bench([...small, '--model', 'half', '--concurrency', '1']);
ok(half.code === 0 && /failed requests +3\n/.test(half.out) && half.out.includes('3 failed (http_500): out of paper\n'), 'some fail', half.out);
const hangs = await bench([...small, '--model', 'hangs', '--timeout', '0.3', '--json']);
ok(hangs.value.errors?.timeout === 6 && hangs.value.error_examples.timeout.includes('--timeout'), '--timeout', hangs.out);
const refused = await bench([], {url: 'http://127.0.0.1:1'});
userError(refused, ['--url http://127.0.0.1:1: cannot connect: Connection refused', 'start the server'], 'nobody listens');
const later = await bench([...small, '--model', 'm', '--endpoint', '/v1/chat/completions', '--json'], {url: 'http://127.0.0.1:1'});
ok(later.code === 1 && later.value.errors.connect === 6 && later.value.error_examples.connect.includes('Connection refused'),
  'nobody listens to the requests', later.out + later.err);
userError(await bench([], {url: 'ftp://x'}), ['--url: expected http://host[:port]', 'found "ftp://x"'], 'a wrong --url');
userError(await bench([], {url: 'http://no-such-host.invalid'}), ['cannot find the host no-such-host.invalid'], 'an unknown host');
userError(await bench(['--request-rate', '0']), ['--request-rate: expected', 'found "0"'], 'a wrong --request-rate');
userError(await bench(['--endpoint', '/v2']), ['--endpoint: expected'], 'a wrong --endpoint');
const other = start(program, ['bench', 'sevre']);
userError({...await other.ended, out: other.out, err: other.err}, ['expected `bench machine` or `bench serve`, found "sevre"'], 'a wrong argument');

// --- clients that leave, clients that read slowly, Ctrl-C
const leaving = await bench(['--num-prompts', '40', '--random-output-len', '50', '--model', 'long', '--disconnect-fraction', '0.5', '--json']);
ok(leaving.value.disconnected > 8 && leaving.value.disconnected < 32 && leaving.value.completed === 40 - leaving.value.disconnected &&
  leaving.value.failed === 0, '--disconnect-fraction', leaving.out);
await pause(100);
ok(seen.left >= leaving.value.disconnected - 8, 'the server sees clients leave', `${seen.left} of ${leaving.value.disconnected}`);
const slow = await bench(['--num-prompts', '4', '--random-output-len', '16', '--slow-fraction', '1', '--json']);
ok(slow.value.completed === 4 && slow.value.duration > 1, '--slow-fraction', slow.out);
const stopped = await bench(['--num-prompts', '50', '--concurrency', '10', '--random-output-len', '100', '--model', 'steady', '--json'], {interrupt_ms: 2600});
ok(stopped.code === 130 && stopped.value.interrupted && stopped.value.cancelled > 0 && stopped.value.completed + stopped.value.cancelled === 50,
  'Ctrl-C reports what was measured', stopped.out + stopped.err);

// --- other ways to the server
const socket = path.join(folder, '套 api.sock');
const unix = await listen(http.createServer(answer), {path: socket});
equal((await bench([...small, '--json'], {url: `unix:${socket}`})).value.completed, 6, 'a Unix socket');
userError(await bench(small, {url: `unix:${socket}.not`}), ['cannot connect: No such file'], 'no such socket');
userError(await bench(small, {url: `unix:/${'x'.repeat(200)}`}), ['at most 100 bytes, found 201'], 'a long socket path');
const [key, cert] = ['key.pem', 'cert.pem'].map((name) => path.join(folder, name));
const made = spawnSync('openssl', ['req', '-x509', '-newkey', 'rsa:2048', '-nodes', '-keyout', key, '-out', cert, '-days', '2', '-subj', '/CN=localhost',
  '-addext', 'subjectAltName=DNS:localhost,IP:127.0.0.1']);
if (made.status === 0) {
  const tls = await listen(https.createServer({key: fs.readFileSync(key), cert: fs.readFileSync(cert)}, answer), {port: 0, host: '127.0.0.1'});
  const secure = `https://127.0.0.1:${tls.address().port}`;
  userError(await bench(small, {url: secure}), ['cannot connect', /certificate/], 'an unknown certificate');
  equal((await bench([...small, '--insecure', '--json'], {url: secure})).value.completed, 6, '--insecure');
  equal((await bench([...small, '--json'], {url: secure, env: {SSL_CERT_FILE: cert}})).value.completed, 6, 'a known certificate');
  tls.close();
} else {
  ok(true, 'TLS # SKIP no openssl program');
}
unix.close();
server.close();
server.closeAllConnections?.();
done();
