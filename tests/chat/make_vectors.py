#!/usr/bin/env python3
"""Developer tool: writes tests/chat/vectors/*.json with the answers of Python's jinja2, set up as transformers'
apply_chat_template does. The C++ test reads the vectors; oracle_test.mjs compares them with @huggingface/jinja.

Usage: python3 tests/chat/make_vectors.py      (needs python3-jinja2 3.1)
"""
import json
import pathlib

import jinja2
import jinja2.ext
from jinja2.sandbox import SandboxedEnvironment

HERE = pathlib.Path(__file__).resolve().parent


class Generation(jinja2.ext.Extension):
    """{% generation %} ... {% endgeneration %}: transparent, as in transformers without assistant masks."""

    tags = {"generation"}

    def parse(self, parser):
        next(parser.stream)
        return parser.parse_statements(["name:endgeneration"], drop_needle=True)


def environment():
    # transformers uses ImmutableSandboxedEnvironment; ours also permits list.append and dict.update, so this one does.
    env = SandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols])

    def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    def raise_exception(message):
        raise jinja2.exceptions.TemplateError(message)

    env.filters["tojson"] = tojson
    env.globals["raise_exception"] = raise_exception
    return env


def answer(env, template, variables):
    try:
        return {"expected": env.from_string(template).render(**variables)}
    except Exception as e:  # noqa: BLE001 - any failure of the oracle is an expected failure of ours
        return {"error": f"{type(e).__name__}: {e}"}


def write(name, value):
    path = HERE / "vectors" / name
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    print(f"{path}: {len(value)} vectors")


def snippets(env):
    variables = json.loads((HERE / "snippet_variables.json").read_text(encoding="utf-8"))
    out = []
    for line in (HERE / "snippets.txt").read_text(encoding="utf-8").splitlines():
        if not line or (line.startswith("# ")):
            continue
        template = line.replace("⏎", "\n")
        out.append({"template": template, **answer(env, template, variables)})
    write("snippets.json", out)


def templates(env):
    conversations = json.loads((HERE / "conversations.json").read_text(encoding="utf-8"))
    out = []
    for path in sorted((HERE / "templates").glob("*.jinja")):
        source = path.read_text(encoding="utf-8")
        for c in conversations:
            for extra in ({}, {"thinking": True, "enable_thinking": True}, {"thinking": False, "enable_thinking": False}):
                variables = {
                    "messages": c["messages"], "tools": c.get("tools"), "add_generation_prompt": c.get("add_generation_prompt", True),
                    "bos_token": "<｜begin▁of▁sentence｜>", "eos_token": "<｜end▁of▁sentence｜>",
                    "pad_token": "<｜end▁of▁sentence｜>", **extra,
                }
                out.append({"template": path.name, "conversation": c["name"], "extra": extra, **answer(env, source, variables)})
    write("templates.json", out)


if __name__ == "__main__":
    env = environment()
    snippets(env)
    templates(env)
