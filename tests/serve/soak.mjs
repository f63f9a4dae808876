// Soak: many badly behaved clients for a while, then the books must balance. A third of the clients leave in the middle,
// deadlines pass, bodies are malformed, readers are slow, and the server is drained and restarted under load.
//
//   node tests/serve/soak.mjs     prints TAP and a summary; SOAK_SECONDS (60), SOAK_CLIENTS (24), SOAK_SEED; see tools/ci/soak
//
// At the end: no request left, free + cached blocks = all blocks, open files and resident memory as after the warm-up, and
// every 5xx was the client's own doing (its deadline) or fell into the restart. The KV cache is small, so that it is full
// all the time: blocks are evicted, sequences preempted, and resident memory has no room for a slow rise.
import http from 'node:http';
import net from 'node:net';
import {pathToFileURL} from 'node:url';

import {done, equal, evaluation, eventually, ok, openFiles, pause, residentMiB, sanitized, serve, watchdog} from './server.mjs';

const serverOptions = [
  '--max-model-len', '1024', '--kv-cache-memory-bytes', '2621440', '--max-num-seqs', '16', '--max-queue', '64', '--shutdown-timeout', '60',
  '--slow-client-timeout', '2'
];

// Small, fast, reproducible: the same seed makes the same decisions (their timing still differs).
function randomNumbers(seed) {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = Math.imul(state ^ (state >>> 15), state | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
}

const tools = evaluation().filter((task) => task.match === 'tool' && JSON.stringify(task.tools).length < 700);
const schema = {
  type: 'object',
  properties: {a: {type: 'integer', maximum: 9999}, b: {type: 'array', items: {enum: ['x', 'y']}, maxItems: 4}},
  required: ['a', 'b'],
  additionalProperties: false
};

class Soak {
  constructor(seed, clients) {
    this.random = randomNumbers(seed);
    this.clients = clients;
    this.counts = {};
    this.problems = [];
    this.restarting = false;
    this.restarts = 0;
    this.running = false;
    this.agent = new http.Agent({keepAlive: true});
  }

  int(limit) { return Math.floor(this.random() * limit); }
  pick(list) { return list[this.int(list.length)]; }
  count(what) { this.counts[what] = (this.counts[what] ?? 0) + 1; }
  problem(what) {
    this.count('problems');
    if (this.problems.length < 10) this.problems.push(what);
  }

  // A sanitizer can make the model a hundred times slower: fewer clients then, with short questions and answers.
  async measure() {
    const start = Date.now();
    await this.send('/v1/completions', {model: 'mini-r1', prompt: 'Once', max_tokens: 8, ignore_eos: true});
    this.rate = 8000 / Math.max(1, Date.now() - start);
    this.slowly = this.rate < 40;
    if (this.slowly) this.clients = Math.min(this.clients, 6);
    console.log(`# ${this.rate.toFixed(1)} tokens/s alone, ${this.clients} clients`);
  }

  // Tokens of an answer that fit beside the longest prompt of request().
  fit(tokens) {
    return Math.max(1, Math.min(tokens, this.server.info.max_model_len - 260, this.slowly ? Math.round(this.rate) : Infinity));
  }

  text() {
    const words = ['one', 'sea', 'king', 'the', '12', '+', '猫', '🙂', 'apple', 'say'];
    return Array.from({length: 1 + this.int(this.slowly ? 5 : 40)}, () => this.pick(words)).join(' ');
  }

  // A request that a well-meaning program could send, and where.
  request(most = 60) {
    const tokens = this.fit(1 + this.int(most));
    const common = {model: 'mini-r1', temperature: this.pick([0, 0.7, 1]), seed: this.int(1000), stream: this.random() < 0.6};
    const chat =
      (more) => ['/v1/chat/completions', {...common, messages: [{role: 'user', content: this.text()}], max_tokens: tokens, ...more}];
    switch (this.slowly ? 2 + this.int(8) : this.int(10)) {  // the first ones have long prompts or answers
      case 0: return chat({response_format: {type: 'json_schema', json_schema: {name: 'x', schema}}, reasoning_effort: 'none'});
      case 1: return chat({tools: this.pick(tools).tools, tool_choice: this.pick(['auto', 'required'])});
      case 2: return chat({logprobs: true, top_logprobs: 2, n: 2, stream_options: {include_usage: true}});
      case 3: return ['/v1/embeddings', {model: 'mini-r1', input: [this.text(), this.text()]}];
      case 4: return ['/v1/messages', {...common, messages: [{role: 'user', content: this.text()}], max_tokens: tokens}];
      case 5: return ['/v1/responses', {model: 'mini-r1', input: this.text(), max_output_tokens: tokens, stream: common.stream}];
      case 6: return ['/v1/completions', {...common, prompt: [this.text(), this.text()], n: 2, max_tokens: tokens, ignore_eos: true}];
      case 7: return ['/v1/completions', {...common, prompt: this.text(), max_tokens: tokens, echo: true, logprobs: 1}];
      default: return chat({});
    }
  }

  // Sends and gathers: {status, text, complete, code}; `leave` is called with every piece and may end the connection.
  send(where, body, {leave, headers = {}} = {}) {
    return new Promise((resolve) => {
      const result = {status: 0, text: '', complete: false, code: ''};
      const agent = this.random() < 0.5 ? this.agent : false;
      const request = http.request(
        `${this.server.api}${where}`, {method: 'POST', agent, headers: {'content-type': 'application/json', ...headers}}, (response) => {
          result.status = response.statusCode;
          response.setEncoding('utf8');
          response.on('data', (data) => {
            result.text += data;
            leave?.(request, response, result);
          });
          response.on('error', () => {});
          response.on('close', () => {
            result.complete = response.complete;
            resolve(result);
          });
        });
      request.on('error', (error) => {
        result.code = error.code ?? error.message;
        resolve(result);
      });
      leave?.(request, null, result);
      request.end(typeof body === 'string' || body instanceof Uint8Array ? body : JSON.stringify(body));
    });
  }

  // Sends, and counts what came: `kind` when `tolerant` accepts it, 'answered' for a whole answer, else a problem.
  async check(kind, where, body, tolerant, options) {
    const {restarting, restarts} = this;
    const result = await this.send(where, body, options);
    this.judge(kind, result, tolerant, restarting || this.restarting || restarts !== this.restarts);
    if (result.status === 429 || result.status === 503 || result.code) await pause(50 + this.int(100));
    return result;
  }

  judge(kind, result, tolerant, restarted) {
    const where = `${kind}: ${result.status} ${result.code} ${result.text.slice(-200)}`;
    const whole = result.status === 200 && result.complete;
    const errorEvent = /^data: \{"(error|type":"error|type":"response.failed)"/m.test(result.text);
    if (whole && !errorEvent) {
      if (!result.text.startsWith('{') && !/^(event|data): /.test(result.text)) this.problem(`neither JSON nor events: ${where}`);
      return this.count('answered');
    }
    if (result.status === 429) return this.count('429');
    // Not yet answered when the old server went: the client of a rolling restart tries again.
    if (restarted && (result.status === 503 || (result.status === 0 && result.code))) return this.count('refused while restarting');
    if (tolerant(result, errorEvent)) return this.count(kind);
    this.problem(where);
  }

  async good() {
    const [where, body] = this.request();
    const result = await this.check('answered', where, body, () => false);
    if (result.status === 200 && body.stream && where === '/v1/chat/completions' && !result.text.trimEnd().endsWith('[DONE]'))
      this.problem(`no [DONE]: ${result.text.slice(-200)}`);
  }

  async leaver() {
    const [where, body] = this.request(450);
    const at = this.int(3) === 0 ? 0 : this.int(6000), delay = this.int(300), early = this.random() < 0.3;
    const result = await this.send(where, body, {
      leave: (request, response, result) => {
        if (!response && early) setTimeout(() => request.destroy(), delay);
        if (response && result.text.length >= at) request.destroy();
      },
    });
    if (result.status >= 500 && result.status !== 503) this.problem(`left early: ${result.status} ${result.text}`);
    this.count('left early');
  }

  async late() {
    const timeout = 0.005 + this.random() * 0.2;
    await this.check(
      'deadline passed', '/v1/completions',
      {model: 'mini-r1', prompt: this.text(), max_tokens: this.fit(800), ignore_eos: true, stream: this.random() < 0.5, timeout},
      (r, errorEvent) => r.status === 504 || (r.status === 200 && errorEvent && r.text.includes('timeout')));
  }

  async malformed() {
    const body = this.pick([
      '',
      '{',
      'null',
      '[]',
      '"x"',
      '{"messages": 5}',
      '{"messages": [{"role": "user"}]}',
      '{"messages": [{"role": "king", "content": "x"}]}',
      '['.repeat(100000),
      '{"messages":'.repeat(2000),
      Buffer.from([0x7b, 0x22, 0xff, 0xfe, 0x22, 0x3a, 0x31, 0x7d]),
      '{"messages": [], "temperature": 1e999}',
      `{"prompt": "${'x '.repeat(20000)}"}`,
      '{"prompt": "x", "max_tokens": -1}',
      '{"prompt": [99999999]}',
      '{"prompt": "x", "n": 99999}',
      '{"prompt": "x", "guided_regex": "(((((a{1,999}){1,999}){1,999})"}',
      '{"prompt": "x", "logit_bias": {"a": 1}}',
      '{"prompt": "x", "stop": [1]}',
      '{"model": "gpt-9", "prompt": "x"}',
      '{"prompt": "x", "guided_json": {"$ref": "#/nowhere"}}',
    ]);
    await this.check(
      'malformed', this.pick(['/v1/chat/completions', '/v1/completions', '/v1/messages', '/v1/responses']), body,
      (r) => r.status >= 400 && r.status < 500);
  }

  // Bytes that are no HTTP, or stop in the middle.
  raw() {
    const text = this.pick([
      '\0\0\0', 'GET\r\n\r\n', 'POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{"prompt"',
      'POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n', 'GET / HTTP/9.9\r\n\r\n',
      `GET /${'a'.repeat(100000)} HTTP/1.1\r\n\r\n`,
      'POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999\r\n\r\n', '\x16\x03\x01\x02\x00\x01\x00'
    ]);
    return new Promise((resolve) => {
      const {hostname, port} = new URL(this.server.api);
      const socket = net.connect(Number(port), hostname, () => socket.write(text));
      socket.on('data', (data) => {
        if (/^HTTP\/1\.1 5(?!03|05)/.test(data.toString('latin1'))) this.problem(`raw bytes: ${data.toString('latin1').slice(0, 200)}`);
      });
      socket.on('error', () => {});
      socket.on('close', () => {
        this.count('raw bytes');
        resolve();
      });
      setTimeout(() => socket.destroy(), 30 + this.int(200));
    });
  }

  async slow() {
    const result = await this.check(
      'slow', '/v1/completions',
      {model: 'mini-r1', prompt: this.text(), max_tokens: this.fit(60), ignore_eos: true, stream: true, logprobs: 5}, () => false, {
        leave: (request, response) => {
          if (!response || !this.running) return;
          response.pause();
          setTimeout(() => response.resume(), 5 + this.int(30));
        },
      });
    if (result.status === 200) this.count('read slowly');
  }

  async client() {
    while (this.running) {
      const draw = this.random();
      if (draw < 0.30) await this.leaver();
      else if (draw < 0.40) await this.late();
      else if (draw < 0.50) await this.malformed();
      else if (draw < 0.54) await this.raw();
      else if (draw < 0.60) await this.slow();
      else await this.good();
    }
  }

  begin() {
    this.running = true;
    this.work = Promise.all(Array.from({length: this.clients}, () => this.client()));
  }
  // All clients finish what they do; then the figures of a quiet server.
  async quiet() {
    this.running = false;
    await this.work;
    this.agent.destroy();
    await eventually(async () => (await this.server.debug()).length === 0, 20);
    await eventually(async () => (await this.server.metrics()).http_connections <= 1, 10);  // its own
    await pause(100);
    return {
      requests: (await this.server.debug()).length,
      metrics: await this.server.metrics(),
      resident: residentMiB(this.server),
      files: openFiles(this.server)
    };
  }

  async restart() {
    const {port} = new URL(this.server.api);
    this.restarting = true;
    const old = this.server;
    const ended = await old.stop();
    this.server = await serve([...serverOptions, '--port', port, '--admin-port', '0'], {ports: false});
    this.restarts++;
    this.restarting = false;
    equal(ended, {code: 0, signal: null}, 'a server that is drained under load ends with exit code 0');
    equal(old.err, '', 'and has no complaint');
  }

  async run(seconds) {
    this.server = await serve(serverOptions);
    await this.measure();
    this.begin();
    await pause(seconds * 250);
    await this.restart();
    await pause(seconds * 350);
    const warm = await this.quiet();
    this.begin();
    await pause(seconds * 400);
    const end = await this.quiet();

    console.log(`# ${JSON.stringify(this.counts)}`);
    console.log(
      `# resident ${warm.resident.toFixed(0)} -> ${end.resident.toFixed(0)} MiB, open files ${warm.files} -> ${end.files}, generated ${
        end.metrics.generation_tokens_total} tokens, ` +
      `preempted ${end.metrics.num_preemptions_total}, aborted ${end.metrics.num_aborted_requests_total}, clients gone ${
        end.metrics.http_client_closed_total}`);
    equal(this.problems, [], 'every answer was right, and no 5xx that the client did not cause');
    const kinds = ['answered', 'left early'];
    if (!this.slowly) kinds.push('deadline passed', 'malformed', 'raw bytes', 'read slowly');
    equal(kinds.filter((kind) => !this.counts[kind]), [], 'every kind of client was there');
    equal(end.requests, 0, '/debug/requests is empty');
    equal(
      [end.metrics.kv_cache_usage_perc, end.metrics.num_requests_running, end.metrics.num_requests_waiting], [0, 0, 0],
      'free and cached blocks are all blocks');
    ok(end.metrics.num_aborted_requests_total > 0 && end.metrics.http_client_closed_total > 0, 'the server saw clients leave');
    equal(end.files, warm.files, 'open files are as after the warm-up');
    ok(
      sanitized || end.resident <= warm.resident * 1.15 + 8,
      `resident memory is as after the warm-up${sanitized ? ' # SKIP sanitizer' : ''}`, `${warm.resident} -> ${end.resident} MiB`);
    equal(await this.server.stop(), {code: 0, signal: null}, 'the server ends with exit code 0');
    equal(this.server.err, '', 'without a complaint');
  }
}

export async function soak(seconds) {
  watchdog(seconds + 120);
  const seed = Number(process.env.SOAK_SEED || Date.now() % 1000000);
  console.log(`# ${seconds} s, SOAK_SEED=${seed}`);
  await new Soak(seed, Number(process.env.SOAK_CLIENTS || 24)).run(seconds);
  done();
}

if (import.meta.url === pathToFileURL(process.argv[1]).href) await soak(Number(process.env.SOAK_SECONDS || 60));
