"""Several processes that train one model, by PyTorch's own engines.

    group.py       the processes: gather numbers, take a value from the main one
    joined.py      the same over torch.distributed, and how a process joins
    failure.py     the error of one rank ends all, and the user reads it once
    launch.py      `graftlm train --processes N`: PyTorch's launcher, called in Python
    split.py       which rows of a step each rank computes
    engine.py      the passes of a step in one process
    replicated.py  DDP: each process holds the whole model
    loading.py     which part of the frozen weights a process loads
    groups.py      which of them are gathered together
    sharded.py     FSDP2: each process holds a share of the frozen weights

A run in one process imports only `group.py`, `split.py` and `engine.py`, and nothing of
torch.distributed.
"""

from __future__ import annotations

__all__: list[str] = []
