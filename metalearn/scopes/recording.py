"""Whether the operators of a call are recorded as a graph (executors/recorder.py)."""

from __future__ import annotations

import sys

import torch
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode_stack


class Recording(TorchDispatchMode):
    """The mode of a recording, which torch hands on to the threads of a backward pass."""


def is_recorded() -> bool:
    """Whether this call is recorded, here or by make_fx; False in torch.compile and torch.export.

    What the latter make for others should not need operators of this project."""
    if torch.compiler.is_compiling():
        return False
    if any(isinstance(mode, Recording) for mode in _get_current_dispatch_mode_stack()):
        return True
    proxies = sys.modules.get("torch.fx.experimental.proxy_tensor")  # slow to import
    return proxies is not None and proxies.get_proxy_mode() is not None
