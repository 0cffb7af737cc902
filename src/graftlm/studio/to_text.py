"""The process that turns the tokens of a run's `samples.jsonl` into text, and ends.

python -m graftlm.studio.to_text RUN TEXTS
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from graftlm.config import recorded_config
from graftlm.files import write_json
from graftlm.models import load_tokenizer

__all__ = ["main"]


def main(run: Path, texts: Path) -> None:
    """Write the texts of all answers, the latest first."""
    source = run / "samples.jsonl"
    status = source.stat()  # before it is read: what is appended meanwhile is read the next time
    lines = source.read_text(encoding="utf-8").split("\n")[:-1]
    config = recorded_config(run / "config.yaml")
    tokenizer = load_tokenizer(config.model.name, trust_remote_code=config.model.trust_remote_code)
    rows = [
        {
            "step": row["step"],
            **{
                name: str(tokenizer.decode(row[name], skip_special_tokens=True)).strip()
                for name in ("prompt", "answer", "expected")
            },
        }
        for row in map(json.loads, reversed(lines))
    ]
    write_json(texts, {"stamp": [status.st_mtime_ns, status.st_size], "rows": rows})


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
