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

from bench_plan import write_model

from graftlm.config import DataConfig, ModelConfig, RunConfig, TrainConfig
from graftlm.plan import make_plan, rehearse

LENGTHS = (512, 1024, 2048, 4096, 8192)
VOCABULARIES = (8192, 32768, 131072, 262144)
HIDDEN = 512


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
            config = RunConfig(
                model=ModelConfig(name=str(folder)),
                data=DataConfig(max_length=length),
                train=TrainConfig(batch_size=1, gradient_checkpointing=arguments.checkpointing),
            )
            plan = make_plan(config, memory="100TB", methods=[arguments.method])
            option = next(
                o for o in plan.options if o.gradient_checkpointing == arguments.checkpointing
            )
            found = rehearse(option.setting.applied(config), 1, length)
            embedding = 2 * vocabulary * HIDDEN
            row = (
                found.peak_bytes,
                option.predicted_peak_bytes,
                embedding,
                found.peak_bytes - embedding,
                4 * length * vocabulary,
            )
            megabytes = (f"{value / 1e6:>12,.0f}" for value in row)
            print(f"{length:>12} {vocabulary:>12}", *megabytes, flush=True)


if __name__ == "__main__":
    main()
