"""What will be learned from these examples, and what is wrong with them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from graftlm.data.batch import Example
from graftlm.errors import DataError

__all__ = ["require_trainable"]


def require_trainable(examples: Sequence[Example]) -> None:
    """The cheap part of the audit: refuse examples that would train nothing.

    Raises:
        DataError: there are no examples, or no token in them counts in the loss.
    """
    if not len(examples):
        raise DataError("there are no examples to train on; expected at least one")
    if not any(np.any(np.asarray(example.supervised)[1:]) for example in examples):
        raise DataError(
            f"none of the {len(examples)} examples has a learned token: training on them would "
            "change nothing. Run graftlm check on the data to see why."
        )
