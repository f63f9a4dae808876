// `dougong chat` as a program in a pipe and as a person's terminal (a pseudo-terminal made by script(1)).
import fs from 'node:fs';
import path from 'node:path';

import {done, equal, ok, program, run, start, temporaryFolder, userError} from './helpers.mjs';

const folder = temporaryFolder();
const env = {XDG_STATE_HOME: path.join(folder, 'state'), TERM: 'xterm', LC_ALL: 'C.UTF-8'};
const greedy = ['chat', 'mini-r1', '--temperature', '0'];

// --- a pipe
const piped = run([...greedy, '--hide-thinking'], {input: 'What is 12 + 30?\n\nWhat is 5 + 6?\n', env});
equal([piped.code, piped.out], [0, 'The answer is 42.\n5 + 6 = 11\n'], 'every line of a pipe is a message');
equal(piped.err.split('\n').filter((l) => l.startsWith('prompt ')).length, 2, 'one line of statistics for each answer');
const saved = path.join(folder, '对话 a.json');
const json = run([...greedy, '--json'], {input: `What is 12 + 30?\nWhat is 5 + 6?\n/save ${saved}\n/quit\nnever answered\n`, env});
const answers = json.out.trim().split('\n').map((line) => JSON.parse(line));
equal(answers.map((a) => [a.text.trim(), a.finish_reason]), [['The answer is 42.', 'stop'], ['5 + 6 = 11', 'stop']],
  '--json: one object for each answer');
ok(answers[0].cached_tokens === 0 && answers[1].cached_tokens > 8 && answers[1].cached_tokens < answers[1].prompt_tokens,
  'the second turn reuses the cache of the first', json.out);
const direct = run([...greedy, '--json', '--no-thinking'], {input: 'What is 12 + 30?\nWhat is 5 + 6?\n', env});
const [one, two] = direct.out.trim().split('\n').map((line) => JSON.parse(line));
equal(two.cached_tokens, one.prompt_tokens + one.output_tokens - 1, 'without reasoning the whole first turn is cached');
ok(answers[0].reasoning.length > 0, 'the reasoning is apart');
const conversation = JSON.parse(fs.readFileSync(saved, 'utf8'));
equal(conversation.messages.map((m) => m.role), ['user', 'assistant', 'user', 'assistant'], '/save writes the conversation');
const commands = run([...greedy, '--hide-thinking', '--quiet'],
  {input: '/system Be brief.\n/system\n/think off\n/think maybe\n/stats\n/reset\n' +
    '/nonsense\n/help\n"""\nWhat is\n12 + 30?\n"""\nWhat is \\\n5 + 6?\n', env});
ok(commands.out.startsWith('system prompt set\nBe brief.\nanswers without thinking\n' +
  '/think: expected on, off or fold, found "maybe"\n0 answers ') &&
  commands.out.includes('\nthe conversation is forgotten\nunknown command "/nonsense"'),
  'commands in a pipe', commands.out);
ok(commands.code === 0 && commands.out.includes('42') && commands.out.includes('11'), 'blocks and continued lines', commands.out);
userError(run([...greedy, '--max-model-len', '12'], {input: 'What is 12 + 30 and why is it so?\n', env}), ['--max-model-len'],
  'a message that does not fit fails a script');
equal(run([...greedy], {input: '', env}), {code: 0, signal: null, out: '', err: ''}, 'no input, no answer');

// --- a terminal
const script = start('script', ['-qfec', `'${program}' chat mini-r1 --temperature 0`, '/dev/null'], env);
const type = (text) => script.child.stdin.write(text);
ok(await script.waitFor(/\/help lists the commands[^]*> /), 'a greeting and a prompt', script.out);
type('What is 12 + 30?\r');
ok(await script.waitFor(/\x1b\[2m[^]*\x1b\[0m[^]*The answer is 42\.[^]*tokens\/s[^]*> /),
  'an answer, thinking dim, statistics', script.out);
type('/think fold\r');
ok(await script.waitFor(/thinking is folded[^]*> /), '/think fold');
type('What is 5 + 6?\r');
ok(await script.waitFor(/\[thinking: \d+ tokens\][^]*\[thought for \d+ tokens\][^]*5 \+ 6 = 11[^]*> /),
  'folded thinking counts', script.out.slice(-600));
type('/think on\r');
await script.waitFor(/thinking is shown[^]*> /);
type('Write a very long story about a cat and a dog.\r');
await script.waitFor(/\x1b\[2m\S+ \S+/);
type('\x03');
ok(await script.waitFor(/\| cancelled[^]*> /), 'Ctrl-C stops the answer and not the program', script.out.slice(-600));
type('What is 7 + 8?\r');
ok(await script.waitFor(/15[^]*\| stop[^]*> /), 'the conversation goes on after Ctrl-C', script.out.slice(-600));
type('half a line\x03');
ok(await script.waitFor(/Ctrl-C once more[^]*> /), 'Ctrl-C at the prompt drops the line and explains', script.out.slice(-400));
type('What is 2 + 2?\r');
ok(await script.waitFor(/\b4\b[^]*\| stop[^]*> /), 'a message in between');
type('\x03');
await script.waitFor(/Ctrl-C once more[^]*> /);
type('\x03');
const left = await script.ended;
equal(left.code, 130, 'Ctrl-C twice at the prompt leaves');
const history = path.join(env.XDG_STATE_HOME, 'dougong/chat_history');
ok(!fs.existsSync(history) || fs.readFileSync(history, 'utf8').replaceAll('\\040', ' ').includes('What is 12 + 30?'),
  'the history is kept');

const second = start('script',
  ['-qfec', `'${program}' chat mini-r1 --temperature 0 --hide-thinking`, '/dev/null'], {...env, NO_COLOR: '1'});
await second.waitFor(/Ctrl-D leaves\s+> /);
second.child.stdin.write(fs.existsSync(history) ? '\x1b[A' : 'What is 2 + 2?');
second.child.stdin.write('\r');
ok(await second.waitFor(/is 4\.[^]*tokens\/s[^]*> /), 'arrow up brings back the last line', second.out);
ok(!/\x1b\[2m/.test(second.out), 'NO_COLOR: no dim text');
second.child.stdin.write('\x04');
equal((await second.ended).code, 0, 'Ctrl-D leaves');
done();
