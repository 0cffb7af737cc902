"""The documents build as a site, without a broken link and with every page in the navigation."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import graftlm

ROOT = Path(__file__).parent.parent


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    source = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": source}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    commands = (tmp_path / "commands.html").read_text(encoding="utf-8")
    assert "graftlm quantize" in commands
    assert "--calibrate" in commands
    python = (tmp_path / "python.html").read_text(encoding="utf-8")
    settings = {"DataConfig", "LoRAConfig", "ModelConfig", "RunConfig", "TrainConfig"}
    for name in set(graftlm.__all__) - settings - {"nf4"}:  # the settings have a page of their own
        assert f".{name}" in python, name
