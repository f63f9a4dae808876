// Anthropic's own client (npm `@anthropic-ai/sdk`) against `dougong serve mini-r1`.
import {done, equal, evaluation, eventually, load, ok, serve, watchdog} from './server.mjs';

watchdog(90);
const Anthropic = load('@anthropic-ai/sdk').Anthropic;
const server = await serve();
const client = new Anthropic({apiKey: 'none', baseURL: server.api, maxRetries: 0});
const model = 'mini-r1';
const base = {
  model,
  max_tokens: 300,
  temperature: 0
};
const question = {
  ...base,
  messages: [{role: 'user', content: 'What is 12 + 30?'}]
};
const text = (message) => message.content.filter((block) => block.type === 'text').map((block) => block.text).join('');
async function failure(promise) {
  try {
    await promise;
  } catch (error) {
    return error;
  }
  return {};
}

// --- messages
const thinking = {
  type: 'enabled',
  budget_tokens: 1024
};
const message = await client.messages.create({...question, max_tokens: 2000, thinking});
equal(
  [message.type, message.role, message.stop_reason, message.content.map((block) => block.type)],
  ['message', 'assistant', 'end_turn', ['thinking', 'text']], 'messages.create: thinking, then text');
equal(text(message), 'The answer is 42.', 'the answer');
ok(
  message.content[0].thinking.includes('2+0=2') && message.usage.input_tokens + message.usage.cache_read_input_tokens > 5 &&
    message.usage.output_tokens > 20,
  'thinking and usage', JSON.stringify(message));
const plain = await client.messages.create(question);
equal(plain.content.map((block) => block.type), ['text'], 'no thinking unless asked for');

const stream = client.messages.stream({...question, max_tokens: 2000, thinking});
let deltas = '';
const types = new Set();
stream.on('text', (piece) => {
  deltas += piece;
});
stream.on('streamEvent', (event) => types.add(event.type));
const final = await stream.finalMessage();
equal(final.content, message.content, 'the streamed message is the whole one');
equal(
  [final.stop_reason, final.usage.output_tokens, deltas], [message.stop_reason, message.usage.output_tokens, text(message)],
  'with its usage and text events');
equal(
  [...types], ['message_start', 'content_block_start', 'content_block_delta', 'content_block_stop', 'message_delta', 'message_stop'],
  'the events in their order');

const system = await client.messages.create({...question, system: [{type: 'text', text: 'You are a helpful assistant.'}]});
ok(text(system).length > 0, 'a system prompt in blocks', JSON.stringify(system));
const limited = await client.messages.create({...question, max_tokens: 3});
equal([limited.stop_reason, limited.usage.output_tokens], ['max_tokens', 3], 'max_tokens');
const stopped = await client.messages.create({...question, stop_sequences: ['4']});
equal([stopped.stop_reason, stopped.stop_sequence], ['stop_sequence', '4'], 'stop_sequences');

// --- tools
const task = evaluation().find((each) => each.id === 609);
const tools = task.tools.map(({function: tool}) => ({name: tool.name, description: tool.description, input_schema: tool.parameters}));
const messages = [...task.messages];
const first = await client.messages.create({...base, messages, tools});
const use = first.content.find((block) => block.type === 'tool_use');
equal([first.stop_reason, use?.name, use?.input], ['tool_use', 'query_stock', {symbol: 'INTC'}], 'tools: the call');
const streamed = await client.messages.stream({...base, messages, tools}).finalMessage();
equal(
  streamed.content.filter((block) => block.type === 'tool_use').map((block) => [block.name, block.input]), [[use?.name, use?.input]],
  'tools: the streamed call');
messages.push({role: 'assistant', content: first.content}, {
  role: 'user',
  content: [{type: 'tool_result', tool_use_id: use?.id, content: [{type: 'text', text: '{"symbol": "INTC", "price": 284.52}'}]}]
});
const second = await client.messages.create({...base, messages, tools});
equal([text(second), second.stop_reason], ['The latest price of INTC is 284.52.', 'end_turn'], 'tools: the answer uses the result');
const forced = await client.messages.create(
  {...base, messages: [{role: 'user', content: 'Hello!'}], tools, tool_choice: {type: 'tool', name: 'currency_exchange'}});
equal(
  forced.content.filter((block) => block.type === 'tool_use').map((block) => block.name), ['currency_exchange'], 'tool_choice with a name');
const never = await client.messages.create({...base, messages: task.messages, tools, tool_choice: {type: 'none'}});
equal(never.content.filter((block) => block.type === 'tool_use'), [], 'tool_choice none');

// --- count_tokens
const count = await client.messages.countTokens({model, messages: question.messages});
equal(count.input_tokens, plain.usage.input_tokens + plain.usage.cache_read_input_tokens, 'countTokens counts what the request takes');
ok((await client.messages.countTokens({model, messages: task.messages, tools})).input_tokens > count.input_tokens + 20, 'tools count too');
equal((await client.models.list()).data.map((each) => each.id), [model], 'models.list');

// --- errors
const bad = await failure(client.messages.create({...question, temperature: 'hot'}));
ok(
  bad instanceof Anthropic.BadRequestError && bad.error?.error?.type === 'invalid_request_error' && bad.message.includes('temperature'),
  'a wrong type is a BadRequestError', bad);
const none = await failure(client.messages.create({model, messages: question.messages}));
ok(none instanceof Anthropic.BadRequestError && none.message.includes('max_tokens'), 'max_tokens is required', none);
const unknown = await failure(client.messages.create({...question, model: 'claude-9'}));
ok(
  unknown instanceof Anthropic.NotFoundError && unknown.error?.error?.type === 'not_found_error', 'a wrong model is a NotFoundError',
  unknown);
const empty = await failure(client.messages.create({...base, messages: []}));
ok(empty instanceof Anthropic.BadRequestError && empty.message.includes('messages'), 'no messages', empty);

// --- abort
const endless =
  client.messages.stream({...base, temperature: 1, max_tokens: 3000, messages: [{role: 'user', content: 'Tell me a long story.'}]});
await new Promise((resolve) => endless.once('text', resolve));
endless.abort();
await failure(endless.finalMessage());
ok(await eventually(async () => (await server.debug()).length === 0, 1), 'an aborted stream is gone within a second');
await server.stop();

const locked = await serve(['--api-key', 'sk-right']);
const refused = await failure(new Anthropic({apiKey: 'sk-wrong', baseURL: locked.api, maxRetries: 0}).messages.create(question));
ok(
  refused instanceof Anthropic.AuthenticationError && refused.error?.error?.type === 'authentication_error',
  'a wrong key is an AuthenticationError', refused);
equal(
  text(await new Anthropic({apiKey: 'sk-right', baseURL: locked.api, maxRetries: 0})
         .messages.create({...question, max_tokens: 2000, thinking})),
  'The answer is 42.', 'x-api-key lets the right key in');
await locked.stop();
done();
