"""What a torch operator says of itself, and PyTorch's operators that have private names.

Seen in torch 2.13: `OpOverload._schema`, `OpOverload._overloadpacket`,
`aten._local_scalar_dense`, `aten._index_put_impl_`, `aten._unsafe_index_put`,
`aten._grouped_mm`.
"""

from __future__ import annotations

from typing import Any

import torch

__all__ = [
    "GROUPED_PRODUCT",
    "INDEXED_WRITES",
    "READS_A_VALUE",
    "UNSAFE_VIEW",
    "argument_names",
    "is_mutable",
    "packet_of",
    "schema_name",
]

UNSAFE_VIEW = torch.ops.aten._unsafe_view.default
GROUPED_PRODUCT = torch.ops.aten._grouped_mm.default
"""Rows of each group times a matrix of its own: the experts of a layer."""
READS_A_VALUE = torch.ops.aten._local_scalar_dense.default
"""What `tensor.item()` calls."""
INDEXED_WRITES = (
    torch.ops.aten._index_put_impl_.default,
    torch.ops.aten._unsafe_index_put.default,
)


def schema_name(operator: Any) -> str:
    """The operator's name, such as ``aten::mm``."""
    name: str = operator._schema.name
    return name


def argument_names(operator: Any) -> list[str]:
    """Of the operator's schema, in order."""
    return [argument.name for argument in operator._schema.arguments]


def is_mutable(operator: Any) -> bool:
    """Whether the operator writes to one of its arguments."""
    mutable: bool = operator._schema.is_mutable
    return mutable


def packet_of(operator: Any) -> Any:
    """All overloads of the operator, by which torch counts floating-point operations."""
    return operator._overloadpacket
