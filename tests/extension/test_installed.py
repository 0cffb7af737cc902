"""An installed package brings an adapter, an objective and an export target by entry points.

The commands run in processes that import nothing of the package: they find it by its metadata.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ENTRY_POINTS = """\
[graftlm.adapters]
scaled = outside.scaled_lora:ScaledLoRA
[graftlm.objectives]
halved = outside.halved:Halved
[graftlm.export_targets]
text-card = outside.text_card_target:TextCard
"""
HALVED = """\
from graftlm.training.next_token import NextToken
from graftlm.extend import register_objective

@register_objective
class Halved(NextToken):
    name = "halved"

    def loss(self, model, batch):
        total, count = super().loss(model, batch)
        return total / 2, count
"""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    site = tmp_path / "site"
    package, info = site / "outside", site / "outside-1.0.dist-info"
    package.mkdir(parents=True)
    info.mkdir()
    for name in ("scaled_lora.py", "text_card_target.py"):
        shutil.copy(HERE / name, package / name)
    (package / "__init__.py").touch()
    (package / "halved.py").write_text(HALVED)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: outside\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(ENTRY_POINTS)
    paths = [str(site), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


def test_the_commands_find_what_a_package_brings(
    environment: dict[str, str], tiny_llama: Path, rows_file: Path, tmp_path: Path
) -> None:
    def graftlm(*words: str) -> dict[str, object]:
        command = [sys.executable, "-m", "graftlm", *words, "--json"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        answer: dict[str, object] = json.loads(done.stdout)
        return answer

    losses = {}
    for objective in ("next_token", "halved"):
        losses[objective] = graftlm(
            "train", "--model", str(tiny_llama), "--data", str(rows_file), "--method", "lora",
            "--out", str(tmp_path / objective), "--steps", "1",
            "--set", "lora.variant=scaled_lora", "--set", f"train.objective={objective}",
        )["train_loss"]  # fmt: skip
    assert losses["halved"] == pytest.approx(losses["next_token"] / 2, rel=1e-6)  # type: ignore[operator]
    run = tmp_path / "halved"
    config = json.loads((run / "adapter" / "adapter_config.json").read_text())
    assert config["peft_type"] == "SCALED_LORA"
    card = graftlm(
        "export", str(run / "adapter"), "--to", "text-card", "--out", str(tmp_path / "card.txt")
    )
    assert card["to"] == "text-card"
    assert (tmp_path / "card.txt").read_text().endswith(": rank 16\n")
