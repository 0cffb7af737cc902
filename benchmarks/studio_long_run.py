"""The page over a run of 10,000 steps: memory of the page and the server, and times of answers.

    python benchmarks/studio_long_run.py [--steps 10000] [--seconds 90]

A run folder grows as training would write it, while the page watches it. No model is involved.
Memory of the page is its JavaScript heap and what its process has for itself alone (USS).
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
import urllib.request
from pathlib import Path

import psutil
import yaml

from graftlm.config import RunConfig
from tests.studio.browser import Server, Walk, pages, studio


def asked(server: Server, path: str) -> float:
    """Milliseconds until the whole answer is there."""
    request = urllib.request.Request(
        f"{server.address}/api/{path}", headers={"authorization": f"Bearer {server.token}"}
    )
    started = time.perf_counter()
    with urllib.request.urlopen(request, timeout=60) as answer:
        answer.read()
    return (time.perf_counter() - started) * 1000


def renderers(of: psutil.Process) -> int:
    """The most that one page's process has for itself, in bytes."""
    uss = [
        child.memory_full_info().uss
        for child in of.children(recursive=True)
        if "--type=renderer" in child.cmdline()
    ]
    return max(uss, default=0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=90)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "runs" / "long"
        run.mkdir(parents=True)
        config = RunConfig.model_validate({"train": {"steps": chosen.steps}})
        (run / "config.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
        with studio(run.parent) as server, pages(viewport={"width": 1280, "height": 900}) as opened:
            walk = Walk(opened, f"{server.link}")
            page = walk.page
            page.evaluate("location.hash = '#/runs/long'")
            devtools = opened.new_cdp_session(page)
            devtools.send("Performance.enable")
            me, times = psutil.Process(), []
            heap, own = 0.0, 0
            pieces = int(chosen.seconds * 2)
            with (run / "metrics.jsonl").open("w") as file:
                for piece in range(pieces):
                    first, last = (chosen.steps * at // pieces for at in (piece, piece + 1))
                    for step in range(first + 1, last + 1):
                        row = {
                            "step": step, "loss": 3 / step**0.2, "grad_norm": 1.0, "tokens": 400,
                            "supervised_tokens": 100, "learning_rate": 2e-4 * (1 - step / 2e4),
                            "tokens_per_second": 300.0 + step % 7, "memory_bytes": 10**9 + step,
                        }  # fmt: skip
                        if step % 100 == 0:
                            row["eval_loss"] = 3.1 / step**0.2
                        file.write(json.dumps(row) + "\n")
                    file.flush()
                    times.append(asked(server, "runs/curves?run=long"))
                    page.wait_for_timeout(450)
                    metrics = devtools.send("Performance.getMetrics")["metrics"]
                    now = {one["name"]: one["value"] for one in metrics}
                    heap = max(heap, now["JSHeapUsedSize"])
                    own = max(own, renderers(me))
            page.wait_for_timeout(2500)
            label = page.get_attribute(".chart", "aria-label")
            assert str(chosen.steps)[:2] in label, label
            listed = [asked(server, "runs") for _ in range(20)]
            memory = psutil.Process(server.process.pid).memory_info().rss
            assert walk.complaints == [], walk.complaints
    print(f"{chosen.steps:,} steps in {chosen.seconds:g} s")
    print(f"page: heap at most {heap / 1e6:.0f} MB, process alone at most {own / 1e6:.0f} MB")
    print(f"server: {memory / 1e6:.0f} MB resident")
    for name, found in (("curves", times), ("list of runs", listed)):
        print(f"{name}: median {statistics.median(found):.0f} ms, longest {max(found):.0f} ms")


if __name__ == "__main__":
    main()
