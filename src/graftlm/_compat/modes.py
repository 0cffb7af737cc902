"""torch's dispatch modes: fake tensors and tracing see each operation through one.

Seen in torch 2.6 to 2.13: `torch.utils._python_dispatch._disable_current_modes`.
"""

from __future__ import annotations

from torch.utils._python_dispatch import _disable_current_modes as modes_off

__all__ = ["modes_off"]
