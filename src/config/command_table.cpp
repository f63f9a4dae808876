// The table of commands: what `dougong --help` and docs/options.md say about each.
#include "config/options.h"

namespace dg {
namespace {

constexpr CommandRow kCommands[] = {
    {.name = "generate",
     .arguments = "MODEL [PROMPT]",
     .min_arguments = 0,
     .max_arguments = 2,
     .summary = "answer one prompt, streamed to standard output",
     .details =
         "The prompt comes from the second argument, --prompt, --prompt-file or standard input. Sampling defaults come from the model's\n"
         "generation_config.json. On a terminal the reasoning is dim; elsewhere it stands between the lines <think> and </think>.\n"
         "Ctrl-C ends the answer (exit code 130).\n"
         "\n"
         "--json prints one object: model, prompt_tokens, output_tokens, finish_reason (stop | length | context | cancelled), stop (the\n"
         "stop text that was met, or null), reasoning, text, ids, seed, temperature, prefill_s, decode_s, prefill_tokens_per_s,\n"
         "decode_tokens_per_s."},
    {.name = "chat",
     .arguments = "MODEL",
     .min_arguments = 0,
     .max_arguments = 1,
     .summary = "talk with a model on the terminal",
     .details =
         "A line that ends in \\ goes on in the next one; \"\"\" begins and ends a block of lines. Lines that begin with / are commands: "
         "/help\n"
         "lists them. Ctrl-C stops the answer; at an empty prompt, twice, it quits. Standard input may be a file or a pipe: every line\n"
         "is a message. The history of the input is kept in $XDG_STATE_HOME/dougong/chat_history.\n"
         "\n"
         "--json prints one object for each answer: reasoning, text, prompt_tokens, cached_tokens, output_tokens, finish_reason,\n"
         "prefill_s, decode_s."},
    {.name = "serve",
     .arguments = "MODEL",
     .min_arguments = 0,
     .max_arguments = 1,
     .summary = "serve a model to many users over an OpenAI-compatible API",
     .details = "API: /v1/chat/completions /v1/completions /v1/embeddings /v1/messages /v1/responses /v1/models /tokenize /detokenize "
                "/health /ready\n"
                "/version /load. Admin, on its own port: /metrics /debug/requests /admin/abort /admin/drain /admin/reset_prefix_cache.\n"
                "SIGTERM and Ctrl-C let running requests finish within --shutdown-timeout; a second one ends at once (exit code 130).\n"
                "\n"
                "--json prints one object when the server is ready: model, api, admin, kv_blocks, max_model_len, load_s."},
    {.name = "keys",
     .arguments = "NAME",
     .min_arguments = 1,
     .max_arguments = 1,
     .summary = "make an API key for `serve --api-key-file`",
     .details = "Prints the key, once, and the line for the file, which holds only its salted hash.\n"
                "\n"
                "--json prints one object: key, line."},
    {.name = "eval",
     .arguments = "MODEL",
     .min_arguments = 0,
     .max_arguments = 1,
     .summary = "measure a model: answers to a suite of questions, or perplexity of a text",
     .details =
         "Without --suite and --perplexity the files eval/mini_eval.jsonl and eval/heldout_text.txt of the model's directory are used.\n"
         "A line of a suite: {\"messages\": [...], \"tools\": [...] or null, \"thinking\": true, \"match\": exact | contains | lastnum | "
         "json |\n"
         "tool | open, \"answer\": \"...\", \"task\": \"...\", \"id\": ...}; `open` questions are answered but not judged. Decoding is "
         "greedy unless\n"
         "--temperature is given.\n"
         "\n"
         "--json prints one object: model, suite {accuracy, correct, judged, questions, output_tokens, seconds, finished, tasks {name:\n"
         "{correct, judged}}}, perplexity {per_document {perplexity, tokens}, windows_1024 {perplexity, tokens}, seconds}.\n"
         "--output writes {id, task, match, correct, reasoning, text, prompt_tokens, output_tokens, finish_reason} per question."},
    {.name = "inspect",
     .arguments = "MODEL",
     .min_arguments = 0,
     .max_arguments = 1,
     .summary = "what a checkpoint is: architecture, parameters, bytes, KV cache",
     .details =
         "Reads only config.json and the headers of the weight files, and checks them against the architecture.\n"
         "\n"
         "--json prints one object: model, architecture, model_type, parameters, active_parameters, layers, hidden_size, vocab_size,\n"
         "max_position, checkpoint_bytes, files, loaded_bytes, formats {name: bytes}, classes {name: {tensors, parameters, bytes}},\n"
         "kv_bytes_per_token, kv_parts, mtp_modules, tensors (with --tensors) [{name, dtype, shape, bytes, file}]."},
    {.name = "verify",
     .arguments = "DIR",
     .min_arguments = 1,
     .max_arguments = 1,
     .summary = "compare a checkpoint with the reference.safetensors beside its weights",
     .details =
         "Per prompt: largest difference of a logit, KL divergence, agreement of the likeliest token, the first layer whose hidden state\n"
         "leaves the tolerance, and the greedy continuation. Exit code 1 when something differs. Needs no tokenizer."},
    {.name = "tokenize",
     .arguments = "DIR [TEXT...]",
     .min_arguments = 0,
     .max_arguments = -1,
     .summary = "text to token ids, or back with --decode",
     .details =
         "The text comes from the arguments (joined by one blank) or from standard input, taken as it is. Ids are printed on one line,\n"
         "separated by blanks; --decode reads ids in that form.\n"
         "\n"
         "--json prints {\"ids\": [...], \"tokens\": [...]}, with --decode {\"text\": \"...\"}."},
    {.name = "plan",
     .arguments = "MODEL",
     .min_arguments = 0,
     .max_arguments = 1,
     .summary = "bytes and operations of prefill and decode, counted without loading weights",
     .details = "Runs the model's forward on the dry backend. With -tp, the figures are those of one rank."},
    {.name = "synth",
     .arguments = "CONFIG OUT",
     .min_arguments = 2,
     .max_arguments = 2,
     .summary = "write a checkpoint with random weights, for benchmarks",
     .details =
         "CONFIG is a config.json or a directory that holds one; OUT is the directory to make. The tensors are those the architecture\n"
         "asks for, in bf16, or FP8 blocks when quantization_config says so, in shards of about 1 GB. With --format gguf OUT is one\n"
         "file, and --from takes the weights of a checkpoint instead of random ones."},
    {.name = "bench",
     .arguments = "machine|serve",
     .min_arguments = 1,
     .max_arguments = 1,
     .summary = "measure the limits of this machine, or a server under load",
     .details =
         "`bench machine` measures what this machine can do at most: read bandwidth by number of threads and between NUMA nodes, copy\n"
         "bandwidth, and the peak of each instruction set of this program for one thread and for all (--threads). It takes some seconds\n"
         "on an otherwise idle machine; medians are given with their spread. The result is kept in ~/.cache/dougong/machine.json, where\n"
         "other benchmarks and --profile find what 100 % is.\n"
         "\n"
         "--json prints one object: version, cpu, topology, threads, read_bandwidth [{threads, bytes_per_s}], node_bandwidth [{cpu_node,\n"
         "memory_node, threads, bytes_per_s}], copy_bytes_per_s, peaks [{isa, type, operands (registers | l2), instruction,\n"
         "one_thread_ops_per_s, all_threads_ops_per_s}]; every figure is {median, low, high}.\n"
         "\n"
         "`bench serve` loads a server with OpenAI's API and streams every answer. Figures are defined as in `vllm bench serve`: TTFT is\n"
         "the time to the first text, ITL the time between two events with text, E2EL the time to the last text, TPOT (E2EL - TTFT) /\n"
         "(output tokens - 1). Tokens are counted by the server (stream_options.include_usage), else one for each event. Ctrl-C ends the\n"
         "run and reports what was measured (exit code 130). Exit code 1: no request succeeded.\n"
         "\n"
         "--json prints one object: backend, url, endpoint, model_id, dataset, num_prompts, max_concurrency, seed, interrupted,\n"
         "request_rate, duration, completed, failed, disconnected, cancelled, total_input_tokens, total_output_tokens,\n"
         "request_throughput, output_throughput, total_token_throughput, {mean,median,std,p99}_{ttft,tpot,itl,e2el}_ms, errors {kind:\n"
         "count}, error_examples {kind: text}. Kinds: connect, timeout, closed, malformed, error_event, http_STATUS."},
    {.name = "version",
     .arguments = "",
     .min_arguments = 0,
     .max_arguments = 0,
     .summary = "version, compiler, weight formats and architectures",
     .details = "--json prints one object: version, compiler, target, instruction_sets, architectures, formats, chat_formats."},
};

}  // namespace

std::span<const CommandRow> command_rows() { return kCommands; }

}  // namespace dg
