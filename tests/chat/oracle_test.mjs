// Checks vectors/*.json against a second oracle, @huggingface/jinja. The vectors come from Python's jinja2 (make_vectors.py);
// where the JavaScript implementation differs from Python, Python is right, because transformers runs it. Such templates are
// listed in js_differs.json with the reason; the script fails when a vector differs that is not listed and when a listed
// one no longer differs.
//
// Usage: node tests/chat/oracle_test.mjs [--write] [node_modules]      default: $DOUGONG_NPM_DIR, then build/npm/node_modules
// --write: lists the present differences; edit the reasons afterwards.
import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath, pathToFileURL } from "node:url";

const here = dirname(fileURLToPath(import.meta.url));
const argument = process.argv.slice(2).find((a) => !a.startsWith("--"));
const modules = argument ?? process.env.DOUGONG_NPM_DIR ?? join(here, "../../build/npm/node_modules");
const entry = join(modules, "@huggingface/jinja/dist/index.js");
if (!existsSync(entry)) {
  console.log(`ok 1 - vectors agree with @huggingface/jinja # SKIP ${entry} is not installed`);
  process.exit(0);
}
const { Template } = await import(pathToFileURL(entry));
const read = (name) => JSON.parse(readFileSync(join(here, name), "utf8"));

function answer(source, variables) {
  try {
    return { expected: new Template(source).render(structuredClone(variables)) };
  } catch (error) {
    return { error: String(error) };
  }
}

const same = (vector, got) => ("error" in vector ? "error" in got : vector.expected === got.expected);
const different = [];
let compared = 0;

const snippetVariables = read("snippet_variables.json");
for (const vector of read("vectors/snippets.json")) {
  compared++;
  const got = answer(vector.template, snippetVariables);
  if (!same(vector, got)) different.push({ key: vector.template, python: vector, js: got });
}

const conversations = Object.fromEntries(read("conversations.json").map((c) => [c.name, c]));
const sources = {};
for (const vector of read("vectors/templates.json")) {
  compared++;
  sources[vector.template] ??= readFileSync(join(here, "templates", vector.template), "utf8");
  const c = conversations[vector.conversation];
  const eos = "<｜end▁of▁sentence｜>";
  const got = answer(sources[vector.template], {
    messages: c.messages, tools: c.tools ?? null, add_generation_prompt: c.add_generation_prompt ?? true,
    bos_token: "<｜begin▁of▁sentence｜>", eos_token: eos, pad_token: eos, ...vector.extra,
  });
  if (!same(vector, got)) different.push({ key: vector.template, python: vector, js: got });
}

const keys = new Set(different.map((d) => d.key));
if (process.argv.includes("--write")) {
  const known = existsSync(join(here, "js_differs.json")) ? read("js_differs.json") : {};
  const reasons = Object.fromEntries([...keys].map((k) => {
    const { js } = different.find((d) => d.key === k);
    return [k, known[k] ?? ("error" in js ? `JS: ${js.error}` : "JS renders another text")];
  }));
  writeFileSync(join(here, "js_differs.json"), JSON.stringify(reasons, null, 1) + "\n");
}
const listed = new Set(Object.keys(read("js_differs.json")));
const unexpected = different.filter((d) => !listed.has(d.key));
const gone = [...listed].filter((k) => !keys.has(k));
for (const d of unexpected) console.log("# differs:", JSON.stringify(d));
for (const k of gone) console.log("# listed in js_differs.json but equal now:", JSON.stringify(k));
console.log(`# ${compared} vectors compared, ${different.length} differ and are listed`);
console.log(`${unexpected.length ? "not ok" : "ok"} 1 - vectors agree with @huggingface/jinja but for the listed ones`);
console.log(`${gone.length ? "not ok" : "ok"} 2 - every listed difference exists`);
process.exit(unexpected.length || gone.length ? 1 : 0);
