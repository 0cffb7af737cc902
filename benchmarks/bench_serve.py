"""Requests and tokens a second of endpoints, in one run: `python benchmarks/bench_serve.py`.

Gemma-3-270M behind

- `graftlm serve`, in bfloat16 and in NF4;
- `transformers serve`, in bfloat16, as it comes and with continuous batching;
- `python -m llama_cpp.server` (llama.cpp, from llama-cpp-python), the same weights in Q4_0.

All servers are up and take turns, `--rounds` times: first one request alone, then `--requests` at
once (text completions, greedy, `--tokens` tokens at most). Counted are the tokens that each server
says it wrote. Printed are medians. A server that is not installed, or does not start or answer, is
named with the reason, and left out.

    pip install "graftlm[serve]" "transformers[serving]" "llama-cpp-python[server]"
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import importlib.util
import json
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from base_as_gguf import base_as_gguf

from graftlm.models import resolve

MODEL = "gemma-3-270m"
START_SECONDS = 180
SUBJECTS = "the sea|a market|winter|two friends|a long train ride|bread|the moon|an old radio"


def prompt(number: int) -> str:
    subjects = SUBJECTS.split("|")
    return f"Story number {number}, about {subjects[number % len(subjects)]}. Once upon a time,"


class Server:
    """A server in a process of its own."""

    def __init__(self, name: str, command: list[str], model: str, port: int, log: Path) -> None:
        self.name, self.model = name, model
        self.url = f"http://127.0.0.1:{port}/v1/completions"
        self.log = log
        with log.open("wb") as file:
            self.process = subprocess.Popen(command, stdout=file, stderr=file)

    def ask(self, text: str, tokens: int, timeout: float = 600) -> int:
        """Tokens of the answer."""
        asked = {"model": self.model, "prompt": text, "max_tokens": tokens, "temperature": 0}
        request = urllib.request.Request(
            self.url, json.dumps(asked).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            return int(json.load(answer)["usage"]["completion_tokens"])

    def ready(self) -> str | None:
        """Wait for it; the reason if it does not come up."""
        end, said = time.monotonic() + START_SECONDS, "no answer"
        while time.monotonic() < end:
            if (code := self.process.poll()) is not None:
                last = self.log.read_text(errors="replace").strip().splitlines()[-1:]
                return f"ended with {code}: {''.join(last)}"
            try:
                self.ask(prompt(0), 2, timeout=60)
                return None
            except urllib.error.HTTPError as error:
                said = f"{error.code} {error.read()[:200].decode(errors='replace')}"
            except (OSError, KeyError, ValueError) as error:
                said = f"{type(error).__name__}: {error}"
            time.sleep(0.5)
        return f"not ready in {START_SECONDS} s: {said}"

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def commands(folder: Path, asked: argparse.Namespace) -> Iterator[tuple[str, list[str], str, int]]:
    """Name, command, model and port of each server; says which are not installed."""
    python, base = sys.executable, str(resolve(MODEL).path)

    def with_port(*words: str) -> tuple[list[str], int]:
        port = free_port()
        return [python, *words, "--port", str(port)], port

    for form, more in (("bfloat16", []), ("NF4", ["--quantize", "nf4"])):
        command, port = with_port("-m", "graftlm", "serve", MODEL, "--device", "cpu", *more)
        yield f"graftlm, {form}", command, MODEL, port
    lacking = [p for p in ("fastapi", "uvicorn", "openai") if importlib.util.find_spec(p) is None]
    if lacking:
        print(f"transformers serve is left out: {', '.join(lacking)} not installed")
    else:
        words = ["-c", "from transformers.cli.transformers import main; main()", "serve", base]
        words += ["--device", "cpu", "--dtype", "bfloat16", "--host", "127.0.0.1"]
        for name, flags in (("", []), (", continuous batching", ["--continuous-batching"])):
            command, port = with_port(*words, *flags)
            yield f"transformers, bfloat16{name}", command, base, port
    needs = ("llama_cpp", "sse_starlette", "starlette_context", "pydantic_settings")
    lacking = [p for p in needs if importlib.util.find_spec(p) is None]
    if lacking:
        print(f"llama.cpp's server is left out: {', '.join(lacking)} not installed")
    else:
        file = base_as_gguf(MODEL, folder)
        words = ["-m", "llama_cpp.server", "--model", str(file), "--model_alias", MODEL]
        words += ["--n_ctx", "2048", "--interrupt_requests", "False", "--verbose", "False"]
        command, port = with_port(*words)
        yield "llama.cpp, Q4_0", command, MODEL, port


def measured(server: Server, count: int, tokens: int) -> dict[str, float]:
    begun = time.perf_counter()
    alone = server.ask(prompt(0), tokens)
    first = time.perf_counter() - begun
    begun = time.perf_counter()
    with ThreadPoolExecutor(count) as pool:
        written = sum(pool.map(lambda n: server.ask(prompt(n), tokens), range(1, count + 1)))
    took = time.perf_counter() - begun
    return {
        "alone_tokens_per_second": alone / first,
        "requests_per_second": count / took,
        "tokens_per_second": written / took,
        "tokens_per_answer": written / count,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="*", help="servers whose name has one of these words")
    parser.add_argument("--csv", type=Path)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary, contextlib.ExitStack() as running:
        folder, servers = Path(temporary), []
        for name, command, model, port in commands(folder, asked):
            if asked.only and not any(word in name for word in asked.only):
                continue
            server = Server(name, command, model, port, folder / f"{port}.log")
            running.callback(server.stop)
            if problem := server.ready():
                print(f"{name} is left out: {problem}", flush=True)
                server.stop()
            else:
                servers.append(server)
        found: dict[str, list[dict[str, float]]] = {server.name: [] for server in servers}
        for _ in range(asked.rounds):
            for server in servers:
                found[server.name].append(measured(server, asked.requests, asked.tokens))
                print(".", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    rows: list[dict[str, Any]] = [
        {"server": name, **{k: statistics.median(one[k] for one in all_) for k in all_[0]}}
        for name, all_ in found.items()
    ]
    many = f"{asked.requests} at once"
    print(f"{'':44}{'one alone':>12}{many:>14}{many:>14}{'an answer':>12}")
    print(f"{'':44}{'tokens/s':>12}{'requests/s':>14}{'tokens/s':>14}{'tokens':>12}")
    for row in rows:
        print(
            f"{row['server']:44}{row['alone_tokens_per_second']:12.1f}"
            f"{row['requests_per_second']:14.2f}{row['tokens_per_second']:14.1f}"
            f"{row['tokens_per_answer']:12.1f}"
        )
    if asked.csv is not None and rows:
        with asked.csv.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0].keys())
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
