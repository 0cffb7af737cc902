"""Does Ollama render what the chat template renders? Its template engine is Go's, and so is this.

    python benchmarks/ollama_in_go.py [TEMPLATE.jinja …]

Needs `go`. The TEMPLATE of each built-in format and of each file is parsed and executed by Go's
text/template over conversations of one to five messages, with and without a system text, on the
variables that Ollama gives it. Prints a line a template; exit code 1 if a text differs.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from graftlm.data.chat import use_chat_template
from graftlm.data.templates import BUILT_IN
from graftlm.errors import GraftLMError
from graftlm.exporting.ollama_template import ollama_template
from graftlm.planning.baseline_memory import byte_tokenizer

PROGRAM = """
package main

import ("encoding/json"; "os"; "strings"; "text/template")

type message struct { Role, Content string }
type request struct { Template string; Messages []*message }

func main() {
	var asked []request
	if err := json.NewDecoder(os.Stdin).Decode(&asked); err != nil { panic(err) }
	var texts []string
	for _, one := range asked {
		made, err := template.New("").Option("missingkey=zero").Parse(one.Template)
		if err != nil { panic(err) }
		var system []string
		for _, m := range one.Messages {
			if m.Role == "system" { system = append(system, m.Content) }
		}
		var text strings.Builder
		values := map[string]any{
			"System": strings.Join(system, "\\n\\n"), "Messages": one.Messages, "Response": "",
		}
		if err := made.Execute(&text, values); err != nil { panic(err) }
		texts = append(texts, text.String())
	}
	json.NewEncoder(os.Stdout).Encode(texts)
}
"""
TALKS = [
    [("user", "a")],
    [("user", "a {{ .x }}"), ("assistant", "b"), ("user", "c")],
    [("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"), ("user", "e\n{")],
    [("system", "s"), ("user", "a")],
    [("system", "s"), ("user", "a"), ("assistant", "b"), ("user", "c")],
]


def main() -> None:
    """Render every template by both, and compare."""
    texts = dict.fromkeys(sorted(BUILT_IN))
    texts |= {Path(file).name: Path(file).read_text(encoding="utf-8") for file in sys.argv[1:]}
    asked: list[dict[str, Any]] = []
    expected: list[tuple[str, str]] = []
    for name, text in texts.items():
        tokenizer = byte_tokenizer()
        tokenizer.add_special_tokens({"bos_token": "<s>"})
        if text is None:
            use_chat_template(tokenizer, name)
        else:
            tokenizer.chat_template = text
        try:
            found = ollama_template(tokenizer)
        except GraftLMError as error:
            print(f"{name}: refused: {error}")
            continue
        for talk in TALKS:
            messages = [{"role": role, "content": words} for role, words in talk]
            if talk[0][0] == "system" and found.before_system is None:
                continue
            rendered = tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True
            )
            expected.append((name, rendered.removeprefix(tokenizer.bos_token or "")))
            given = messages
            if found.default_system and talk[0][0] != "system":  # the Modelfile's SYSTEM
                given = [{"role": "system", "content": found.default_system}, *messages]
            asked.append({"Template": found.text(), "Messages": given})
    said = in_go(asked)
    equal: dict[str, list[bool]] = {}
    for (name, text), there in zip(expected, said, strict=True):
        equal.setdefault(name, []).append(text == there)
    for name, results in equal.items():
        print(f"{name}: {sum(results)} of {len(results)} conversations equal")
    raise SystemExit(not all(all(results) for results in equal.values()))


def in_go(asked: list[dict[str, Any]]) -> list[str]:
    """The texts that Go makes."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "main.go"
        file.write_text(PROGRAM)
        done = subprocess.run(
            ["go", "run", str(file)],
            input=json.dumps(asked),
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
    found: list[str] = json.loads(done.stdout)
    return found


if __name__ == "__main__":
    main()
