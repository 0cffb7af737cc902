"""Eight adapters on one base in one batch, beside eight passes with one adapter each.

    python benchmarks/bench_eight_adapters.py [--model gemma-3-270m] [--format nf4|none]

Each row of the batch has an adapter of its own (`adapters/by_row.py`): the base's products are
computed once for all rows, each update for its own row. Beside it stand eight passes of one row,
with that row's adapter alone. Both take turns; a line gives the medians, their ratio, and the
largest difference of the logits, as a share of their spread (in 16 bits the order of sums alone
changes them, so that the default is float32). One token a row is a step of decoding
without a cache; more are a prompt.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

import graftlm
from graftlm.adapters import lora_parameters
from graftlm.adapters.by_row import AdaptersByRow

COUNT = 8


def with_adapters(name: str, storage: str, dtype: str, rank: int) -> tuple[AdaptersByRow, object]:
    """The base with `COUNT` adapters of random values."""
    model, _ = graftlm.load_model(
        name, quantize=None if storage == "none" else storage, dtype=dtype
    )
    torch.manual_seed(0)
    for number in range(COUNT):
        graftlm.add_lora(model, graftlm.LoRAConfig(rank=rank), name=f"a{number}")
    with torch.no_grad():
        for place, parameter in lora_parameters(model):
            if place.endswith("lora_B"):
                parameter.normal_(std=0.001)
    model.train(False)
    return AdaptersByRow(model), model


def seconds(work: Callable[[], object]) -> float:
    """The time of one call."""
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


@torch.no_grad()
def main() -> None:
    """Print a line for each length of rows."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--model", default="gemma-3-270m")
    options.add_argument("--format", default="nf4", choices=["nf4", "int8", "none"])
    options.add_argument("--dtype", default="float32")
    options.add_argument("--rank", type=int, default=16)
    options.add_argument("--tokens", type=int, nargs="+", default=[1, 16, 64])
    options.add_argument("--rounds", type=int, default=5)
    asked = options.parse_args()
    by_row, model = with_adapters(asked.model, asked.format, asked.dtype, asked.rank)
    if not by_row.together:
        raise SystemExit("this model does not take rows of different adapters together")
    names = [f"a{number}" for number in range(COUNT)]
    print("tokens a row,one batch s,eight passes s,ratio,largest difference")
    for tokens in asked.tokens:
        ids = torch.randint(5, 1000, (COUNT, tokens))

        def batch(ids: Tensor = ids, tokens: int = tokens) -> Tensor:
            with by_row.use(names, tokens):
                result: Tensor = model(input_ids=ids, use_cache=False).logits  # type: ignore[operator]
            return result

        def alone(ids: Tensor = ids, tokens: int = tokens) -> list[Tensor]:
            rows = []
            for row, name in enumerate(names):
                with by_row.use([name], tokens):
                    one = model(input_ids=ids[row : row + 1], use_cache=False)  # type: ignore[operator]
                    rows.append(one.logits)
            return rows

        together, apart = batch().float(), torch.cat(alone()).float()
        gap = float((together - apart).abs().max() / apart.std())
        del together, apart
        times = [(seconds(batch), seconds(alone)) for _ in range(asked.rounds)]
        one, eight = (statistics.median(column) for column in zip(*times, strict=True))
        print(f"{tokens},{one:.3f},{eight:.3f},{eight / one:.2f},{gap:.2e}", flush=True)


if __name__ == "__main__":
    main()
