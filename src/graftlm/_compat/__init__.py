"""Private names of torch and transformers, each in one place with the versions it was seen in.

No other package of graftlm uses a private name of theirs (`tests/test_compat.py`). When an upgrade
breaks one, the fault is in this folder.
"""

from __future__ import annotations
