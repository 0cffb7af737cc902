"""What several processes cannot do; refused before any work."""

from __future__ import annotations

from graftlm.config import RunConfig
from graftlm.errors import ConfigError
from graftlm.system.processes import Processes

__all__ = ["require_supported"]


def require_supported(config: RunConfig, processes: Processes) -> None:
    """Refuse settings that do not go with several processes.

    Raises:
        ConfigError: all problems at once.
    """
    if processes.world_size == 1:
        return
    problems = []
    if config.distributed == "none":
        problems.append(
            f"distributed=none, and {processes.world_size} processes were started: use auto, ddp "
            "or fsdp, or start one"
        )
    sources = config.data.train if isinstance(config.data.train, dict) else [config.data.train]
    if "-" in (*sources, config.data.eval):
        problems.append(
            "rows from the standard input reach one process only: write them to a file that every "
            "process can read"
        )
    rows = config.train.batch_size * config.train.gradient_accumulation_steps
    if rows < processes.world_size:
        problems.append(
            f"a step has {rows} rows (train.batch_size × train.gradient_accumulation_steps), fewer "
            f"than the {processes.world_size} processes: some would never have work"
        )
    if config.train.learning_rate == "auto":
        problems.append(
            "train.learning_rate=auto tries rates in one process: find it there, and name it here"
        )
    if config.lora.probe_ranks:
        problems.append(
            "lora.rank=auto tries ranks in one process: find them there, and take "
            "lora.rank_pattern from its config.yaml"
        )
    if problems:
        raise ConfigError(problems)
