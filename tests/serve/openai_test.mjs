// OpenAI's own client (npm `openai`) against `dougong serve mini-r1`: chat, tools, structured output, logprobs, completions,
// embeddings, models, the responses API, errors as typed exceptions, aborts and timeouts.
import {done, equal, evaluation, eventually, load, ok, pause, serve, watchdog} from './server.mjs';

watchdog(120);
const OpenAI = load('openai').OpenAI;
const Ajv = load('ajv').default;
const server = await serve();
const client = new OpenAI({apiKey: 'none', baseURL: `${server.api}/v1`, maxRetries: 0});
const model = 'mini-r1';
const ask = (content, more = {}) => client.chat.completions.create({model, messages: [{role: 'user', content}], temperature: 0, ...more});

// The exception of a call that must fail.
async function failure(promise) {
  try {
    await promise;
  } catch (error) {
    return error;
  }
  return {};
}
function refused(error, type, status, parts, what) {
  const missing = parts.filter((part) => !String(error.message).includes(part));
  ok(
    error instanceof type && error.status === status && missing.length === 0 && !String(error.message).includes('\n'), what,
    `${error.constructor?.name} ${error.status} ${error.message}; missing ${missing.join(' | ')}`);
}

// --- chat
const sum = await ask('What is 12 + 30?');
{
  const choice = sum.choices[0];
  equal(choice.message.content, 'The answer is 42.', 'the model answers');
  ok(
    choice.message.reasoning_content.includes('2+0=2') && !choice.message.content.includes('think'), 'reasoning stands apart',
    JSON.stringify(choice));
  equal(
    [sum.object, choice.finish_reason, choice.message.role, sum.model], ['chat.completion', 'stop', 'assistant', model],
    'shape of a chat completion');
  const {usage} = sum;
  ok(
    usage.prompt_tokens > 5 && usage.completion_tokens > 20 && usage.total_tokens === usage.prompt_tokens + usage.completion_tokens &&
      usage.completion_tokens_details.reasoning_tokens > 10 && usage.completion_tokens_details.reasoning_tokens < usage.completion_tokens,
    'usage adds up and counts reasoning', JSON.stringify(usage));
}
{
  const chunks = [];
  for await (const chunk of await ask('What is 12 + 30?', {stream: true, stream_options: {include_usage: true}})) chunks.push(chunk);
  const deltas = chunks.flatMap((chunk) => chunk.choices.map((choice) => choice.delta));
  equal(deltas.map((delta) => delta.content ?? '').join(''), sum.choices[0].message.content, 'streamed content is the whole answer\'s');
  equal(
    deltas.map((delta) => delta.reasoning_content ?? '').join(''), sum.choices[0].message.reasoning_content,
    'streamed reasoning is the whole answer\'s');
  ok(deltas.filter((delta) => delta.content).length > 2, 'content comes in pieces', deltas.length);
  equal(
    chunks.flatMap((chunk) => chunk.choices).filter((choice) => choice.finish_reason).map((choice) => choice.finish_reason), ['stop'],
    'one finish reason');
  const {prompt_tokens, completion_tokens} = chunks.at(-1).usage ?? {};
  equal(
    [prompt_tokens, completion_tokens, chunks.filter((chunk) => chunk.usage).length],
    [sum.usage.prompt_tokens, sum.usage.completion_tokens, 1], 'the last chunk alone has the usage, the same as without streaming');
}
{
  const plain = [];
  for await (const chunk of await ask('What is 12 + 30?', {stream: true})) plain.push(chunk);
  ok(plain.every((chunk) => !chunk.usage && chunk.choices.length === 1), 'no usage unless asked for');
  const helper = client.chat.completions.stream({model, messages: [{role: 'user', content: 'What is 12 + 30?'}], temperature: 0});
  equal(await helper.finalContent(), sum.choices[0].message.content, 'the client\'s stream helper assembles the answer');
}
equal(
  (await ask('北京是哪个国家的首都？', {reasoning_effort: 'none'})).choices[0].message.reasoning_content ?? null, null,
  'reasoning_effort none: no reasoning');

// --- tools
const tasks = evaluation().filter((task) => task.match === 'tool');
const tools = tasks[0].tools;
{
  const wanted = tasks.filter((task, i) => i % 5 === 0);
  const answers = await Promise.all(
    wanted.map((task) => client.chat.completions.create({model, messages: task.messages, tools: task.tools, temperature: 0})));
  answers.forEach((answer, i) => {
    const calls = answer.choices[0].message.tool_calls ?? [];
    equal(
      [
        calls.map((call) => [call.function.name, JSON.parse(call.function.arguments)]), answer.choices[0].finish_reason,
        calls.every((call) => call.id && call.type === 'function')
      ],
      [JSON.parse(wanted[i].answer), 'tool_calls', true], `tool task ${wanted[i].id}: the right call`);
  });
}
{
  // The model asks for a tool, gets its result and answers with it: a whole turn as a program does it.
  const task = tasks.find((each) => each.id === 609);
  const messages = [...task.messages];
  const first = await client.chat.completions.create({model, messages, tools: task.tools, temperature: 0});
  const [call] = first.choices[0].message.tool_calls ?? [];
  equal(
    [call?.function.name, call?.function.arguments && JSON.parse(call.function.arguments)], ['query_stock', {symbol: 'INTC'}],
    'round trip: the call');
  messages.push(first.choices[0].message, {role: 'tool', tool_call_id: call?.id, content: '{"symbol": "INTC", "price": 284.52}'});
  const second = await client.chat.completions.create({model, messages, tools: task.tools, temperature: 0});
  equal(second.choices[0].message.content, 'The latest price of INTC is 284.52.', 'round trip: the answer uses the result');

  const pieces = {name: '', arguments: '', ids: 0, finish: ''};
  for await (const chunk of await client.chat.completions.create(
    {model, messages: messages.slice(0, 1), tools: task.tools, temperature: 0, stream: true})) {
    for (const piece of chunk.choices[0].delta.tool_calls ?? []) {
      pieces.name += piece.function?.name ?? '';
      pieces.arguments += piece.function?.arguments ?? '';
      pieces.ids += piece.id ? 1 : 0;
    }
    pieces.finish = chunk.choices[0].finish_reason ?? pieces.finish;
  }
  equal(
    [pieces.name, pieces.arguments, pieces.ids, pieces.finish], ['query_stock', call?.function.arguments, 1, 'tool_calls'],
    'a streamed call is the same call');

  const runner = client.chat.completions.runTools({
    model,
    messages: messages.slice(0, 1),
    temperature: 0,
    tools: task.tools.map(
      (tool) =>
        ({type: 'function', function: {...tool.function, parse: JSON.parse, function: () => '{"symbol": "INTC", "price": 284.52}'}})),
  });
  equal(await runner.finalContent(), 'The latest price of INTC is 284.52.', 'the client\'s tool runner gets to the answer');
}
{
  const email = tasks[0].messages[0].content;
  const [none, required, named, single] = await Promise.all([
    ask(email, {tools, tool_choice: 'none'}),
    ask('What is 12 + 30?', {tools, tool_choice: 'required', max_tokens: 300}),
    ask(email, {tools, tool_choice: {type: 'function', function: {name: 'track_order'}}, max_tokens: 300}),
    ask(email, {tools, parallel_tool_calls: false}),
  ]);
  equal([none.choices[0].message.tool_calls ?? null, none.choices[0].finish_reason], [null, 'stop'], 'tool_choice none: no call');
  const names = tools.map((tool) => tool.function.name);
  const [call] = required.choices[0].message.tool_calls ?? [];
  const schema = tools.find((tool) => tool.function.name === call?.function.name)?.function.parameters;
  ok(
    names.includes(call?.function.name) && new Ajv().validate(schema, JSON.parse(call.function.arguments)),
    'tool_choice required: a valid call', JSON.stringify(required.choices[0]));
  equal(named.choices[0].message.tool_calls?.map((each) => each.function.name), ['track_order'], 'tool_choice with a name: that tool');
  equal(single.choices[0].message.tool_calls?.length, 1, 'parallel_tool_calls false: one call');
}

// --- structured output
{
  const schema = {
    type: 'object',
    additionalProperties: false,
    required: ['name', 'age', 'tags'],
    properties: {
      name: {type: 'string', maxLength: 20},
      age: {type: 'integer', minimum: 0, maximum: 150},
      tags: {type: 'array', items: {enum: ['a', 'b']}, minItems: 1, maxItems: 3}
    },
  };
  const validate = new Ajv().compile(schema);
  const seeds = [1, 2, 3, 4];
  const texts = (await Promise.all(seeds.map((seed) => ask('Describe a person as JSON.', {
                                               seed,
                                               temperature: 1,
                                               reasoning_effort: seed % 2 ? 'none' : undefined,
                                               max_tokens: 400,
                                               response_format: {type: 'json_schema', json_schema: {name: 'person', schema, strict: true}},
                                             }))))
                  .map((answer) => answer.choices[0].message.content);
  const bad = texts.filter((text) => {
    try {
      return !validate(JSON.parse(text));
    } catch {
      return true;
    }
  });
  equal(bad, [], 'json_schema: every answer is valid, with and without reasoning, at temperature 1');
  const object = await ask(
    'Give me the JSON of a point with x and y.', {response_format: {type: 'json_object'}, max_tokens: 300, reasoning_effort: 'none'});
  let parsed;
  try {
    parsed = JSON.parse(object.choices[0].message.content);
  } catch {
  }
  ok(parsed && typeof parsed === 'object' && !Array.isArray(parsed), 'json_object: an object', JSON.stringify(object.choices[0]));
  const choice = await ask('Is the sky blue?', {guided_choice: ['yes', 'no'], reasoning_effort: 'none'});
  ok(['yes', 'no'].includes(choice.choices[0].message.content), 'guided_choice: one of the choices', choice.choices[0].message.content);
  refused(
    await failure(ask('x', {response_format: {type: 'json_schema', json_schema: {name: 'x', schema: {type: 'objet'}}}})),
    OpenAI.BadRequestError, 400, ['response_format.json_schema.schema', 'objet'], 'a wrong schema is a bad request that names the place');
}

// --- sampling
{
  const answer = await ask('What is 12 + 30?', {logprobs: true, top_logprobs: 3});
  const list = answer.choices[0].logprobs.content;
  // The end-of-sequence token is counted as generated and has no text.
  ok(
    Math.abs(list.length - answer.usage.completion_tokens) <= 1, 'logprobs for every token',
    `${list.length} ${answer.usage.completion_tokens}`);
  ok(
    list.every(
      (token) => token.logprob <= 0 && token.top_logprobs.length === 3 && token.top_logprobs[0].token === token.token &&
        token.top_logprobs[0].logprob >= token.top_logprobs[1].logprob && Math.abs(token.top_logprobs[0].logprob - token.logprob) < 1e-6),
    'greedy: the chosen token is the likeliest of the three shown', JSON.stringify(list[0]));
  const bytes = Buffer.from(list.flatMap((token) => token.bytes)).toString();
  ok(bytes.includes(answer.choices[0].message.content), 'the bytes of the tokens are the text', bytes);

  const two = await ask('Tell me a story.', {n: 2, temperature: 1, seed: 5, max_tokens: 40});
  const again = await ask('Tell me a story.', {n: 2, temperature: 1, seed: 5, max_tokens: 40});
  const other = await ask('Tell me a story.', {n: 2, temperature: 1, seed: 50, max_tokens: 40});
  const texts = (answer) => answer.choices.map((choice) => [choice.index, choice.message.reasoning_content, choice.message.content]);
  equal([two.choices.map((choice) => choice.index), two.usage.completion_tokens > 40], [[0, 1], true], 'n = 2: two answers');
  ok(texts(two)[0][1] !== texts(two)[1][1], 'n = 2: different ones');
  equal(texts(again), texts(two), 'the same seed gives the same answers');
  ok(JSON.stringify(texts(other)) !== JSON.stringify(texts(two)), 'another seed gives others');

  const short = await ask('What is 12 + 30?', {max_tokens: 5});
  equal([short.choices[0].finish_reason, short.usage.completion_tokens], ['length', 5], 'max_tokens ends the answer');
  equal((await ask('What is 12 + 30?', {max_completion_tokens: 7})).usage.completion_tokens, 7, 'max_completion_tokens too');
  const stopped = await ask('What is 12 + 30?', {stop: ['answer is']});
  equal(
    [stopped.choices[0].message.content, stopped.choices[0].finish_reason, stopped.choices[0].stop_reason], ['The ', 'stop', 'answer is'],
    'a stop text ends the answer and is not in it');
}

// --- completions
{
  const done16 = await client.completions.create({model, prompt: 'Once upon a time', temperature: 0});
  equal(
    [done16.object, done16.usage.completion_tokens, done16.choices[0].finish_reason], ['text_completion', 16, 'length'],
    'completions: 16 tokens unless told');
  const echo = await client.completions.create({model, prompt: 'Once upon a time', temperature: 0, echo: true, logprobs: 1, max_tokens: 4});
  const {logprobs, text} = echo.choices[0];
  ok(
    text.startsWith('Once upon a time') && done16.choices[0].text.startsWith(text.slice('Once upon a time'.length)),
    'echo: prompt and answer', text);
  equal(
    [logprobs.tokens.length, logprobs.token_logprobs[0], logprobs.token_logprobs.slice(1).every((value) => value <= 0)],
    [echo.usage.total_tokens, null, true], 'echo with logprobs: of the prompt\'s tokens too');
  const scored = await client.completions.create({model, prompt: 'Once upon a time', echo: true, logprobs: 0, max_tokens: 0});
  equal([scored.choices[0].text, scored.usage.completion_tokens], ['Once upon a time', 0], 'max_tokens 0 with echo scores a text');
  const many = await client.completions.create({model, prompt: ['a b', [10, 20, 30]], n: 2, max_tokens: 3, temperature: 1, seed: 1});
  equal(many.choices.map((choice) => choice.index), [0, 1, 2, 3], 'two prompts with n = 2: four choices');
  let streamed = '';
  for await (const chunk of await client.completions.create({model, prompt: 'Once upon a time', temperature: 0, stream: true}))
    streamed += chunk.choices[0]?.text ?? '';
  equal(streamed, done16.choices[0].text, 'a streamed completion is the same');
}

// --- embeddings
{
  const floats = await client.embeddings.create({model, input: ['hello', 'a cat', 'hello'], encoding_format: 'float'});
  const vectors = floats.data.map((item) => item.embedding);
  const dot = (a, b) => a.reduce((total, value, i) => total + value * b[i], 0);
  equal([vectors.length, vectors[0].length, floats.data.map((item) => item.index)], [3, 384, [0, 1, 2]], 'embeddings: one for each input');
  ok(
    Math.abs(dot(vectors[0], vectors[0]) - 1) < 1e-3 && Math.abs(dot(vectors[0], vectors[2]) - 1) < 1e-3 &&
      dot(vectors[0], vectors[1]) < 0.999,
    'embeddings have length 1; equal texts have equal ones', `${dot(vectors[0], vectors[2])} ${dot(vectors[0], vectors[1])}`);
  const encoded = await client.embeddings.create({model, input: 'hello', encoding_format: 'base64'});
  const raw = Buffer.from(encoded.data[0].embedding, 'base64');
  const decoded = Array.from({length: raw.length / 4}, (_, i) => raw.readFloatLE(4 * i));
  ok(decoded.length === 384 && decoded.every((value, i) => Math.abs(value - vectors[0][i]) < 1e-5), 'base64 holds the same floats');
  const unset = await client.embeddings.create({model, input: 'hello'});  // the client asks for base64 and decodes it
  ok(
    unset.data[0].embedding.length === 384 && Math.abs(unset.data[0].embedding[5] - vectors[0][5]) < 1e-5 && unset.usage.prompt_tokens > 0,
    'the client\'s own way of asking');
}

// --- models
{
  const list = [];
  for await (const each of await client.models.list()) list.push(each.id);
  equal(list, [model], 'models.list');
  const one = await client.models.retrieve(model);
  equal([one.id, one.object, one.max_model_len], [model, 'model', 4096], 'models.retrieve');
  refused(await failure(client.models.retrieve('gpt-9')), OpenAI.NotFoundError, 404, ['gpt-9'], 'models.retrieve of another model');
}

// --- responses
{
  const input = 'What is 12 + 30?';
  const response = await client.responses.create({model, input, temperature: 0});
  equal([response.output_text, response.status, response.object], ['The answer is 42.', 'completed', 'response'], 'responses.create');
  ok(
    response.output.some((item) => item.type === 'reasoning') && response.usage.output_tokens === sum.usage.completion_tokens,
    'responses: reasoning and usage', JSON.stringify(response.usage));
  const types = [];
  let text = '', final;
  for await (const event of await client.responses.create({model, input, temperature: 0, stream: true})) {
    types.push(event.type);
    if (event.type === 'response.output_text.delta') text += event.delta;
    if (event.type === 'response.completed') final = event.response;
  }
  equal(
    [text, types[0], types.at(-1), final?.usage.output_tokens],
    ['The answer is 42.', 'response.created', 'response.completed', response.usage.output_tokens], 'responses: streamed');
  const helper = await client.responses.stream({model, input, temperature: 0}).finalResponse();
  equal(helper.output_text, 'The answer is 42.', 'responses: the client\'s stream helper');

  const task = evaluation().find((each) => each.id === 601);
  const flat = task.tools.map((tool) => ({type: 'function', ...tool.function}));
  const messages = [{role: 'user', content: 'How much is one share of INTC?'}];
  const first = await client.responses.create({model, input: messages, tools: flat, temperature: 0});
  const call = first.output.find((item) => item.type === 'function_call');
  equal([call?.name, call && JSON.parse(call.arguments)], ['query_stock', {symbol: 'INTC'}], 'responses: a tool call');
  const second = await client.responses.create({
    model,
    temperature: 0,
    tools: flat,
    input:
      [...messages, ...first.output, {type: 'function_call_output', call_id: call?.call_id, output: '{"symbol": "INTC", "price": 284.52}'}],
  });
  equal(second.output_text, 'The latest price of INTC is 284.52.', 'responses: the answer uses the tool\'s result');
  const schema = {type: 'object', properties: {n: {type: 'integer', maximum: 99}}, required: ['n'], additionalProperties: false};
  const structured = await client.responses.create({
    model,
    input: 'A number, please.',
    temperature: 0,
    max_output_tokens: 400,
    reasoning: {effort: 'none'},
    text: {format: {type: 'json_schema', name: 'n', schema}}
  });
  ok(new Ajv().validate(schema, JSON.parse(structured.output_text || 'null')), 'responses: structured output', structured.output_text);
}

// --- errors
{
  const hot = await failure(ask('x', {temperature: 'hot'}));
  refused(hot, OpenAI.BadRequestError, 400, ['temperature', 'hot'], 'a wrong type is a BadRequestError');
  equal([hot.param, hot.type], ['temperature', 'invalid_request_error'], 'it names the parameter');
  refused(
    await failure(ask('x', {model: 'gpt-9'})), OpenAI.NotFoundError, 404, ['gpt-9', 'mini-r1'],
    'a wrong model is a NotFoundError that names the right one');
  equal((await failure(ask('x', {model: 'gpt-9'}))).code, 'model_not_found', 'with OpenAI\'s code');
  const long = await failure(ask('word '.repeat(6000)));
  refused(long, OpenAI.BadRequestError, 400, ['4096'], 'a prompt that is too long names the limit');
  equal(long.code, 'context_length_exceeded', 'with OpenAI\'s code');
  refused(await failure(client.chat.completions.create({model, messages: []})), OpenAI.BadRequestError, 400, ['messages'], 'no messages');
  refused(await failure(ask('x', {n: 1000})), OpenAI.BadRequestError, 400, ['n: '], 'n beyond the limit');
  refused(
    await failure(client.chat.completions.create(
      {model, messages: [{role: 'user', content: [{type: 'image_url', image_url: {url: 'data:image/png;base64,AAAA'}}]}]})),
    OpenAI.BadRequestError, 400, ['image_url'], 'a picture: this model reads text');
  refused(await failure(client.post('/nowhere', {body: {}})), OpenAI.NotFoundError, 404, ['/nowhere'], 'an unknown path');
}
{
  const late = await failure(client.completions.create({model, prompt: 'a', max_tokens: 3000, ignore_eos: true, timeout: 0.05}));
  ok(
    late.status === 504 && late.code === 'timeout', 'a deadline of the request ("timeout") is a 504',
    `${late.status} ${late.code} ${late.message}`);
  let error;
  try {
    for await (
      const chunk of await client.completions.create({model, prompt: 'a', max_tokens: 3000, ignore_eos: true, timeout: 0.1, stream: true}))
      void chunk;
  } catch (caught) {
    error = caught;
  }
  ok(
    error instanceof OpenAI.APIError && String(error.message).includes('deadline'),
    'a deadline inside a stream is an exception of the client', error);
  const start = Date.now();
  const gone = await failure(client.completions.create({model, prompt: 'a', max_tokens: 3000, ignore_eos: true}, {timeout: 150}));
  ok(gone instanceof OpenAI.APIConnectionTimeoutError && Date.now() - start < 3000, 'the client\'s own timeout', gone);
  ok(await eventually(async () => (await server.debug()).length === 0, 1), 'a client that timed out leaves no request behind');
}
{
  const stream = await client.completions.create({model, prompt: 'a', max_tokens: 3500, ignore_eos: true, stream: true});
  let running, chunks = 0;
  for await (const chunk of stream) {
    void chunk;
    if (++chunks < 3) continue;
    running = (await server.debug()).length;
    break;
  }
  stream.controller.abort();
  ok(
    running === 1 && await eventually(async () => (await server.debug()).length === 0, 1),
    'an aborted stream is gone from /debug/requests within a second', `running ${running}`);
}
await server.stop();

// --- keys and a full queue
{
  const limited = await serve(['--api-key', 'sk-right', '--max-queue', '1', '--max-num-seqs', '1']);
  const wrong = new OpenAI({apiKey: 'sk-wrong', baseURL: `${limited.api}/v1`, maxRetries: 0});
  refused(await failure(wrong.models.list()), OpenAI.AuthenticationError, 401, ['key'], 'a wrong key is an AuthenticationError');
  const right = new OpenAI({apiKey: 'sk-right', baseURL: `${limited.api}/v1`, maxRetries: 0});
  equal((await right.models.list()).data.length, 1, 'the right key is let in');
  const jobs = [];
  const body = {model, prompt: 'a', max_tokens: 150, ignore_eos: true};
  for (let i = 0; i < 6; i++) {
    jobs.push(failure(right.completions.create(body)));
    if (i === 0) await pause(50);
  }
  const results = await Promise.all(jobs);
  const busy = results.filter((error) => error instanceof OpenAI.RateLimitError);
  ok(
    busy.length >= 3 && busy.every((error) => error.status === 429 && Number(error.headers.get('retry-after')) >= 1) &&
      results.filter((error) => !error.status).length >= 2,
    'a full queue is a RateLimitError with Retry-After; the others are answered', results.map((error) => error.status ?? 'ok').join(' '));
  const patient = new OpenAI({apiKey: 'sk-right', baseURL: `${limited.api}/v1`, maxRetries: 5});
  const all = await Promise.all([1, 2, 3].map(() => failure(patient.completions.create({...body, max_tokens: 20}))));
  equal(all.map((error) => error.status ?? 'ok'), ['ok', 'ok', 'ok'], 'the client\'s retries obey Retry-After and succeed');
  await limited.stop();
}
done();
