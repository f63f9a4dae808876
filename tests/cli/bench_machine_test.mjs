// `bench machine`, --profile and `eval --compare`: what people and programs get from them.
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import {done, equal, model, ok, run} from './helpers.mjs';

const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'dougong machine '));
const env = {XDG_CACHE_HOME: path.join(folder, 'cache')};
const cache = path.join(folder, 'cache/dougong/machine.json');
const oneLine = (r, text, what) => ok(r.code === 2 && r.out === '' && r.err.trim().split('\n').length === 1 && r.err.includes(text), what, r.err);

const first = run(['bench', 'machine', '--json', '--threads', '2'], {env});
const limits = JSON.parse(first.out || 'null');
equal(first.code, 0, 'bench machine succeeds');
equal(limits.read_bandwidth.map((r) => r.threads), [1, 2], 'read bandwidth by number of threads');
ok(limits.peaks.every((p) => p.one_thread_ops_per_s.median > 0 && p.all_threads_ops_per_s.low <= p.all_threads_ops_per_s.high), 'peaks have medians and spread', first.out);
const families = JSON.parse(run(['version', '--json']).out).instruction_sets;
equal([...new Set(limits.peaks.map((p) => p.isa))], families, 'every usable instruction set is measured');
equal(JSON.parse(fs.readFileSync(cache, 'utf8')).machines[0], limits, 'the result is kept');
const again = run(['bench', 'machine', '--json', '--cached', '-t', '2'], {env});
equal(JSON.parse(again.out), limits, '--cached prints what was measured before');
fs.writeFileSync(cache, '{"machines": [');
const table = run(['bench', 'machine', '--cached', '-t', '2'], {env});
ok(table.code === 0 && /read, 2 threads +[\d.]+ +\([\d.]+ - [\d.]+\)/.test(table.out) && table.out.includes('f32'), 'a damaged file is measured anew; a table for people', table.out + table.err);
equal(JSON.parse(fs.readFileSync(cache, 'utf8')).machines.length, 1, 'and replaced');
oneLine(run(['bench', 'machin'], {env}), 'expected `bench machine`', 'a wrong argument is one line');

const trace = path.join(folder, '迹 1.json');
const generated = run(['generate', model, 'What is 12 + 30?', '--temperature', '0', '-n', '8', '-t', '2', `--profile=${trace}`], {env});
const plain = run(['generate', model, 'What is 12 + 30?', '--temperature', '0', '-n', '8', '-t', '2'], {env});
equal(generated.out, plain.out, '--profile does not change the answer');
ok(/^operation +calls +ms/m.test(generated.err) && /^all ops +\d+/m.test(generated.err) && /^linear \d+x\d+ \w+ m=/m.test(generated.err) && generated.err.includes('machine: read'),
  'a table of operations on standard error', generated.err);
const events = JSON.parse(fs.readFileSync(trace, 'utf8')).traceEvents.filter((e) => e.ph === 'X');
const steps = events.filter((e) => e.cat === 'step'), ops = events.filter((e) => e.cat === 'op');
ok(steps.length >= 8 && ops.length > 10 * steps.length, 'the trace has steps and their operations', `${steps.length} ${ops.length}`);
const inside = ops.filter((o) => o.name !== 'host_parallel').every((o) => steps.some((s) => o.ts >= s.ts - 0.002 && o.ts + o.dur <= s.ts + s.dur + 0.002));
ok(inside, 'every operation lies within a step');
oneLine(run(['generate', model, 'x', '--profile=/nowhere/at/all.json'], {env}), '/nowhere/at/all.json', 'a trace that cannot be written is known before the work');
const bare = run(['generate', model, 'x', '-n', '2', '--profile', '--temperature', '0', '-t', '2'], {env});
ok(bare.code === 0 && bare.err.includes('all ops'), '--profile without a file takes no other argument', bare.err);

const text = path.join(folder, 'text.txt');
fs.writeFileSync(text, 'The capital of France is Paris.\n%%\nWhat is 12 + 30? It is 42.\n');
const compared = run(['eval', model, '--perplexity', text, '--compare', 'int8,int4', '--json', '-t', '2'], {env});
const report = JSON.parse(compared.out || 'null');
equal(report?.compare?.map((c) => c.name), ['int8', 'int4'], 'eval --compare reports each format');
ok(report.compare.every((c) => c.mean_kl >= 0 && c.top1_agreement > 50 && c.top1_agreement <= 100 && c.perplexity > 1 && c.weight_bytes > 0), 'with its figures', compared.out);
ok(report.compare[1].mean_kl > report.compare[0].mean_kl, 'int4 loses more than int8', compared.out);
const suite = run(['eval', model, '--suite', path.join(model, 'eval/mini_eval.jsonl'), '--limit', '4', '--compare', 'int8', '-t', '2', '-n', '40'], {env});
ok(suite.code === 0 && /^int8 .*%/m.test(suite.out) && suite.out.includes('accuracy'), 'accuracy of a suite, as a table', suite.out + suite.err);
oneLine(run(['eval', model, '--compare', 'int3'], {env}), '"int3"', 'an unknown format is one line');
oneLine(run(['eval', model, '--compare', 'int8', '--output', path.join(folder, 'x')], {env}), '--output', '--compare and --output contradict each other');

fs.rmSync(folder, {recursive: true});
done();
