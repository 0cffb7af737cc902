"""Peak memory of a step against the length of the sequence and the size of the vocabulary.

    python benchmarks/bench_memory.py [--method qlora] [--checkpointing]

A random Llama (hidden 512, 8 layers, tied head) takes three steps of one row, in a process of its
own for each setting: lengths 512 to 8,192 at a vocabulary of 131,072, then vocabularies of 8,192
to 262,144 at a length of 2,048. Printed are the peak resident memory, the plan's prediction of it,
the embedding (which grows with the vocabulary: it is a weight), what is left without it, and the
size of the logits in float32 that were never made.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from bench_plan import SHAPES, measure, write_model

LENGTHS = (512, 1024, 2048, 4096, 8192)
VOCABULARIES = (8192, 32768, 131072, 262144)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--method", default="qlora", choices=["lora", "qlora"])
    parser.add_argument("--checkpointing", action="store_true")
    arguments = parser.parse_args()
    settings = [(n, 131072) for n in LENGTHS] + [(2048, v) for v in VOCABULARIES]
    names = (
        "length",
        "vocabulary",
        "peak MB",
        "planned MB",
        "embedding MB",
        "rest MB",
        "logits MB",
    )
    print(*(f"{name:>12}" for name in names))
    with tempfile.TemporaryDirectory() as temporary:
        for length, vocabulary in settings:
            folder = Path(temporary) / str(vocabulary)
            if not folder.exists():
                write_model(
                    "llama",
                    folder,
                    vocab_size=vocabulary,
                    tie_word_embeddings=True,
                    max_position_embeddings=max(LENGTHS),
                )
            found = measure(str(folder), arguments.method, arguments.checkpointing, 1, length)
            embedding = 2 * vocabulary * SHAPES["llama"][1]["hidden_size"] / 1e6
            peak, planned = found["measured_mb"], found["predicted_mb"]
            row = (peak, planned, embedding, peak - embedding, 4 * length * vocabulary / 1e6)
            print(f"{length:>12} {vocabulary:>12}", *(f"{mb:>12,.0f}" for mb in row), flush=True)


if __name__ == "__main__":
    main()
