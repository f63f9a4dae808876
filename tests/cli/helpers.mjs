// What the script tests share: TAP output, running the program under test, and editing safetensors files.
import {spawn, spawnSync} from 'node:child_process';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';

export const root = path.resolve(path.dirname(new URL(import.meta.url).pathname), '../..');
export const program = process.env.DOUGONG_BIN || path.join(root, 'build/release/bin/dougong');
export const model = path.join(root, 'models/mini-r1');

let count = 0, failed = 0;

export function ok(condition, what, detail = '') {
  count++;
  if (!condition) failed++;
  console.log(`${condition ? 'ok' : 'not ok'} ${count} - ${what}`);
  if (!condition && detail !== '') console.log(String(detail).split('\n').map((line) => `#   ${line}`).join('\n'));
}

export function equal(got, expected, what) {
  const [a, b] = [JSON.stringify(got), JSON.stringify(expected)];
  ok(a === b, what, `expected ${b}\nfound    ${a}`);
}

export function done() {
  console.log(`1..${count}`);
  process.exitCode = failed ? 1 : 0;
}

// Environment without the settings of whoever runs the tests.
export function clean(extra = {}) {
  const env = {...process.env};
  for (const name of Object.keys(env)) if (name.startsWith('DOUGONG_')) delete env[name];
  return {...env, NO_COLOR: '', ...extra};
}

// Runs the program to its end. `options`: input, env, cwd, timeout.
export function run(args, options = {}) {
  const r = spawnSync(program, args, {
    input: options.input ?? '', env: clean(options.env), cwd: options.cwd ?? root, timeout: options.timeout ?? 300000,
    maxBuffer: 1 << 28, encoding: 'utf8',
  });
  return {code: r.status, signal: r.signal, out: r.stdout ?? '', err: r.stderr ?? '', error: r.error};
}

// Starts the program (or another one) and collects its output; `waitFor` resolves when the output since the last wait matches.
export function start(command, args, env = {}) {
  const child = spawn(command, args, {env: clean(env), cwd: root});
  const state = {child, out: '', err: '', from: 0};
  child.stdout.on('data', (data) => { state.out += data; });
  child.stderr.on('data', (data) => { state.err += data; });
  state.ended = new Promise((resolve) => child.on('close', (code, signal) => resolve({code, signal})));
  state.waitFor = async (pattern, seconds = 120) => {
    for (const end = Date.now() + seconds * 1000; Date.now() < end;) {
      const found = pattern.exec(state.out.slice(state.from));
      if (found) {
        state.from += found.index + found[0].length;
        return found;
      }
      await new Promise((resolve) => setTimeout(resolve, 20));
    }
    return null;
  };
  return state;
}

export function temporaryFolder(name = 'dougong test 测试 ') {
  const folder = fs.mkdtempSync(path.join(os.tmpdir(), name));
  process.on('exit', () => fs.rmSync(folder, {recursive: true, force: true}));
  return folder;
}

// A user error: exit code 2, nothing on standard output, one line on standard error that holds all of `parts`.
export function userError(result, parts, what) {
  const one = result.err.endsWith('\n') && result.err.indexOf('\n') === result.err.length - 1;
  const missing = parts.filter((part) => !(part instanceof RegExp ? part.test(result.err) : result.err.includes(part)));
  ok(result.code === 2 && one && missing.length === 0, what,
    `exit code ${result.code} ${result.signal ?? ''}, missing ${missing.join(' | ')}\nstderr: ${result.err.slice(0, 1000)}`);
}

// --- safetensors

export function readSafetensors(file) {
  const bytes = fs.readFileSync(file);
  const length = Number(bytes.readBigUInt64LE(0));
  return {header: JSON.parse(bytes.subarray(8, 8 + length).toString()), data: bytes.subarray(8 + length)};
}

export function writeSafetensors(file, {header, data}) {
  let text = Buffer.from(JSON.stringify(header));
  text = Buffer.concat([text, Buffer.alloc((8 - (text.length % 8)) % 8, ' ')]);
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(text.length));
  fs.writeFileSync(file, Buffer.concat([length, text, data]));
}

// Removes a tensor and its bytes, so that the rest is a valid file again.
export function withoutTensor({header, data}, name) {
  const [from, to] = header[name].data_offsets;
  const out = {};
  for (const [key, value] of Object.entries(header)) {
    if (key === name) continue;
    const shifted = structuredClone(value);
    if (shifted.data_offsets && shifted.data_offsets[0] >= to) shifted.data_offsets = shifted.data_offsets.map((x) => x - (to - from));
    out[key] = shifted;
  }
  return {header: out, data: Buffer.concat([data.subarray(0, from), data.subarray(to)])};
}
