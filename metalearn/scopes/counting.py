"""Whether the FLOPs of a call are counted (evaluate/flops.py)."""

from __future__ import annotations

import torch
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode_stack


class Counting(TorchDispatchMode):
    """The mode of a count, which torch hands on to the threads of a backward pass."""


def is_counted() -> bool:
    """Whether this call is counted, and its results are not used; False in torch.compile.

    For arithmetic that is computed by other operators than those by which it counts."""
    if torch.compiler.is_compiling() or not torch._C._len_torch_dispatch_stack():
        return False
    return any(isinstance(mode, Counting) for mode in _get_current_dispatch_mode_stack())
