"""The answers that a run gave at its evaluations, as text.

`samples.jsonl` holds tokens. A process that opens the tokenizer and ends turns them into text, so
that neither the run nor the server holds it (Gemma's takes 470 MB).
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from graftlm.studio.place import Place

__all__ = ["Samples"]

_MOST_BYTES = 16 << 20


class Samples:
    """The texts of all runs, kept in the studio's folder; one process at a time makes them."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._failed: set[str] = set()

    def in_run(self, folder: Path, name: str) -> dict[str, Any]:
        """``rows``: step, prompt, answer and expected text, the latest first; and whether newer
        ones are ``pending``.
        """
        source = folder / "samples.jsonl"
        if not source.is_file() or not 0 < source.stat().st_size <= _MOST_BYTES:
            return {"rows": [], "pending": False}
        status = source.stat()
        stamp = [status.st_mtime_ns, status.st_size]
        key = hashlib.sha256(name.encode()).hexdigest()[:32]
        texts = self._place.runs / ".studio" / f"samples-{key}.json"
        known = json.loads(texts.read_text(encoding="utf-8")) if texts.is_file() else {}
        rows = known.get("rows", [])
        if known.get("stamp") == stamp:
            return {"rows": rows, "pending": False}
        return {"rows": rows, "pending": self._make(folder, texts, f"{key} {stamp}")}

    def _make(self, folder: Path, texts: Path, wanted: str) -> bool:
        """Start the process, unless one runs; false where it failed for these very answers."""
        with self._lock:
            if wanted in self._failed:
                return False
            if self._process is not None:
                code = self._process.poll()
                if code is None:
                    return True
                self._process = None
                if code:
                    self._failed.add(wanted)
                    return False
            command = [sys.executable, "-m", "graftlm.studio.to_text", str(folder), str(texts)]
            log = (self._place.runs / ".studio" / "samples.log").open("wb")
            with log:
                self._process = subprocess.Popen(
                    command,
                    cwd=self._place.work,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                )
            threading.Thread(target=self._process.wait, daemon=True).start()
            return True
