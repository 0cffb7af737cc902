"""Files of 5 GB sent to the studio: its answer, its peak memory, and what is left on the disk.

    python benchmarks/studio_upload.py

5.1 GB of rows, with and without a declared length, and packed; and 4.9 GB, which is taken.
The bytes are made while they are sent; the client stores none. Needs 5 GB of free disk.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).parent.parent))

from tests.studio.browser import Server

BLOCK = 1 << 20
LINE = b'{"prompt": "say a number", "completion": "7"}\n'
ROWS = (LINE * (BLOCK // len(LINE) + 1))[:BLOCK]


def rows(size: int) -> Iterator[bytes]:
    """``size`` bytes of rows."""
    while size > 0:
        yield ROWS[:size]
        size -= BLOCK


def archive(size: int) -> Iterator[bytes]:
    """A .gz file that unpacks to ``size`` bytes."""
    packer = zlib.compressobj(wbits=31)
    for block in rows(size):
        yield packer.compress(block)
    yield packer.flush()


def send(server: Server, name: str, body: Iterator[bytes], declared: int | None) -> dict[str, Any]:
    """Upload one file; the answer, the bytes that were sent, and the server's peak meanwhile."""
    process = psutil.Process(server.process.pid)
    clear_peak(process.pid)
    before = process.memory_info().rss
    line = http.client.HTTPConnection("127.0.0.1", server.port, timeout=600)
    started, sent = time.monotonic(), 0
    line.putrequest("PUT", f"/api/uploads/{name}")
    line.putheader("authorization", f"Bearer {server.token}")
    if declared is None:
        line.putheader("transfer-encoding", "chunked")
    else:
        line.putheader("content-length", str(declared))
    line.endheaders()
    try:
        for block in body:
            if not block:
                continue
            line.send(block if declared is not None else b"%x\r\n%b\r\n" % (len(block), block))
            sent += len(block)
        if declared is None:
            line.send(b"0\r\n\r\n")
    except OSError as error:  # the server answered and closed the line
        print(f"  the line was closed after {sent / 1e9:.2f} GB: {error}")
    try:
        answer = line.getresponse()
        said: Any = (answer.status, json.loads(answer.read()))
    except (OSError, http.client.HTTPException) as error:
        said = (None, f"{type(error).__name__}: {error}")
    line.close()
    return {
        "status": said[0],
        "answer": said[1],
        "sent_gb": round(sent / 1e9, 3),
        "seconds": round(time.monotonic() - started, 1),
        "resident_before_mb": round(before / 1e6, 1),
        "peak_mb": round(peak(process.pid) / 1e6, 1),
    }


def clear_peak(pid: int) -> None:
    """Let the kernel measure the peak from now on."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def peak(pid: int) -> int:
    """The largest resident memory since `clear_peak`, in bytes."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def left(runs: Path) -> dict[str, int]:
    """What lies in the folder of uploads, hidden files too."""
    folder = runs / ".studio" / "uploads"
    return {entry.name: entry.stat().st_size for entry in os.scandir(folder)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--over", type=int, default=5_100_000_000)
    parser.add_argument("--under", type=int, default=4_900_000_000)
    asked = parser.parse_args()
    cases = [
        ("too large, length declared", "a.jsonl", rows(asked.over), asked.over),
        ("too large, no length", "a.jsonl", rows(asked.over), None),
        ("an archive that unpacks to too much", "a.jsonl.gz", archive(asked.over), None),
        ("just under the limit", "a.jsonl", rows(asked.under), asked.under),
    ]
    with tempfile.TemporaryDirectory() as folder:
        os.environ["GRAFTLM_CACHE"] = str(Path(folder) / "cache")  # a token of its own
        runs = Path(folder) / "runs"
        server = Server(runs)
        try:
            for case, name, body, declared in cases:
                print(f"{case}:", flush=True)
                print(f"  {json.dumps(send(server, name, body, declared))}")
                print(f"  left on disk: {left(runs)}", flush=True)
        finally:
            server.end()


if __name__ == "__main__":
    main()
