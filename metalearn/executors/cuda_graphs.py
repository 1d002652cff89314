"""CUDA graphs: a pure function recorded once as a list of kernel launches, then replayed without
the host's help.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from metalearn.executors.trace import Flat, Trace, by_shapes, compile_flat, interpreted

# calls before the capture, as torch's notes on CUDA graphs ask for: libraries choose and allocate
# in them
WARM_UP = 3


def captured(function: Callable[..., Any], *, compiling: bool) -> Callable[..., Any]:
    """`function` of trees of CUDA tensors, captured anew for every combination of shapes; first
    compiled, if asked for.

    Traced first, so that its constants lie on the device before the capture, which allows no copy
    from the host. Arguments are copied into the graph's own memory, results out of it: what was
    returned is never written to again."""
    return by_shapes(function, partial(_capture, compiling=compiling))


def _capture(traced: Trace, tensors: list[Tensor], compiling: bool) -> Flat:
    flat = (compile_flat if compiling else interpreted)(traced, tensors)
    inputs = [tensor.clone() for tensor in tensors]
    side = torch.cuda.Stream(inputs[0].device)
    side.wait_stream(torch.cuda.current_stream(inputs[0].device))
    with torch.cuda.stream(side):
        for _ in range(WARM_UP):
            flat(*inputs)
    torch.cuda.current_stream(inputs[0].device).wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = list(flat(*inputs))

    def replay(*given: Tensor) -> list[Tensor]:
        _copy(inputs, given)
        graph.replay()
        results = [torch.empty_like(output) for output in outputs]
        _copy(results, outputs)
        return results

    return replay


def _copy(into: Sequence[Tensor], given: Sequence[Tensor]) -> None:
    """Copy many tensors in few launches: one list for every type."""
    for kind in {tensor.dtype for tensor in into}:
        places = [place for place, tensor in enumerate(into) if tensor.dtype == kind]
        torch._foreach_copy_([into[place] for place in places], [given[place] for place in places])
