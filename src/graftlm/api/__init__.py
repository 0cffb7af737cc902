"""The functions of the commands, for Python: `graftlm.generate`, `plan`, `check`, `compare`, ….

The commands call them too. Rows may be named (a file, folder, glob or Hub data set) or given: a
list of dicts, a `datasets.Dataset`, or any other iterable of rows.
"""

from __future__ import annotations

__all__: list[str] = []
