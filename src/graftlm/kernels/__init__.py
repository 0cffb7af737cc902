"""The operators on 4-bit weights, and what carries them out on this machine."""

from graftlm.kernels.doctor import selfcheck, status

__all__ = ["selfcheck", "status"]
