// What the server tests share: npm packages, a server of their own on free ports, requests without a client library.
//
// A server is started once per file and always killed: when the process exits, and by a watchdog when the file hangs.
import {spawn, spawnSync} from 'node:child_process';
import fs from 'node:fs';
import http from 'node:http';
import {createRequire} from 'node:module';
import path from 'node:path';

import {clean, model, ok, program, root} from '../cli/helpers.mjs';

export {clean, done, equal, model, ok, program, root, run, temporaryFolder, userError} from '../cli/helpers.mjs';

const npm = createRequire(path.join(root, 'build/npm/package.json'));
export const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

// A package of tools/npm/package.json. Without them nothing is tested, so their absence is a failure.
export function load(name) {
  try {
    return npm(name);
  } catch (error) {
    ok(false, `npm package ${name} is there`, `${error.message.split('\n')[0]}; run tools/setup`);
    process.exit(1);
  }
}

const servers = new Set();
const kill = () => {
  for (const child of servers) child.kill('SIGKILL');
};
process.on('exit', kill);
for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP']) process.on(signal, () => process.exit(1));
process.on('uncaughtException', (error) => {
  ok(false, 'the test runs to its end', error?.stack ?? error);
  process.exit(1);
});

// A sanitizer build is slower and keeps freed memory: limits of time are multiplied, and resident memory says nothing.
const binary = fs.existsSync(program) ? fs.readFileSync(program) : Buffer.alloc(0);
export const sanitized = binary.includes('__asan_init') || binary.includes('__tsan_init');
export const slowdown = sanitized ? 10 : 1;

// Ends the test file when it hangs. ThreadSanitizer makes the model a hundred times slower: there tools/ci/soak stands for all.
export function watchdog(seconds) {
  if (binary.includes('__tsan_init') && !process.argv[1].endsWith('/soak.mjs')) {
    console.log('ok 1 - a server with ThreadSanitizer # SKIP too slow for whole answers; tools/ci/soak runs it\n1..1');
    process.exit(0);
  }
  setTimeout(() => {
    ok(false, `the test ends within ${seconds * slowdown} s`);
    process.exit(1);
  }, seconds * slowdown * 1000).unref();
}

// Calls `check` until it gives a true value, which is returned; undefined after `seconds`.
export async function eventually(check, seconds = 10) {
  for (const end = Date.now() + seconds * slowdown * 1000; Date.now() < end; await pause(10)) {
    const value = await check();
    if (value) return value;
  }
}

// Starts `dougong serve mini-r1`. The object has: api and admin (addresses), info (the JSON line), child, err (its standard
// error so far), ended (a promise of {code, signal}).
export async function serve(args = [], {env = {}, ports = true} = {}) {
  const where = ports ? ['--port', '0', '--admin-port', '0'] : [];
  const child = spawn(program, ['serve', model, ...where, '--json', '--quiet', ...args], {env: clean(env), cwd: root});
  servers.add(child);
  const server = {child, err: '', out: ''};
  server.ended = new Promise((resolve) => child.on('close', (code, signal) => {
    servers.delete(child);
    resolve({code, signal});
  }));
  child.stderr.on('data', (data) => {
    server.err += data;
  });
  child.stdout.on('data', (data) => {
    server.out += data;
  });
  let over = false;
  server.ended.then(() => {
    over = true;
  });
  await eventually(() => over || server.out.includes('\n'), 60);
  if (!server.out.includes('\n')) throw new Error(`the server did not start: ${server.err}`);
  server.info = JSON.parse(server.out);
  server.api = server.info.api;
  server.admin = server.info.admin;
  server.stop = (signal = 'SIGTERM') => {
    child.kill(signal);
    return server.ended;
  };
  server.debug = async () => (await (await fetch(`${server.admin}/debug/requests`)).json()).requests;
  server.metrics = async () => readMetrics(await (await fetch(`${server.admin}/metrics`)).text());
  return server;
}

// Prometheus text as {name: value}, summed over labels; histograms by _count and _sum only.
export function readMetrics(text) {
  const values = {};
  for (const line of text.split('\n')) {
    const found = /^([a-zA-Z_:][\w:]*)(?:\{.*\})? (\S+)$/.exec(line);
    if (!found || found[1].endsWith('_bucket')) continue;
    const name = found[1].replace(/^vllm:/, '');
    values[name] = (values[name] ?? 0) + Number(found[2]);
  }
  return values;
}

export const residentMiB = (server) => Number(/VmRSS:\s+(\d+)/.exec(fs.readFileSync(`/proc/${server.child.pid}/status`, 'utf8'))[1]) / 1024;
export const openFiles = (server) => fs.readdirSync(`/proc/${server.child.pid}/fd`).length;

// POSTs JSON (or text, or bytes) and returns {status, headers, body, text}; body is undefined when it is no JSON.
export async function post(url, body, headers = {}) {
  const raw = typeof body === 'string' || body instanceof Uint8Array;
  const answer = await fetch(url, {
    method: 'POST',
    headers: {'content-type': 'application/json', ...headers},
    body: raw ? body : JSON.stringify(body),
  });
  const text = await answer.text();
  let json;
  try {
    json = JSON.parse(text);
  } catch {
  }
  return {status: answer.status, headers: answer.headers, text, body: json};
}

// A streamed request over a connection of its own: resolves with its status (or its error), `text` grows, `ended` resolves
// with {complete: whether the answer came to its proper end}.
export function openStream(url, body, {headers = {}, options = {}} = {}) {
  return new Promise((resolve) => {
    const stream = {text: '', status: 0};
    let finish;
    stream.ended = new Promise((end) => {
      finish = end;
    });
    const request =
      http.request(url, {method: 'POST', agent: false, headers: {'content-type': 'application/json', ...headers}, ...options});
    stream.abort = () => request.destroy();
    request.on('error', (error) => {
      stream.error = error;
      finish({complete: false});
      resolve(stream);
    });
    request.on('response', (response) => {
      stream.status = response.statusCode;
      stream.response = response;
      response.setEncoding('utf8');
      response.on('data', (data) => {
        stream.text += data;
      });
      response.on('close', () => finish({complete: response.complete}));
      response.on('error', () => {});
      resolve(stream);
    });
    request.end(typeof body === 'string' ? body : JSON.stringify(body));
  });
}

// The data of a stream's events, parsed, without [DONE].
export function events(text) {
  return text.split('\n\n')
    .map((block) => block.split('\n').filter((line) => line.startsWith('data: ')).map((line) => line.slice(6)).join('\n'))
    .filter((data) => data !== '' && data !== '[DONE]')
    .map((data) => JSON.parse(data));
}
export const streamedText = (text) =>
  events(text).map((event) => event.choices?.[0]?.delta?.content ?? event.choices?.[0]?.text ?? '').join('');

export const chatBody = (text, more = {}) => ({model: 'mini-r1', messages: [{role: 'user', content: text}], ...more});
// An answer that goes on for as many tokens as one likes.
export const longBody = (tokens, more = {}) =>
  ({model: 'mini-r1', prompt: 'Once upon a time', max_tokens: tokens, ignore_eos: true, temperature: 1, stream: true, ...more});

export const has = (command) => spawnSync('which', [command]).status === 0;

// The questions of mini-r1's own evaluation.
export const evaluation = () =>
  fs.readFileSync(path.join(model, 'eval/mini_eval.jsonl'), 'utf8').trim().split('\n').map((line) => JSON.parse(line));
