// Damaged checkpoints: every one is answered by exit code 2 and one line that names the file (and tensor), what was expected
// and what was found; nothing crashes.
import fs from 'node:fs';
import path from 'node:path';

import {done, equal, model, ok, readSafetensors, run, temporaryFolder, userError, withoutTensor, writeSafetensors} from './helpers.mjs';

const folder = temporaryFolder('dougong faults 故障 ');
const shards = ['model-00001-of-000002.safetensors', 'model-00002-of-000002.safetensors'];
const small = ['config.json', 'generation_config.json',
  'tokenizer.json', 'tokenizer_config.json', 'chat_template.jinja', 'model.safetensors.index.json'];
let number = 0;

// A copy of mini-r1 whose shards are links unless they are going to be changed.
function copy(name = '模型 mini r1') {
  const to = path.join(folder, `${number++} ${name}`);
  fs.mkdirSync(to);
  for (const file of small) fs.copyFileSync(path.join(model, file), path.join(to, file));
  for (const shard of shards) fs.symlinkSync(path.join(model, shard), path.join(to, shard));
  return to;
}
function own(to, file) {
  const real = fs.realpathSync(path.join(to, file));
  fs.rmSync(path.join(to, file));
  fs.copyFileSync(real, path.join(to, file));
  return path.join(to, file);
}
function edit(to, file, change) {
  const value = JSON.parse(fs.readFileSync(path.join(to, file), 'utf8'));
  fs.writeFileSync(path.join(to, file), JSON.stringify(change(value) ?? value));
}
const ask = (to, ...more) => run(['generate', to, '--prompt', 'What is 12 + 30?', '--temperature', '0', '--quiet', ...more]);
const whichShard = (name) => shards.find((shard) => readSafetensors(path.join(model, shard)).header[name]);
const attention = 'model.layers.2.self_attn.kv_b_proj.weight';
const scale = attention + '_scale_inv';

const good = copy('空格 和 spaces');
const answer = ask(good, '--hide-thinking');
equal([answer.code, answer.out], [0, 'The answer is 42.\n'], 'a path with blanks and Chinese characters');

{
  const to = copy();
  const file = own(to, shards[1]);
  fs.truncateSync(file, fs.statSync(file).size - 1000);
  userError(ask(to), [shards[1], /bytes/], 'a truncated shard');
  fs.truncateSync(file, 5);
  userError(ask(to), [shards[1]], 'a shard of 5 bytes');
  fs.truncateSync(file, 0);
  userError(run(['inspect', to]), [shards[1]], 'an empty shard');
  fs.rmSync(file);
  userError(ask(to), [shards[1]], 'a missing shard');
}
{
  const to = copy();
  const file = own(to, whichShard(attention));
  const st = readSafetensors(file);
  writeSafetensors(file, {...st, header: {...st.header, [attention]: {...st.header[attention], dtype: 'I8'}}});
  userError(ask(to), [path.basename(file), attention, 'I8'], 'a flipped dtype of the same size');
  writeSafetensors(file, {...st, header: {...st.header, [attention]: {...st.header[attention], dtype: 'BF16'}}});
  userError(ask(to), [path.basename(file), attention], 'a flipped dtype of another size');
  const shape = st.header[attention].shape;
  writeSafetensors(file, {...st, header: {...st.header, [attention]: {...st.header[attention], shape: [shape[1], shape[0]]}}});
  userError(ask(to), [path.basename(file), attention, `[${shape[1]}, ${shape[0]}]`], 'a transposed shape');
  writeSafetensors(file, {...st, header: {...st.header, [attention]: {...st.header[attention], dtype: 'F7'}}});
  userError(ask(to), [path.basename(file), attention, 'F7'], 'an unknown dtype');
  const overlapping = structuredClone(st.header);
  const names = Object.keys(overlapping).filter((n) => overlapping[n].data_offsets);
  overlapping[names[1]].data_offsets = overlapping[names[1]].data_offsets.map((x) => x - 16);
  writeSafetensors(file, {...st, header: overlapping});
  userError(ask(to), [path.basename(file)], 'overlapping tensors');
  writeSafetensors(file, {...st, header: {...st.header, [attention]: {...st.header[attention], shape: [2 ** 40, 2 ** 40]}}});
  userError(ask(to), [path.basename(file), attention], 'a shape whose size overflows');
}
{
  const to = copy();
  const file = own(to, whichShard(attention));
  writeSafetensors(file, withoutTensor(readSafetensors(file), attention));
  userError(ask(to), [attention, path.basename(file)], 'a deleted tensor that the index still names');
  edit(to, 'model.safetensors.index.json', (index) => void delete index.weight_map[attention]);
  userError(ask(to), [attention, /missing/], 'a deleted tensor');
  userError(run(['inspect', to]), [attention, /missing/], 'inspect finds the deleted tensor too');
}
{
  const to = copy();
  const file = own(to, whichShard(scale));
  writeSafetensors(file, withoutTensor(readSafetensors(file), scale));
  edit(to, 'model.safetensors.index.json', (index) => void delete index.weight_map[scale]);
  userError(ask(to), [scale], 'a deleted scale');
}
{
  const to = copy();
  const file = own(to, shards[0]);
  const st = readSafetensors(file);
  const extra = Buffer.alloc(64);
  const surprise = {dtype: 'F32', shape: [16], data_offsets: [st.data.length, st.data.length + 64]};
  writeSafetensors(file, {header: {...st.header, 'model.layers.2.surprise': surprise},
    data: Buffer.concat([st.data, extra])});
  edit(to, 'model.safetensors.index.json', (index) => void (index.weight_map['model.layers.2.surprise'] = shards[0]));
  userError(ask(to), ['model.layers.2.surprise', shards[0]], 'a tensor that no layer needs');
}
{
  const to = copy();
  const file = own(to, whichShard(scale));
  const st = readSafetensors(file);
  const data = Buffer.from(st.data);
  data.writeFloatLE(NaN, st.header[scale].data_offsets[0]);
  writeSafetensors(file, {header: st.header, data});
  userError(ask(to), [path.basename(file), scale, /nan/i], 'NaN in a scale');
  data.writeFloatLE(Infinity, st.header[scale].data_offsets[0]);
  writeSafetensors(file, {header: st.header, data});
  userError(ask(to), [path.basename(file), scale, /inf/i], 'an infinite scale');
}
{
  const to = copy();
  const length = 200 << 20;
  fs.writeFileSync(path.join(to, 'config.json'), Buffer.alloc(length, '['));
  const started = Date.now();
  userError(ask(to), ['config.json'], 'config.json is 200 MB of nesting');
  ok(Date.now() - started < 20000, 'which is found out within seconds');
  fs.writeFileSync(path.join(to, 'config.json'), '['.repeat(100000) + ']'.repeat(100000));
  userError(ask(to), ['config.json', /nest|deep/], 'config.json nested 100,000 deep');
  fs.writeFileSync(path.join(to, 'tokenizer.json'), '{"a":'.repeat(100000));
  fs.copyFileSync(path.join(model, 'config.json'), path.join(to, 'config.json'));
  userError(ask(to), ['tokenizer.json', /nest|deep/], 'tokenizer.json nested 100,000 deep');
  fs.writeFileSync(path.join(to, 'model.safetensors.index.json'), '{"weight_map": {"a": "../../../etc/passwd"}}');
  userError(ask(to), ['model.safetensors.index.json'], 'an index that points out of the directory');
}
{
  const to = copy();
  fs.rmSync(path.join(to, shards[0]));
  fs.symlinkSync(shards[0], path.join(to, shards[0]));
  userError(ask(to), [shards[0]], 'a shard that links to itself');
  fs.rmSync(path.join(to, 'config.json'));
  fs.symlinkSync('config.json', path.join(to, 'config.json'));
  userError(ask(to), ['config.json'], 'config.json that links to itself');
  fs.rmSync(path.join(to, 'config.json'));
  fs.mkdirSync(path.join(to, 'config.json'));
  userError(ask(to), ['config.json'], 'config.json that is a folder');
}
for (const [what, change, parts] of [
  ['an unknown architecture', {architectures: ['MambaForCausalLM']}, ['MambaForCausalLM', 'DeepseekV3ForCausalLM']],
  ['no architecture', {architectures: []}, ['architectures']],
  ['a negative dimension', {hidden_size: -384}, ['hidden_size', '-384']],
  ['an absurd dimension', {hidden_size: 1e15}, ['hidden_size']],
  ['a dimension that is text', {num_hidden_layers: 'six'}, ['num_hidden_layers', 'six']],
  ['another dimension than the weights have', {hidden_size: 512}, [/expected (shape )?\[.*512.*\]/, /384/]],
  ['more layers than the checkpoint has', {num_hidden_layers: 60}, [/model\.layers\.\d+\./, /missing/]],
  ['a billion layers', {num_hidden_layers: 1e9}, ['num_hidden_layers']],
  ['no heads', {num_attention_heads: 0}, ['num_attention_heads', 'found 0']],
  ['more experts chosen than there are', {num_experts_per_tok: 99}, ['num_experts_per_tok', '99']],
  ['a huge vocabulary', {vocab_size: 1 << 23}, [/embed|head/, '4096']],
  ['an unknown rope type', {rope_scaling: {type: 'spiral', factor: 2}}, ['rope_scaling', 'spiral']],
  ['a rope factor of zero', {rope_scaling: {type: 'yarn', factor: 0}}, ['rope_scaling', 'factor']],
  ['an unknown scoring function', {scoring_func: 'dice'}, ['dice']],
]) {
  const to = copy();
  edit(to, 'config.json', (config) => ({...config, ...change}));
  userError(ask(to), ['config.json', ...parts].filter((part, i) => i > 0 || !parts.some((p) => p instanceof RegExp)), what);
}
{
  const to = copy();
  fs.writeFileSync(path.join(to, 'tokenizer.json'), '{"model": {"type": "Unigram"}}');
  userError(ask(to), ['tokenizer.json', 'Unigram'], 'a tokenizer of another kind');
  fs.rmSync(path.join(to, 'tokenizer.json'));
  userError(ask(to), ['tokenizer.json'], 'no tokenizer.json');
}
{
  const to = copy();
  fs.rmSync(path.join(to, 'chat_template.jinja'));
  edit(to, 'tokenizer_config.json', (config) => void delete config.chat_template);
  userError(ask(to, '--chat'), ['chat template', '--raw'], 'a model without chat template and --chat');
  equal(ask(to, '--raw', '-n', '2').code, 0, 'a model without chat template continues text');
  userError(run(['chat', to]), ['chat template'], 'a model without chat template cannot chat');
}
{
  const to = copy();
  fs.rmSync(path.join(to, 'config.json'));
  userError(ask(to), ['config.json'], 'no config.json');
  userError(ask(path.join(model, 'tokenizer.json')), ['tokenizer.json', 'expected a model directory'], 'a file instead of a model');
}
done();
