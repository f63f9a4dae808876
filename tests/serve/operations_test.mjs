// What an operator does with `dougong serve`: probes, metrics read by a real Prometheus, aborts, drains, signals, keys, TLS,
// Unix sockets, the access log, limits; and what a loaded server promises: determinism, a thousand streams.
import {execFileSync, spawn, spawnSync} from 'node:child_process';
import fs from 'node:fs';
import https from 'node:https';
import net from 'node:net';
import path from 'node:path';

import {done, equal, eventually, has, ok, pause, residentMiB, run, sanitized, serve, slowdown, userError, watchdog} from './server.mjs';
import {chatBody, events, longBody, model, openStream, post, streamedText, temporaryFolder} from './server.mjs';

watchdog(180);
const folder = temporaryFolder();
const get = async (url, headers = {}) => {
  const answer = await fetch(url, {headers});
  const text = await answer.text();
  return {status: answer.status, text, body: text.startsWith('{') ? JSON.parse(text) : undefined};
};
const first = (stream) => eventually(() => stream.text.includes('data: '), 10);

const server = await serve(['--access-log', path.join(folder, 'access.log')]);
const completions = `${server.api}/v1/completions`;

// --- Prometheus, in the background until its figures are asked for
let prometheus;
async function startPrometheus() {
  const config = path.join(folder, 'prometheus.yml');
  fs.writeFileSync(
    config,
    `global: {scrape_interval: 250ms}\nscrape_configs:\n- job_name: dougong\n  static_configs: [{targets: ['${
      new URL(server.admin).host}']}]\n`);
  const free = await new Promise((resolve) => {
    const probe = net.createServer().listen(0, '127.0.0.1', () => {
      const {port} = probe.address();
      probe.close(() => resolve(port));
    });
  });
  prometheus = {url: `http://127.0.0.1:${free}`, log: ''};
  prometheus.child = spawn(
    'prometheus',
    [
      `--config.file=${config}`, `--storage.tsdb.path=${path.join(folder, 'tsdb')}`, `--web.listen-address=127.0.0.1:${free}`,
      '--log.level=warn'
    ],
    {stdio: ['ignore', 'ignore', 'pipe']});
  prometheus.child.stderr.on('data', (data) => {
    prometheus.log += data;
  });
  prometheus.child.on('error', (error) => {
    prometheus.log += error;
  });
  process.on('exit', () => prometheus.child.kill('SIGKILL'));
}
async function query(text) {
  try {
    const {data} = await (await fetch(`${prometheus.url}/api/v1/query?query=${encodeURIComponent(text)}`)).json();
    return data.result.length > 0 ? Number(data.result[0].value[1]) : undefined;
  } catch {
    return undefined;
  }
}
await startPrometheus();

// --- probes
for (const probe of ['health', 'livez', 'ping', 'ready', 'readyz']) {
  const [api, admin] = [await get(`${server.api}/${probe}`), await get(`${server.admin}/${probe}`)];
  equal([api.status, api.body, admin.status], [200, {status: 'ok'}, 200], `/${probe} on both ports`);
}
const version = run(['version', '--json']);
equal((await get(`${server.api}/version`)).body.version, JSON.parse(version.out).version, '/version is the program\'s');
equal((await get(`${server.api}/load`)).body, {server_load: 0}, '/load of an idle server');
equal(
  [
    (await get(`${server.api}/metrics`)).status, (await get(`${server.api}/debug/requests`)).status,
    (await post(`${server.api}/admin/drain`, {})).status
  ],
  [404, 404, 404], 'the API port has no admin routes');

// --- deadline
{
  const late = await post(completions, longBody(3000, {stream: false, timeout: 0.05}));
  equal([late.status, late.body.error.code, late.body.error.message.includes('deadline')], [504, 'timeout', true], 'timeout 0.05: 504');
}

// --- prefix cache
{
  const body = chatBody(`${'The quick brown fox jumps over the lazy dog. '.repeat(20)} How many dogs?`, {temperature: 0, max_tokens: 8});
  const cached = async () => {
    const {body: answer} = await post(`${server.api}/v1/chat/completions`, body);
    return [answer.usage.prompt_tokens_details.cached_tokens, answer.usage.prompt_tokens, answer.choices[0].message.reasoning_content];
  };
  const [cold, tokens, text] = await cached();
  const [warm, , again] = await cached();
  ok(
    cold < 16 && warm >= tokens - 32 && warm % 16 === 0 && again === text,
    'the second time the prompt comes from the prefix cache, with the same text', `${cold} ${warm} of ${tokens}`);
  equal((await post(`${server.admin}/admin/reset_prefix_cache`, {})).body, {reset: true}, '/admin/reset_prefix_cache');
  equal((await cached())[0], 0, 'and the cache is empty');
  const salted = await post(`${server.api}/v1/chat/completions`, {...body, cache_salt: 'mine'});
  equal(salted.body.usage.prompt_tokens_details.cached_tokens, 0, 'cache_salt parts the cache');
}

// --- a thousand streams at once
{
  const count = 1000;
  const before = residentMiB(server), connectionsBefore = (await server.metrics()).http_connections;
  let peak = 0, most = 0, over = false;
  const sampler = (async () => {
    while (!over) {
      peak = Math.max(peak, residentMiB(server));
      most = Math.max(most, (await server.metrics()).http_connections);
      await pause(50);
    }
  })();
  const start = Date.now();
  // Everybody connects, then all ask in the same moment: no machine is too fast for them to be there together.
  const {hostname, port} = new URL(server.api);
  const sockets = await Promise.all(Array.from({length: count}, () => new Promise((resolve) => {
    const socket = net.connect(Number(port), hostname, () => resolve(socket)).on('error', () => resolve(socket));
  })));
  const streams = await Promise.all(sockets.map((socket, i) => new Promise((resolve) => {
    let text = '';
    socket.on('data', (data) => { text += data; });
    socket.on('close', () => resolve(text));
    const body = JSON.stringify(longBody(3, {seed: i, prompt: `Story ${i}`}));
    const headers = ['POST /v1/completions HTTP/1.1', `Host: ${hostname}`, 'Connection: close', `Content-Length: ${body.length}`];
    socket.write(`${headers.join('\r\n')}\r\n\r\n${body}`);
  })));
  over = true;
  await sampler;
  const whole = (text) => text.startsWith('HTTP/1.1 200 ') && text.includes('"finish_reason":"length"') &&
    /data: \[DONE\]\n\n\r\n0\r\n\r\n$/.test(text);
  const failed = streams.filter((text) => !whole(text)).length;
  equal(failed, 0, `${count} concurrent SSE streams all complete`);
  ok(most - connectionsBefore >= count, 'they were open at the same time', `${most} connections`);
  const after = residentMiB(server);
  console.log(
    `# ${count} streams in ${((Date.now() - start) / 1000).toFixed(1)} s; up to ${most} connections; resident ${
      before.toFixed(0)} MiB before, ${peak.toFixed(0)} at the peak, ` +
    `${after.toFixed(0)} after: ${((peak - before) * 1024 / most).toFixed(0)} KiB per connection`);
  ok(sanitized || (peak - before) * 1024 / most < 256, 'a connection takes less than 256 KiB, its request included', `${peak} ${before}`);
  ok(
    await eventually(async () => (await server.metrics()).http_connections <= connectionsBefore + 3, 5),
    'the connections are closed again');
}

// --- abort, load, a request's id
{
  const stream = await openStream(completions, longBody(3000), {headers: {'x-request-id': 'job-17'}});
  await first(stream);
  equal((await get(`${server.api}/load`)).body.server_load, 1, '/load counts a running request');
  const [line] = await server.debug();
  ok(
    line?.id === 'job-17' && line.stage === 'decode' && line.blocks > 0, '/debug/requests shows it under the client\'s id',
    JSON.stringify(line));
  ok(
    await eventually(async () => await query('sum(vllm:num_requests_running)') === 1, 10), 'Prometheus sees one running request',
    prometheus.log);
  equal(
    (await post(`${server.admin}/admin/abort`, {request_id: 'cmpl-job-17'})).body, {aborted: 1},
    '/admin/abort takes the id that the client saw');
  const {complete} = await stream.ended;
  const last = events(stream.text).at(-1);
  ok(
    complete && last.error?.code === 'abort' && stream.text.trimEnd().endsWith('[DONE]'), 'the stream ends with an error event',
    JSON.stringify(last));
  equal((await post(`${server.admin}/admin/abort`, {request_id: 'nobody'})).body, {aborted: 0}, 'nothing to abort');
  equal((await post(`${server.admin}/admin/abort`, {})).status, 400, 'an abort names a request');
  ok(await eventually(async () => (await server.debug()).length === 0, 1), 'nothing is left of it');
}

// --- access log, reopened by SIGHUP
{
  const file = path.join(folder, 'access.log');
  await post(completions, longBody(4, {stream: false}), {'x-request-id': 'logged-1'});
  const find = (name, id) =>
    fs.existsSync(name) && fs.readFileSync(name, 'utf8').split('\n').filter((line) => line.includes(id)).map((line) => JSON.parse(line))[0];
  const line = await eventually(() => find(file, 'logged-1'), 3);
  ok(
    line && JSON.stringify(line).includes('/v1/completions') && JSON.stringify(line).includes('200'),
    'the access log has a JSON line for the request', JSON.stringify(line));
  fs.renameSync(file, `${file}.1`);
  server.child.kill('SIGHUP');
  ok(await eventually(async () => {
       await post(completions, longBody(4, {stream: false}), {'x-request-id': 'logged-2'});
       return find(file, 'logged-2');
     }, 3), 'SIGHUP reopens it under its name');
}

// --- Prometheus has all of it
{
  const {generation_tokens_total: tokens} = await server.metrics();
  ok(
    tokens > 3000 && await eventually(async () => await query('sum(vllm:generation_tokens_total)') === tokens, 10),
    'Prometheus has the generated tokens', `${tokens} ${await query('sum(vllm:generation_tokens_total)')}`);
  equal(
    [await query('up'), await query('scrape_samples_scraped > bool 100'), await query('sum(vllm:num_requests_running)')], [1, 1, 0],
    'its scrapes succeed');
  ok(
    await query('histogram_quantile(0.5, sum by (le) (vllm:time_to_first_token_seconds_bucket))') > 0,
    'quantiles come from the histograms');
  const aborted = await query('sum(vllm:request_success_total{finished_reason="abort"})');
  ok(aborted >= 2, 'the aborted and the late request are counted', aborted);
  prometheus.child.kill('SIGKILL');
}

// --- bad options: one line, exit code 2
{
  const {port} = new URL(server.api);
  const bad = (args) => run(['serve', model, '--port', '0', '--admin-port', '0', ...args], {timeout: 20000});
  userError(bad(['--port', port]), [`127.0.0.1:${port}`], 'a port in use');
  userError(bad(['--admin-port', port]), [`127.0.0.1:${port}`], 'an admin port in use');
  userError(bad(['--ssl-certfile', '/nowhere.pem', '--ssl-keyfile', '/nowhere.key']), ['/nowhere.pem'], 'a certificate that is not there');
  userError(bad(['--ssl-certfile', '/nowhere.pem']), ['--ssl-keyfile'], 'a certificate without a key');
  userError(bad(['--tool-call-parser', 'llama9']), ['--tool-call-parser', 'llama9', 'deepseek_v3'], 'an unknown tool parser');
  userError(bad(['--reasoning-parser', 'llama9']), ['--reasoning-parser', 'llama9'], 'an unknown reasoning parser');
  userError(bad(['--api-key-file', '/nowhere.keys']), ['/nowhere.keys'], 'a key file that is not there');
  userError(bad(['--host', 'no.such.host.invalid']), ['no.such.host.invalid'], 'a host that has no address');
  userError(bad(['--uds', '/nowhere/at/all.sock']), ['/nowhere/at/all.sock'], 'a Unix socket in no folder');
  userError(bad(['--port', '99999']), ['port', '99999'], 'a port that is none');
}

// --- SIGTERM: the running stream ends well, newcomers are refused
{
  const stream = await openStream(completions, longBody(250));
  await first(stream);
  server.child.kill('SIGTERM');
  const refused = await eventually(async () => {
    try {
      return (await post(completions, longBody(2, {stream: false}))).status === 503;
    } catch {
      return true;  // the port is closed
    }
  }, 5);
  ok(refused, 'SIGTERM: new requests are refused');
  const {complete} = await stream.ended;
  ok(
    complete && events(stream.text).at(-1).choices[0].finish_reason === 'length' && stream.text.trimEnd().endsWith('[DONE]'),
    'the running stream gets its whole answer', stream.text.slice(-300));
  equal(await server.ended, {code: 0, signal: null}, 'and the server ends with exit code 0');
  equal(server.err, '', 'without a word on standard error');
}

// --- admin drain; a limit for the drain; a second signal
{
  const drained = await serve();
  const stream = await openStream(`${drained.api}/v1/completions`, longBody(200));
  await first(stream);
  const answer = await post(`${drained.admin}/admin/drain`, {});
  equal([answer.status, answer.body.draining, answer.body.running], [200, true, 1], '/admin/drain');
  const [ready, health, more] =
    [await get(`${drained.api}/ready`), await get(`${drained.api}/health`), await post(`${drained.api}/v1/completions`, longBody(2))];
  equal(
    [ready.status, health.status, more.status, Number(more.headers.get('retry-after')) > 0], [503, 200, 503, true],
    'not ready, but healthy; new requests get 503');
  await stream.ended;
  equal(events(stream.text).at(-1).choices?.[0].finish_reason, 'length', 'the running stream ends well');
  equal(await drained.stop(), {code: 0, signal: null}, 'exit code 0');

  const short = await serve(['--shutdown-timeout', '0.2']);
  const cut = await openStream(`${short.api}/v1/completions`, longBody(3500));
  await first(cut);
  equal(await short.stop('SIGINT'), {code: 0, signal: null}, 'Ctrl-C with --shutdown-timeout 0.2: exit code 0');
  await cut.ended;
  ok(events(cut.text).at(-1).error, 'the stream that took too long gets an error event', cut.text.slice(-200));

  const twice = await serve();
  const lost = await openStream(`${twice.api}/v1/completions`, longBody(3500));
  await first(lost);
  twice.child.kill('SIGTERM');
  await eventually(async () => (await get(`${twice.admin}/ready`)).status === 503, 5);
  const start = Date.now();
  equal(await twice.stop('SIGTERM'), {code: 130, signal: null}, 'a second signal: exit code 130');
  ok(Date.now() - start < 1000 * slowdown, 'at once', Date.now() - start);
  lost.abort();
}

// --- Unix socket, TLS
{
  const socket = path.join(folder, 'api.sock');
  const local = await serve(['--uds', socket, '--admin-port', '0', '--slow-client-timeout', '3'], {ports: false});
  equal(
    [local.api, (fs.statSync(socket).mode & 0o170000) === 0o140000], [`unix:${socket}`, true],
    'a Unix socket is announced and there');
  if (has('curl')) {
    const out = spawnSync(
      'curl',
      [
        '-s', '--max-time', '20', '--unix-socket', socket, 'http://localhost/v1/chat/completions', '-H', 'content-type: application/json',
        '-d', JSON.stringify(chatBody('What is 12 + 30?', {temperature: 0}))
      ],
      {encoding: 'utf8'});
    ok(out.stdout.includes('The answer is 42.'), 'curl --unix-socket gets an answer', out.stdout + out.stderr);
  } else {
    ok(true, 'curl --unix-socket gets an answer # SKIP no curl');
  }

  // A client that stops reading: its request is paused when the buffers are full, goes on when it reads again, and is ended when
  // it does not. (A Unix socket holds little in the kernel.)
  const url = 'http://localhost/v1/completions';
  const much = longBody(400, {logprobs: 20, n: 4, prompt: 'Many bytes'});
  const stalled = await openStream(url, much, {options: {socketPath: socket}});
  stalled.response.pause();
  const isPaused = async () => (await local.debug())[0]?.stage === 'paused';
  ok(await eventually(isPaused, 10), 'the request of a client that does not read is paused');
  stalled.response.resume();
  const {complete} = await stalled.ended;
  const ends = events(stalled.text).filter((event) => event.choices[0].finish_reason === 'length').length;
  ok(complete && ends === 4 && stalled.text.endsWith('data: [DONE]\n\n'), 'it goes on when the client reads again, and nothing is lost',
    stalled.text.slice(-200));
  equal((await local.metrics()).http_slow_closed_total, 0, 'such a client is not cut off');
  const dead = await openStream(url, much, {options: {socketPath: socket}});
  dead.response.pause();
  ok(await eventually(isPaused, 10), 'another client stops reading');
  ok(await eventually(async () => (await local.debug()).length === 0, 6), 'and is given up after --slow-client-timeout');
  equal((await local.metrics()).http_slow_closed_total, 1, 'which is counted');
  dead.abort();
  equal(await local.stop(), {code: 0, signal: null}, 'it ends');
  ok(!fs.existsSync(socket), 'and the socket is gone');

  const [cert, key] = [path.join(folder, 'cert.pem'), path.join(folder, 'key.pem')];
  execFileSync(
    'openssl',
    [
      'req', '-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1', '-nodes', '-keyout', key, '-out', cert, '-days', '2',
      '-subj', '/CN=localhost', '-addext', 'subjectAltName=DNS:localhost,IP:127.0.0.1'
    ],
    {stdio: 'ignore'});
  const secure = await serve(['--ssl-certfile', cert, '--ssl-keyfile', key]);
  ok(secure.api.startsWith('https://'), 'the address is https', secure.api);
  const ask = (options) => new Promise((resolve) => {
    const request = https.request(
      `${secure.api}/v1/completions`, {method: 'POST', agent: false, headers: {'content-type': 'application/json'}, ...options},
      (response) => {
        let text = '';
        const protocol = response.socket.getProtocol();
        response
          .on(
            'data',
            (data) => {
              text += data;
            })
          .on('close', () => resolve({text, protocol}));
      });
    request.on('error', (error) => resolve({error: error.code ?? error.message}));
    request.end(JSON.stringify(longBody(12)));
  });
  const {text, protocol} = await ask({ca: fs.readFileSync(cert)});
  ok(text?.trimEnd().endsWith('[DONE]') && protocol === 'TLSv1.3', 'a stream over TLS 1.3', `${protocol} ${text}`);
  equal((await ask({})).error, 'DEPTH_ZERO_SELF_SIGNED_CERT', 'the certificate is the one that was given');
  ok((await ask({ca: fs.readFileSync(cert), maxVersion: 'TLSv1.1', minVersion: 'TLSv1'})).error, 'old versions of TLS are refused');
  equal(await secure.stop(), {code: 0, signal: null}, 'it ends');
}

// --- keys
{
  const [user, admin] = [['alice'], ['root', '--role', 'admin']].map((args) => JSON.parse(run(['keys', ...args, '--json']).out));
  const file = path.join(folder, 'keys');
  fs.writeFileSync(file, `# who may ask\n${user.line}\n${admin.line}\n`, {mode: 0o600});
  ok(!user.line.includes(user.key) && user.key.length > 20, 'the file holds no key');
  const locked = await serve(['--api-key-file', file]);
  const bearer = (key) => ({authorization: `Bearer ${key}`});
  const body = longBody(2, {stream: false});
  const url = `${locked.api}/v1/completions`;
  equal(
    [
      (await post(url, body)).status, (await post(url, body, bearer('sk-wrong'))).status, (await post(url, body, bearer(user.key))).status,
      (await post(url, body, {'x-api-key': user.key})).status
    ],
    [401, 401, 200, 200], 'no key, a wrong one, a right one, x-api-key');
  equal(
    [(await get(`${locked.api}/health`)).status, (await get(`${locked.admin}/metrics`)).status], [200, 200],
    'probes and scrapes need no key');
  const debug = `${locked.admin}/debug/requests`;
  equal(
    [(await get(debug)).status, (await get(debug, bearer(user.key))).status, (await get(debug, bearer(admin.key))).status], [401, 403, 200],
    'admin routes need an admin\'s key: a user gets 403');
  await locked.stop();
}

// --- a full queue
{
  const small = await serve(['--max-num-seqs', '1', '--max-queue', '1']);
  const url = `${small.api}/v1/completions`;
  const streams = await Promise.all([1, 2, 3, 4, 5].map(() => openStream(url, longBody(3500))));
  const full = streams.filter((stream) => stream.status === 429);
  ok(
    full.length >= 2 && full.every((stream) => Number(stream.response.headers['retry-after']) >= 1), 'a full queue: 429 with Retry-After',
    streams.map((stream) => stream.status).join(' '));
  for (const stream of streams) stream.abort();
  ok(await eventually(async () => (await small.debug()).length === 0, 2), 'clients that leave free the queue');
  equal((await post(url, longBody(2, {stream: false}))).status, 200, 'and the server answers again');
  await small.stop();
}

// --- determinism: alone, among 32 others, and with a warm cache
{
  const exact = await serve(['--deterministic']);
  const url = `${exact.api}/v1/completions`;
  const body = longBody(48, {seed: 7, prompt: 'The king said to his three sons that'});
  const ask = async (more = {}) => {
    const stream = await openStream(url, {...body, ...more});
    await stream.ended;
    return streamedText(stream.text);
  };
  const alone = await ask();
  await post(`${exact.admin}/admin/reset_prefix_cache`, {});
  const crowd = await Promise.all(Array.from(
    {length: 32},
    (_, i) => i % 4 === 3 ? ask() : ask({seed: 100 + i, prompt: `${'A tale of the sea. '.repeat(i)}Then`, max_tokens: 20 + i})));
  const same = crowd.filter((_, i) => i % 4 === 3);
  ok(
    alone.length > 40 && same.every((text) => text === alone),
    '--deterministic: the same seed gives the same text alone and among 32 requests',
    JSON.stringify([alone, same.find((text) => text !== alone)]));
  ok(new Set(crowd).size === 25, 'the others differ', new Set(crowd).size);
  equal(await exact.stop(), {code: 0, signal: null}, 'it ends');
}
done();
