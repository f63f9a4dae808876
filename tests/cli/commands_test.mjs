// Drives the real program as a user's script would: help, errors, generate, tokenize, inspect, eval, pipes and signals.
import {spawnSync} from 'node:child_process';
import fs from 'node:fs';
import path from 'node:path';

import {clean, done, equal, model, ok, program, root, run, start, temporaryFolder, userError} from './helpers.mjs';

const folder = temporaryFolder();
const question = 'What is 12 + 30?';
const greedy = ['generate', 'mini-r1', '--prompt', question, '--temperature', '0'];
const json = (args, options) => {
  const r = run([...args, '--json', '--quiet'], options);
  try {
    return {...r, value: JSON.parse(r.out)};
  } catch {
    return {...r, value: {}};
  }
};

// --- help and wrong command lines
const help = run(['--help']);
ok(help.code === 0 && help.out.includes('Exit codes') && help.err === '', 'dougong --help');
const commands = [...help.out.matchAll(/^ {2}([a-z]+) /gm)].map((m) => m[1]);
for (const command of ['generate', 'chat', 'eval', 'inspect', 'verify', 'tokenize', 'plan', 'version'])
  ok(commands.includes(command), `the help lists ${command}`);
for (const command of commands) {
  const r = run([command, '--help']);
  ok(r.code === 0 && r.out.includes(`Usage: dougong ${command}`) && r.out.includes('--json') && r.err === '', `${command} --help`);
}
equal(run(['generate', '-h']).out, run(['help', 'generate']).out, '-h and `help COMMAND` are the same');
equal(run(['--help-markdown']).out, fs.readFileSync(path.join(root, 'docs/options.md'), 'utf8'), 'docs/options.md is current');
const bare = run([]);
ok(bare.code === 2 && bare.out.includes('Usage'), 'without a command: the help and exit code 2');
userError(run(['genrate', 'mini-r1']), ['unknown command "genrate"', 'did you mean generate?'], 'a mistyped command');
userError(run(['generate', 'mini-r1', '--max-token', '3']), ['unknown option "--max-token"', 'did you mean --max-tokens?'],
  'a mistyped option');
userError(run(['generate', 'mini-r1', '--max-tokens']), ['--max-tokens: expected a value'], 'a missing value');
userError(run(['generate', 'mini-r1', '--max-tokens', 'ten']), ['--max-tokens: expected an integer', 'found "ten"'], 'a wrong type');
userError(run(['generate', 'mini-r1', '--top-p=1.5']), ['--top-p: expected a number from 0 to 1, found "1.5"'], 'out of range');
userError(run(['generate', 'mini-r1', 'a'], {env: {DOUGONG_TOP_P: 'x'}}), ['environment variable DOUGONG_TOP_P', 'found "x"'],
  'a wrong environment variable');
userError(run(['generate', 'mini-r1', '--prompt', 'a', '--raw', '--chat']), ['--raw and --chat'], 'contradicting options');
userError(run(['generate', 'mini-r1', 'a', 'b']), ['unexpected argument "b"'], 'too many arguments');
userError(run(['generate']), ['expected a model'], 'no model');
userError(run(['generate', 'no-such-model', 'a']), ['no-such-model', 'DOUGONG_MODELS'], 'a missing model name');
userError(run(['inspect', '/no/such/模型 dir']), ['/no/such/模型 dir'], 'a missing path');
userError(run(['generate', 'mini-r1', '--prompt-file', '/no/such/file']), ['/no/such/file'], 'a missing prompt file');

// --- generate
const plain = run(greedy);
ok(plain.code === 0 && /<think>\n[^]*<\/think>\n\nThe answer is 42\.\n$/.test(plain.out),
  'the answer to 12 + 30, greedily', plain.out + plain.err);
ok(/^prompt \d+ tokens, .* \| answer \d+ tokens, .* \| stop\n$/.test(plain.err), 'one line of statistics', plain.err);
ok(!plain.out.includes('\x1b') && !plain.err.includes('\x1b'), 'no escape sequences into a pipe');
equal(run([...greedy, '--hide-thinking', '--quiet']), {code: 0, signal: null, out: 'The answer is 42.\n', err: ''},
  '--hide-thinking --quiet');
const first = json(greedy);
ok(first.code === 0 && first.value.text?.includes('42') && first.value.reasoning?.length > 0 && first.err === '',
  '--json separates reasoning', first.out);
equal([first.value.finish_reason, first.value.stop, first.value.output_tokens], ['stop', null, first.value.ids?.length], '--json fields');
equal(json(['generate', 'mini-r1', question, '--temperature', '0']).value.ids, first.value.ids, 'the prompt as an argument');
equal(json(['generate', 'mini-r1', '--temperature', '0'], {input: question + '\n'}).value.ids, first.value.ids,
  'the prompt on standard input');
fs.writeFileSync(path.join(folder, '问题 file.txt'), question + '\n');
equal(json(['generate', model, '--temperature=0', '-f', path.join(folder, '问题 file.txt')]).value.ids, first.value.ids,
  'the prompt in a file');
equal(json(['generate', question, '--temperature=0'], {env: {DOUGONG_MODEL: 'mini-r1'}}).value.ids, first.value.ids,
  'the model from the environment');
equal(json(['generate', 'mini-r1', question], {env: {DOUGONG_TEMPERATURE: '0', DOUGONG_MODELS: path.dirname(model)}, cwd: '/'}).value.ids,
  first.value.ids, 'options and models folder from the environment');
for (const chunk of ['1', '3', '7'])
  equal(json([...greedy, '--chunk', chunk]).value.ids, first.value.ids, `--chunk ${chunk} does not change the text`);
equal(json([...greedy, '--max-num-batched-tokens', '2']).value.ids, first.value.ids, 'small steps do not change the text');
equal(json([...greedy, '--threads', '1']).value.ids, first.value.ids, 'the number of threads does not change the text');
const seeded = (seed, ...more) =>
  json(['generate', 'mini-r1', 'Write a story about a cat.', '--temperature', '1', '--seed', seed, '-n', '24', ...more]).value;
const one = seeded('1');
equal(seeded('1').ids, one.ids, 'a seed reproduces');
equal(seeded('1', '--chunk', '2').ids, one.ids, 'a seed reproduces with other chunks');
ok(JSON.stringify(seeded('2').ids) !== JSON.stringify(one.ids), 'another seed gives another text');
equal([one.finish_reason, one.output_tokens, one.seed], ['length', 24, 1], '--max-tokens ends the answer');
equal(seeded('5', '--top-k', '1').ids,
  json(['generate', 'mini-r1', 'Write a story about a cat.', '--temperature', '0', '-n', '24']).value.ids,
  'top-k 1 is greedy');
const default_sampling = json(['generate', 'mini-r1', question, '-n', '3']).value;
equal(default_sampling.temperature, 0.6, 'the temperature comes from generation_config.json');
const stopped = json([...greedy, '--stop', 'nothing like this', '--stop', 'er is 4']).value;
equal([stopped.text, stopped.finish_reason, stopped.stop], ['The answ', 'stop', 'er is 4'], 'a stop text across token borders');
const quick = json([...greedy, '--no-thinking']).value;
ok(quick.reasoning === '' && quick.output_tokens < first.value.output_tokens, '--no-thinking', JSON.stringify(quick));
const raw = json(['generate', 'mini-r1', '--raw', '--temperature', '0', '-n', '8', 'The capital of France is']);
ok(raw.code === 0 && raw.value.reasoning === '' && raw.value.output_tokens > 0, '--raw continues text', raw.out + raw.err);
const chinese = json(['generate', 'mini-r1', '请算一下 515+4', '--temperature', '0']);
ok(chinese.value.text?.includes('519'), 'a Chinese prompt', chinese.out);
const short = json(['generate', 'mini-r1', question, '--temperature', '0', '--max-model-len', '20']);
equal([short.value.finish_reason, short.value.prompt_tokens + short.value.output_tokens], ['context', 20],
  'a full context ends the answer');
userError(run(['generate', 'mini-r1', question, '--max-model-len', '8']), ['14 tokens', '--max-model-len'],
  'a prompt longer than the context');
equal(json([...greedy, '--backend', 'reference', '-n', '12']).value.ids, first.value.ids?.slice(0, 12),
  'the reference backend says the same');
userError(run([...greedy, '--isa', 'mmx']), ['mmx', 'generic'], 'an unknown instruction set lists the usable ones');
userError(run([...greedy, '--quantization', 'int3']), ['--quantization', 'int3', 'q8_0'], 'an unknown weight format lists the known ones');
userError(run([...greedy, '--chat-format', 'nope']), ['nope'], 'an unknown chat format');

// --- tokenize
const text = 'Hello 你好 <think> 1234\n\n  x 😀';
const ids = run(['tokenize', 'mini-r1', '--no-bos'], {input: text});
ok(ids.code === 0 && /^\d+( \d+)*\n$/.test(ids.out), 'tokenize standard input');
equal(run(['tokenize', 'mini-r1', '--decode'], {input: ids.out}).out, text + '\n', 'tokenize --decode brings the text back');
equal(run(['tokenize', 'mini-r1', '--no-bos', text]).out, ids.out, 'tokenize an argument');
equal(run(['tokenize', 'mini-r1', text]).out, '0 ' + ids.out, 'BOS comes first by default');
const list = ids.out.trim().split(' ').map(Number);
equal(json(['tokenize', 'mini-r1', '--no-bos', text].filter((a) => a !== '--quiet')).code, 2, 'tokenize has no --quiet');
equal(JSON.parse(run(['tokenize', 'mini-r1', '--no-bos', '--json', text]).out).ids, list, 'tokenize --json');
const lines = run(['tokenize', 'mini-r1', '--jsonl', '--no-bos'],
  {input: JSON.stringify({text}) + '\n\n' + JSON.stringify({text: ''}) + '\n'});
equal(lines.out.trim().split('\n').map((l) => JSON.parse(l)), [{ids: list}, {ids: []}], 'tokenize --jsonl');
equal(JSON.parse(run(['tokenize', 'mini-r1', '--jsonl', '--decode'], {input: JSON.stringify({ids: list})}).out), {text},
  'tokenize --jsonl --decode');
const halfway = run(['tokenize', 'mini-r1', '--jsonl'], {input: '{"text": "a"}\n{"text": 3}\n'});
ok(halfway.code === 2 && halfway.err.includes('standard input:2: text: expected a string') && halfway.out.split('\n').length === 2,
  'a wrong line is named, those before are answered', halfway.err);
userError(run(['tokenize', 'mini-r1', '--decode', '5', 'x']), ['expected token ids', 'found "x"'], 'ids that are none');
userError(run(['tokenize', 'mini-r1', '--decode', '4096']), ['from 0 to 4095'], 'ids outside the vocabulary');

// --- inspect, version, plan
const inspected = JSON.parse(run(['inspect', 'mini-r1', '--json', '--tensors']).out);
equal([inspected.architecture, inspected.layers, inspected.kv_bytes_per_token, inspected.tensors.length, inspected.files],
  ['DeepseekV3ForCausalLM', 6, (128 + 32) * 7 * 2, 737, 2], 'inspect --json --tensors');
ok(inspected.formats.fp8_block > 19e6 && inspected.active_parameters < inspected.parameters, 'inspect counts formats and parameters');
ok(/^architecture +DeepseekV3ForCausalLM$/m.test(run(['inspect', 'mini-r1']).out), 'inspect for people');
ok(JSON.parse(run(['version', '--json']).out).version === run(['--version']).out.split(' ')[1], 'version');
ok(JSON.parse(run(['plan', 'mini-r1', '--json']).out).weight_bytes > 0, 'plan --json');

// --- eval
const records = path.join(folder, 'records.jsonl');
const evaluated = json(['eval', 'mini-r1', '--suite', path.join(model, 'eval/mini_eval.jsonl'), '--limit', '20', '--output', records]);
ok(evaluated.code === 0 && evaluated.value.suite?.questions === 20 &&
  evaluated.value.suite.accuracy >= 85, 'eval: 20 questions of the suite',
  evaluated.out + evaluated.err);
const written = fs.readFileSync(records, 'utf8').trim().split('\n').map((l) => JSON.parse(l));
equal(written.filter((r) => r.correct).length, evaluated.value.suite?.correct, 'eval --output has a record for every question');
const alone = json(['eval', 'mini-r1', '--suite', path.join(model, 'eval/mini_eval.jsonl'), '--limit', '20', '--batch', '1', '--chunk', '5',
  '--output', records + '2']);
equal([alone.value.suite?.tasks, fs.readFileSync(records + '2', 'utf8')], [evaluated.value.suite?.tasks, fs.readFileSync(records, 'utf8')],
  'no answer depends on the batch or the chunks');
equal(run(['eval', 'mini-r1', '--suite', path.join(model, 'eval/mini_eval.jsonl'), '--limit', '4',
   '--min-accuracy', '100', '--no-thinking', '-n', '1']).code,
  1, '--min-accuracy not reached: exit code 1');
const documents = fs.readFileSync(path.join(model, 'eval/heldout_text.txt'), 'utf8').split('\n%%\n').slice(0, 12);
fs.writeFileSync(path.join(folder, 'text.txt'), documents.join('\n%%\n'));
const measured = json(['eval', 'mini-r1', '--perplexity', path.join(folder, 'text.txt')]).value.perplexity ?? {};
const again = json(['eval', 'mini-r1', '--perplexity', path.join(folder, 'text.txt'), '--batch', '1',
  '--max-num-batched-tokens', '33']).value.perplexity ?? {};
ok(measured.per_document?.perplexity > 1 && measured.per_document.perplexity < 10 &&
  measured.windows_1024?.tokens > 500, 'perplexity of both kinds',
  JSON.stringify(measured));
equal([again.per_document, again.windows_1024], [measured.per_document, measured.windows_1024], 'perplexity does not depend on the batch');
fs.writeFileSync(path.join(folder, 'bad.jsonl'),
  '{"messages": [{"role": "user", "content": "a"}], "match": "open"}\n{"messages": [], "match": "open"}\n');
userError(run(['eval', 'mini-r1', '--suite', path.join(folder, 'bad.jsonl')]), ['bad.jsonl:2: messages'], 'a wrong line of a suite');
fs.writeFileSync(path.join(folder, 'role.jsonl'), '{"messages": [{"role": "nobody", "content": "a"}], "match": "open"}\n');
userError(run(['eval', 'mini-r1', '--suite', path.join(folder, 'role.jsonl')]), ['role.jsonl:1:'],
  'a role that the chat format does not know');
userError(run(['eval', 'mini-r1', '--suite', records, '--limit', '1']), ['records.jsonl:1: messages'], 'records are no suite');
userError(run(['eval', 'mini-r1', '--perplexity', folder]), [folder], 'a folder is no text');
userError(run(['eval', 'mini-r1', '--suite', path.join(model, 'eval/mini_eval.jsonl'), '--output', '/no/such/dir/x']), ['/no/such/dir/x'],
  'an output that cannot be written is known at once');

// --- pipes and signals
fs.writeFileSync(path.join(folder, 'many.jsonl'), '{"text": "abc def"}\n'.repeat(200000));
const piped = spawnSync('bash',
  ['-c', '"$0" tokenize mini-r1 --jsonl < "$1" | head -n 1; echo "${PIPESTATUS[0]}"', program, path.join(folder, 'many.jsonl')],
  {env: clean(), cwd: root, encoding: 'utf8'});
ok(piped.stderr === '' && /^\{"ids":.*\}\n(141|0)\n$/.test(piped.stdout),
  'a reader that goes away ends the program quietly',
  piped.stdout.slice(0, 300) + piped.stderr);
ok(run([...greedy], {env: {NO_COLOR: '1'}}).out === plain.out, 'NO_COLOR');
const full = spawnSync('bash', ['-c', '"$0" inspect mini-r1 > /dev/full', program], {env: clean(), cwd: root, encoding: 'utf8'});
ok(full.status === 2 && /^dougong: standard output: .*\n$/.test(full.stderr), 'a full disk is an error', full.stderr);
const long = start(program, ['generate', 'mini-r1', '--raw', '--ignore-eos', '--temperature', '1', '--prompt', 'Once']);
await long.waitFor(/\S+ \S+/);
long.child.kill('SIGINT');
const ended = await long.ended;
ok(ended.code === 130 && long.err.includes('| cancelled'),
  'Ctrl-C ends generate with exit code 130 and statistics', JSON.stringify(ended) + long.err);
done();
