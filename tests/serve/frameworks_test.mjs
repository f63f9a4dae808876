// What programs are built with, against `dougong serve mini-r1`: the AI SDK (npm `ai` with `@ai-sdk/openai-compatible`) and
// LangChain (`@langchain/openai`), with their own parsing of streams, reasoning, tool calls and structured output.
import {done, equal, evaluation, eventually, load, ok, serve, watchdog} from './server.mjs';

watchdog(90);
const {generateObject, generateText, jsonSchema, embed, stepCountIs, streamText, tool} = load('ai');
const {createOpenAICompatible} = load('@ai-sdk/openai-compatible');
const {ChatOpenAI, OpenAI, OpenAIEmbeddings} = load('@langchain/openai');
const {AIMessage, HumanMessage, ToolMessage} = load('@langchain/core/messages');
const {z} = load('zod');
const server = await serve();
const baseURL = `${server.api}/v1`;
const name = 'mini-r1';
const task = evaluation().find((each) => each.id === 609);
const question = task.messages[0].content;
const result = '{"symbol": "INTC", "price": 284.52}';
const answer = 'The latest price of INTC is 284.52.';

// --- AI SDK
{
  globalThis.AI_SDK_LOG_WARNINGS = false;
  const provider = createOpenAICompatible({name: 'dougong', baseURL, includeUsage: true, supportsStructuredOutputs: true});
  const model = provider(name);
  const options = {model, temperature: 0, maxRetries: 0};
  const sum = await generateText({...options, prompt: 'What is 12 + 30?'});
  equal(
    [sum.text, sum.finishReason, sum.reasoningText?.includes('2+0=2')], ['The answer is 42.', 'stop', true],
    'ai: generateText with reasoning');
  const stream = streamText({...options, prompt: 'What is 12 + 30?'});
  let text = '', reasoning = '';
  for await (const part of stream.fullStream) {
    if (part.type === 'text-delta') text += part.text;
    if (part.type === 'reasoning-delta') reasoning += part.text;
  }
  equal(
    [text, reasoning, (await stream.usage).outputTokens], [sum.text, sum.reasoningText, sum.usage.outputTokens],
    'ai: streamText gives the same, with usage');

  const tools = Object.fromEntries(task.tools.map(
    ({
      function: each
    }) => [each.name, tool({description: each.description, inputSchema: jsonSchema(each.parameters), execute: () => JSON.parse(result)})]));
  const run = await generateText({...options, prompt: question, tools, stopWhen: stepCountIs(3)});
  equal(run.steps[0].toolCalls.map((call) => [call.toolName, call.input]), [['query_stock', {symbol: 'INTC'}]], 'ai: the tool call');
  ok(
    run.steps.length === 2 && run.text.includes('284.52'), 'ai: the loop ends with an answer that uses the result',
    JSON.stringify([run.steps.length, run.text]));
  const streamed = streamText({...options, prompt: question, tools: {query_stock: tools.query_stock}});
  equal(
    (await streamed.toolCalls).map((call) => [call.toolName, call.input]), [['query_stock', {symbol: 'INTC'}]], 'ai: a streamed tool call');
  const schema = z.object({city: z.enum(['Paris', 'Rome']), population: z.number().int().min(0)});
  const {object} = await generateObject({...options, schema, prompt: 'A city as JSON, please.', maxOutputTokens: 600});
  ok(schema.safeParse(object).success, 'ai: generateObject with a zod schema', JSON.stringify(object));
  const {embedding} = await embed({model: provider.embeddingModel(name), value: 'hello'});
  equal(embedding.length, 384, 'ai: embed');
  const abort = new AbortController();
  let aborted = false;
  for await (
    const part of streamText({...options, prompt: 'Tell me a long story.', temperature: 1, abortSignal: abort.signal}).fullStream) {
    if (part.type === 'reasoning-delta' || part.type === 'text-delta') abort.abort();
    if (part.type === 'abort') aborted = true;
  }
  ok(aborted && await eventually(async () => (await server.debug()).length === 0, 1), 'ai: an aborted stream is gone within a second');
  let error;
  await generateText({...options, model: provider('gpt-9'), prompt: 'x'}).catch((caught) => {
    error = caught;
  });
  ok(
    error?.statusCode === 404 && error.message.includes('gpt-9') && error.isRetryable === false, 'ai: a wrong model is an APICallError',
    error);
}

// --- LangChain
{
  const options = {model: name, apiKey: 'none', temperature: 0, maxRetries: 0, configuration: {baseURL}};
  const chat = new ChatOpenAI(options);
  const sum = await chat.invoke('What is 12 + 30?');
  ok(
    sum.content === 'The answer is 42.' && sum.usage_metadata.output_tokens > 20 && sum.response_metadata.finish_reason === 'stop',
    'langchain: invoke', JSON.stringify(sum.content));
  let text = '', chunks = 0;
  for await (const chunk of await chat.stream('What is 12 + 30?')) {
    text += chunk.content;
    chunks++;
  }
  ok(text === sum.content && chunks > 3, 'langchain: stream', `${chunks}: ${text}`);
  equal(
    (await chat.batch(['What is 12 + 30?', 'What is 2 + 3?'])).map((each) => each.content.length > 0), [true, true], 'langchain: batch');

  const bound = chat.bindTools(task.tools);
  const call = await bound.invoke(question);
  equal(call.tool_calls.map((each) => [each.name, each.args]), [['query_stock', {symbol: 'INTC'}]], 'langchain: bindTools');
  const last = await bound.invoke([
    new HumanMessage(question), new AIMessage({content: call.content, tool_calls: call.tool_calls}),
    new ToolMessage({content: result, tool_call_id: call.tool_calls[0]?.id ?? ''})
  ]);
  equal(last.content, answer, 'langchain: the answer uses the result');
  let gathered;
  for await (const chunk of await bound.stream(question)) gathered = gathered ? gathered.concat(chunk) : chunk;
  equal(gathered.tool_calls.map((each) => [each.name, each.args]), [['query_stock', {symbol: 'INTC'}]], 'langchain: a streamed tool call');

  const schema = {
    title: 'city',
    type: 'object',
    properties: {city: {type: 'string', enum: ['Paris', 'Rome']}, population: {type: 'integer', minimum: 0, maximum: 9999999}},
    required: ['city', 'population'],
    additionalProperties: false
  };
  for (const method of ['jsonSchema', 'functionCalling']) {
    const object = await new ChatOpenAI({...options, maxTokens: 700})
                     .withStructuredOutput(schema, {method, name: 'city', strict: true})
                     .invoke('A city, please.');
    ok(
      ['Paris', 'Rome'].includes(object?.city) && Number.isInteger(object.population), `langchain: withStructuredOutput, ${method}`,
      JSON.stringify(object));
  }
  const embeddings = new OpenAIEmbeddings({model: name, apiKey: 'none', maxRetries: 0, configuration: {baseURL}});
  const vectors = await embeddings.embedDocuments(['hello', 'a cat']);
  equal(
    [vectors.length, vectors[0].length, (await embeddings.embedQuery('hello')).every((value, i) => Math.abs(value - vectors[0][i]) < 1e-4)],
    [2, 384, true], 'langchain: embeddings');
  const completion = await new OpenAI({...options, maxTokens: 5}).invoke('Once upon a time');
  ok(completion.length > 3, 'langchain: completions', completion);
  const responses = await new ChatOpenAI({...options, useResponsesApi: true}).invoke('What is 12 + 30?');
  equal(responses.text, 'The answer is 42.', 'langchain: through the responses API');
  let error;
  await new ChatOpenAI({...options, temperature: 9}).invoke('x').catch((caught) => {
    error = caught;
  });
  ok(error?.status === 400 && error.message.includes('temperature'), 'langchain: a bad value is an error with its status', error);
}
await server.stop();
done();
