// The table of options and the table of commands. Names follow vLLM; aliases are what users of SGLang and llama.cpp type.
#include "config/options.h"

namespace dg {
namespace {

// Commands that load weights, and those that only look at a checkpoint.
#define DG_RUN_COMMANDS "generate chat eval verify"
#define DG_MODEL_COMMANDS "inspect generate chat eval plan tokenize"
#define DG_TEXT_COMMANDS "generate chat eval"
constexpr double kNone = std::numeric_limits<double>::infinity();
using enum OptionType;

constexpr OptionRow kOptions[] = {
    // --- model and memory
    {.name = "model", .commands = DG_MODEL_COMMANDS, .type = kText, .fallback = "",
     .help = "model directory or name, instead of the first argument", .value = "MODEL", .aliases = "-m --model-path"},
    {.name = "dtype", .commands = DG_RUN_COMMANDS " inspect plan", .type = kChoice, .fallback = "auto",
     .help = "weights of the linear layers: as published (auto), or converted while loading; float32 computes everything exactly",
     .value = "TYPE", .choices = "auto|float32|bfloat16|float16"},
    {.name = "quantization", .commands = DG_RUN_COMMANDS " inspect plan", .type = kText, .fallback = "",
     .help = "convert the linear layers to this weight format while loading (`dougong version` lists the formats)", .value = "FORMAT",
     .aliases = "-q --quantize"},
    {.name = "kv-cache-dtype", .commands = DG_RUN_COMMANDS " inspect plan", .type = kChoice, .fallback = "auto",
     .help = "type of the KV cache; auto: bfloat16, or float32 with --dtype float32", .value = "TYPE",
     .choices = "auto|float32|bfloat16|float16", .aliases = "-ctk --cache-type-k"},
    {.name = "max-model-len", .commands = DG_TEXT_COMMANDS " plan", .type = kInteger, .fallback = "0",
     .help = "longest context in tokens; 0: the model's, at most 8192", .value = "TOKENS", .low = 0, .high = 1 << 30,
     .aliases = "-c --ctx-size --context-length"},
    {.name = "max-num-batched-tokens", .commands = DG_TEXT_COMMANDS, .type = kInteger, .fallback = "512",
     .help = "rows of one step, prompt and generated tokens together", .value = "TOKENS", .low = 1, .high = 65536,
     .aliases = "-b --batch-size --chunked-prefill-size"},
    {.name = "chunk", .commands = DG_RUN_COMMANDS, .type = kInteger, .fallback = "0",
     .help = "tokens of a prompt computed in one step; 0: as many as a step takes. The answer does not depend on it", .value = "TOKENS",
     .low = 0, .high = 65536, .aliases = "-ub --ubatch-size"},
    // --- where it runs
    {.name = "backend", .commands = DG_RUN_COMMANDS, .type = kChoice, .fallback = "cpu",
     .help = "cpu: fast kernels; reference: plain loops that define every operation; checked: both, stops at the first difference",
     .value = "NAME", .choices = "cpu|reference|checked"},
    {.name = "isa", .commands = DG_RUN_COMMANDS, .type = kText, .fallback = "auto",
     .help = "instruction set of the cpu backend, such as generic, avx2, avx512; auto: the best this machine has", .value = "NAME"},
    {.name = "threads", .commands = DG_RUN_COMMANDS, .type = kInteger, .fallback = "0",
     .help = "worker threads; 0: one for each physical core this process may use", .value = "N", .low = 0, .high = 4096, .aliases = "-t"},
    // --- prompt
    {.name = "prompt", .commands = "generate", .type = kText, .fallback = "", .help = "the question, or with --raw the text to continue",
     .value = "TEXT", .aliases = "-p"},
    {.name = "prompt-file", .commands = "generate", .type = kText, .fallback = "", .help = "read the prompt from a file; - is standard input",
     .value = "FILE", .aliases = "-f --file"},
    {.name = "system", .commands = "generate chat", .type = kText, .fallback = "", .help = "system prompt", .value = "TEXT",
     .aliases = "-sys --system-prompt"},
    {.name = "chat", .commands = "generate", .type = kFlag, .fallback = "",
     .help = "render the prompt in the model's chat format (the default where the model has one)", .aliases = "-cnv --conversation"},
    {.name = "raw", .commands = "generate", .type = kFlag, .fallback = "", .help = "continue the prompt as plain text, without chat format"},
    {.name = "chat-format", .commands = DG_TEXT_COMMANDS, .type = kText, .fallback = "auto",
     .help = "prompt encoder: auto, jinja (the model's own template) or a native name such as deepseek_r1", .value = "NAME"},
    {.name = "thinking", .commands = DG_TEXT_COMMANDS, .type = kFlag, .fallback = "",
     .help = "let the model reason before it answers, or not (--no-thinking); unset: the model's default", .aliases = "--enable-thinking"},
    {.name = "hide-thinking", .commands = "generate chat", .type = kFlag, .fallback = "", .help = "do not print the reasoning, only the answer"},
    // --- sampling
    {.name = "max-tokens", .commands = DG_TEXT_COMMANDS, .type = kInteger, .fallback = "0",
     .help = "most tokens to generate; 0: until the context is full (eval: 420)", .value = "TOKENS", .low = 0, .high = 1 << 30,
     .aliases = "-n --n-predict --predict --max-new-tokens --max-completion-tokens"},
    {.name = "temperature", .commands = DG_TEXT_COMMANDS, .type = kNumber, .fallback = "",
     .help = "0: always the likeliest token; unset: generation_config.json (eval: 0)", .value = "X", .low = 0, .high = 100, .aliases = "--temp"},
    {.name = "top-k", .commands = DG_TEXT_COMMANDS, .type = kInteger, .fallback = "", .help = "sample among the K likeliest tokens; 0 or -1: all",
     .value = "K", .low = -1, .high = 1 << 30},
    {.name = "top-p", .commands = DG_TEXT_COMMANDS, .type = kNumber, .fallback = "",
     .help = "sample among the likeliest tokens that together have this probability", .value = "P", .low = 0, .high = 1},
    {.name = "min-p", .commands = DG_TEXT_COMMANDS, .type = kNumber, .fallback = "",
     .help = "leave out tokens below this fraction of the likeliest token's probability", .value = "P", .low = 0, .high = 1},
    {.name = "repetition-penalty", .commands = DG_TEXT_COMMANDS, .type = kNumber, .fallback = "",
     .help = "above 1 makes tokens of the prompt and the answer less likely", .value = "X", .low = 0.01, .high = 100,
     .aliases = "--repeat-penalty"},
    {.name = "presence-penalty", .commands = DG_TEXT_COMMANDS, .type = kNumber, .fallback = "0",
     .help = "subtracted from the logit of every token that the answer already has", .value = "X", .low = -100, .high = 100},
    {.name = "frequency-penalty", .commands = DG_TEXT_COMMANDS, .type = kNumber, .fallback = "0",
     .help = "subtracted from a token's logit for each time that the answer already has it", .value = "X", .low = -100, .high = 100},
    {.name = "seed", .commands = DG_TEXT_COMMANDS " synth", .type = kInteger, .fallback = "",
     .help = "the same seed gives the same text; unset: a new one each time (--json reports it; eval: 0)", .value = "N", .low = 0,
     .high = 9007199254740991.0, .aliases = "-s"},
    {.name = "stop", .commands = "generate chat", .type = kList, .fallback = "",
     .help = "end the answer before this text; may be repeated", .value = "TEXT", .aliases = "-r --reverse-prompt"},
    {.name = "ignore-eos", .commands = "generate", .type = kFlag, .fallback = "", .help = "do not end at the model's end-of-sequence token"},
    // --- eval
    {.name = "suite", .commands = "eval", .type = kText, .fallback = "", .help = "questions, one JSON object a line", .value = "FILE.jsonl"},
    {.name = "perplexity", .commands = "eval", .type = kText, .fallback = "",
     .help = "text whose perplexity is measured; lines with only %% separate documents", .value = "FILE.txt"},
    {.name = "perplexity-mode", .commands = "eval", .type = kChoice, .fallback = "auto",
     .help = "per_document: each alone between BOS and EOS; windows_1024: joined, in runs of 1023 tokens behind BOS; auto: both where %% "
             "lines occur, else windows_1024",
     .value = "MODE", .choices = "auto|per_document|windows_1024|both"},
    {.name = "limit", .commands = "eval", .type = kInteger, .fallback = "0", .help = "take only N questions, spread over the suite; 0: all",
     .value = "N", .low = 0, .high = 1 << 30},
    {.name = "batch", .commands = "eval", .type = kInteger, .fallback = "32", .help = "questions answered at the same time; no answer depends on it",
     .value = "N", .low = 1, .high = 1024, .aliases = "--max-num-seqs --max-running-requests -np --parallel"},
    {.name = "output", .commands = "eval", .type = kText, .fallback = "", .help = "write every answer and its verdict, one JSON object a line",
     .value = "FILE.jsonl", .aliases = "-o"},
    {.name = "min-accuracy", .commands = "eval", .type = kNumber, .fallback = "", .help = "exit with code 1 below this accuracy", .value = "PERCENT",
     .low = 0, .high = 100},
    {.name = "max-perplexity", .commands = "eval", .type = kNumber, .fallback = "", .help = "exit with code 1 when a perplexity is above this",
     .value = "X", .low = 1, .high = kNone},
    // --- inspect, tokenize, plan
    {.name = "tensors", .commands = "inspect", .type = kFlag, .fallback = "", .help = "list every tensor: name, type, shape, bytes, file"},
    {.name = "jsonl", .commands = "tokenize", .type = kFlag, .fallback = "",
     .help = "read lines {\"text\": ...} and write lines {\"ids\": [...]}; with --decode the other way round"},
    {.name = "bos", .commands = "tokenize", .type = kFlag, .fallback = "true",
     .help = "add the special tokens the tokenizer adds by itself, or not (--no-bos)"},
    {.name = "decode", .commands = "tokenize", .type = kFlag, .fallback = "", .help = "the input is token ids; print the text"},
    {.name = "skip-special", .commands = "tokenize", .type = kFlag, .fallback = "", .help = "with --decode: leave out special tokens"},
    {.name = "dry-run", .commands = "plan", .type = kFlag, .fallback = "true", .help = "count bytes and operations without loading weights"},
    {.name = "prompt-tokens", .commands = "plan", .type = kInteger, .fallback = "512", .help = "prompt length of the prefill step",
     .value = "TOKENS", .low = 1, .high = 1 << 24},
    {.name = "context", .commands = "plan", .type = kInteger, .fallback = "1024", .help = "context length of the decode step", .value = "TOKENS",
     .low = 1, .high = 1 << 30},
    {.name = "sequences", .commands = "plan", .type = kInteger, .fallback = "1", .help = "sequences of the decode step", .value = "N", .low = 1,
     .high = 65536},
    // --- synth
    {.name = "tokenizer", .commands = "synth", .type = kText, .fallback = "",
     .help = "directory whose tokenizer, chat template and generation_config.json are copied beside the weights", .value = "DIR"},
    {.name = "force", .commands = "synth", .type = kFlag, .fallback = "false", .help = "write over a model that is there already"},
    // --- output
    {.name = "json", .commands = "*", .type = kFlag, .fallback = "", .help = "print JSON for programs instead of text for people"},
    {.name = "quiet", .commands = DG_RUN_COMMANDS, .type = kFlag, .fallback = "", .help = "no progress and no statistics on standard error"},
    {.name = "log-level", .commands = DG_RUN_COMMANDS " inspect plan tokenize", .type = kChoice, .fallback = "warning",
     .help = "log lines on standard error", .value = "LEVEL", .choices = "debug|info|warning|error|off"},
    {.name = "help", .commands = "*", .type = kFlag, .fallback = "", .help = "this text", .aliases = "-h"},
};

constexpr CommandRow kCommands[] = {
    {.name = "generate", .arguments = "MODEL [PROMPT]", .min_arguments = 0, .max_arguments = 2,
     .summary = "answer one prompt, streamed to standard output",
     .details =
         "The prompt comes from the second argument, --prompt, --prompt-file or standard input. Sampling defaults come from the model's\n"
         "generation_config.json. On a terminal the reasoning is dim; elsewhere it stands between the lines <think> and </think>.\n"
         "Ctrl-C ends the answer (exit code 130).\n"
         "\n"
         "--json prints one object: model, prompt_tokens, output_tokens, finish_reason (stop | length | context | cancelled), stop (the\n"
         "stop text that was met, or null), reasoning, text, ids, seed, temperature, prefill_s, decode_s, prefill_tokens_per_s,\n"
         "decode_tokens_per_s."},
    {.name = "chat", .arguments = "MODEL", .min_arguments = 0, .max_arguments = 1,
     .summary = "talk with a model on the terminal",
     .details =
         "A line that ends in \\ goes on in the next one; \"\"\" begins and ends a block of lines. Lines that begin with / are commands: /help\n"
         "lists them. Ctrl-C stops the answer; at an empty prompt, twice, it quits. Standard input may be a file or a pipe: every line\n"
         "is a message. The history of the input is kept in $XDG_STATE_HOME/dougong/chat_history.\n"
         "\n"
         "--json prints one object for each answer: reasoning, text, prompt_tokens, cached_tokens, output_tokens, finish_reason,\n"
         "prefill_s, decode_s."},
    {.name = "eval", .arguments = "MODEL", .min_arguments = 0, .max_arguments = 1,
     .summary = "measure a model: answers to a suite of questions, or perplexity of a text",
     .details =
         "Without --suite and --perplexity the files eval/mini_eval.jsonl and eval/heldout_text.txt of the model's directory are used.\n"
         "A line of a suite: {\"messages\": [...], \"tools\": [...] or null, \"thinking\": true, \"match\": exact | contains | lastnum | json |\n"
         "tool | open, \"answer\": \"...\", \"task\": \"...\", \"id\": ...}; `open` questions are answered but not judged. Decoding is greedy unless\n"
         "--temperature is given.\n"
         "\n"
         "--json prints one object: model, suite {accuracy, correct, judged, questions, output_tokens, seconds, finished, tasks {name:\n"
         "{correct, judged}}}, perplexity {per_document {perplexity, tokens}, windows_1024 {perplexity, tokens}, seconds}.\n"
         "--output writes {id, task, match, correct, reasoning, text, prompt_tokens, output_tokens, finish_reason} per question."},
    {.name = "inspect", .arguments = "MODEL", .min_arguments = 0, .max_arguments = 1,
     .summary = "what a checkpoint is: architecture, parameters, bytes, KV cache",
     .details =
         "Reads only config.json and the headers of the weight files, and checks them against the architecture.\n"
         "\n"
         "--json prints one object: model, architecture, model_type, parameters, active_parameters, layers, hidden_size, vocab_size,\n"
         "max_position, checkpoint_bytes, files, loaded_bytes, formats {name: bytes}, classes {name: {tensors, parameters, bytes}},\n"
         "kv_bytes_per_token, kv_parts, mtp_modules, tensors (with --tensors) [{name, dtype, shape, bytes, file}]."},
    {.name = "verify", .arguments = "DIR", .min_arguments = 1, .max_arguments = 1,
     .summary = "compare a checkpoint with the reference.safetensors beside its weights",
     .details =
         "Per prompt: largest difference of a logit, KL divergence, agreement of the likeliest token, the first layer whose hidden state\n"
         "leaves the tolerance, and the greedy continuation. Exit code 1 when something differs. Needs no tokenizer."},
    {.name = "tokenize", .arguments = "DIR [TEXT...]", .min_arguments = 0, .max_arguments = -1,
     .summary = "text to token ids, or back with --decode",
     .details =
         "The text comes from the arguments (joined by one blank) or from standard input, taken as it is. Ids are printed on one line,\n"
         "separated by blanks; --decode reads ids in that form.\n"
         "\n"
         "--json prints {\"ids\": [...], \"tokens\": [...]}, with --decode {\"text\": \"...\"}."},
    {.name = "plan", .arguments = "MODEL", .min_arguments = 0, .max_arguments = 1,
     .summary = "bytes and operations of prefill and decode, counted without loading weights",
     .details = "Runs the model's forward on the dry backend."},
    {.name = "synth", .arguments = "CONFIG OUT", .min_arguments = 2, .max_arguments = 2,
     .summary = "write a checkpoint with random weights, for benchmarks",
     .details =
         "CONFIG is a config.json or a directory that holds one; OUT is the directory to make. The tensors are those the architecture\n"
         "asks for, in bf16, or FP8 blocks when quantization_config says so, in shards of about 1 GB."},
    {.name = "version", .arguments = "", .min_arguments = 0, .max_arguments = 0,
     .summary = "version, compiler, weight formats and architectures",
     .details = "--json prints one object: version, compiler, target, instruction_sets, architectures, formats, chat_formats."},
};

}  // namespace

std::span<const OptionRow> option_rows() { return kOptions; }
std::span<const CommandRow> command_rows() { return kCommands; }

}  // namespace dg
