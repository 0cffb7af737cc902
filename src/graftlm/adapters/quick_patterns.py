"""Finds regular expressions that would never end: Python cannot interrupt a match.

`((a+)+)+$` takes a time that doubles with each letter. An expression with several repetitions is
therefore first tried on the module names by another process, which is ended after a few seconds.
One with a single repetition, as they usually are, needs no trial.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterable

__all__ = ["endless"]

SECONDS = 5.0
_REPETITION = re.compile(r"[*+{]")
_TRIAL = """
import json, re, sys
asked = json.load(sys.stdin)
for expression in asked["expressions"]:
    print(json.dumps(expression), flush=True)
    whole, end = re.compile(expression), re.compile(rf"(.*\\.)?({expression})$")
    for name in asked["names"]:
        whole.fullmatch(name), end.match(name)
"""


def endless(expressions: Iterable[str], names: Iterable[str]) -> str | None:
    """The first expression that takes over `SECONDS` on these names; ``None`` if there is none."""
    suspects = [one for one in expressions if len(_REPETITION.findall(one)) > 1]
    if not suspects:
        return None
    asked = json.dumps({"expressions": suspects, "names": list(names)})
    try:
        subprocess.run(
            [sys.executable, "-I", "-c", _TRIAL],
            input=asked.encode(),
            capture_output=True,
            timeout=SECONDS,
            check=True,
        )
    except subprocess.TimeoutExpired as late:
        tried = (late.stdout or b"").decode().splitlines()
        return str(json.loads(tried[-1])) if tried else None
    return None
