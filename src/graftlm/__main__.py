"""`python -m graftlm`: the command line, as `torchrun -m graftlm` starts it."""

from __future__ import annotations

from graftlm.cli import main

if __name__ == "__main__":
    main()
