"""Several elementwise operations, or operations on rows, as one generated Triton kernel.

Values are whole ([*L, C]), columns ([*L, 1] or [*L]: a number for each row), one row for all ([C],
only read) or single numbers []. A program holds some rows, each in one piece; where no operation is
along rows an array is cut into chunks that fit. What the kernel computes are lines of text
(executors/passes/fusion.py); it must agree with the operations that they replace (choice.py)."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from metalearn.kernels.choice import Implementations, run
from metalearn.kernels.launch import GENERATED, WIDEST, accumulator, launch, power_of_two, tile

WHOLE, COLUMN, ROW, NUMBER = "whole", "column", "row", "number"
HEAD = """@triton.jit
def {name}({arguments}, rows, C, n, ACC: tl.constexpr, ROWS: tl.constexpr, PLACES: tl.constexpr):
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)[:, None]
    place = tl.arange(0, PLACES)[None, :]
    exists = row < rows
    at = row * C + place
    there = exists & (place < C) & (at < n)
"""
LOADS = {
    WHOLE: "tl.load({0} + at, mask=there, other=0)",
    COLUMN: "tl.load({0} + row, mask=exists, other=0)",
    ROW: "tl.load({0} + at % {1}, mask=there, other=0)",
    NUMBER: "tl.load({0})",
}
STORES = {
    WHOLE: "tl.store({0} + at, {1}.to({0}.dtype.element_ty), mask=there)",
    COLUMN: "tl.store({0} + row, {1}.to({0}.dtype.element_ty), mask=exists)",
    NUMBER: "tl.store({0}, {1}.to({0}.dtype.element_ty))",
}


class Value(NamedTuple):
    """An array that a kernel reads or writes."""

    name: str  # in the lines
    kind: str
    shape: tuple[int, ...]
    dtype: torch.dtype


class Fused(torch.nn.Module):
    """Lines that compute `outputs` from `inputs`: (*inputs) -> outputs.

    `shape` is that of whole values, `in_torch` computes the same with torch's operators, `in_rows`
    says whether C matters. Numbers are computed in float64, all else in the type of sums."""

    def __init__(
        self,
        shape: tuple[int, ...],
        inputs: Sequence[Value],
        outputs: Sequence[Value],
        lines: Sequence[str],
        in_torch: Callable[..., Sequence[Tensor]],
        *,
        in_rows: bool,
    ) -> None:
        super().__init__()
        self.outputs, self.in_torch = list(outputs), in_torch
        self.count = math.prod(shape)
        self.width = shape[-1] if in_rows else max(1, min(power_of_two(self.count), WIDEST))
        text = _text(inputs, outputs, lines)
        name = f"fused_{hashlib.sha256(repr((text, shape)).encode()).hexdigest()[:16]}"
        self.name, GENERATED[name] = name, text.format(name=name)
        self.implementations = Implementations(name, self.in_triton, in_torch, exact=False)

    def forward(self, *inputs: Tensor) -> Sequence[Tensor]:
        return run(self.implementations, *inputs)  # type: ignore[no-any-return]

    def in_triton(self, *inputs: Tensor) -> list[Tensor]:
        """Return the outputs, computed by one launch of the Triton kernel."""
        device = inputs[0].device
        outputs = [torch.empty(out.shape, dtype=out.dtype, device=device) for out in self.outputs]
        rows = -(-self.count // self.width)
        programs, block_rows, block_width = tile(rows, self.width)
        kind = next(value.dtype for value in outputs if value.is_floating_point())
        launch(
            f"generated.{self.name}",
            programs,
            [*(value.contiguous() for value in inputs), *outputs],
            rows,
            self.width,
            self.count,
            ACC=accumulator(kind),
            ROWS=block_rows,
            PLACES=block_width,
        )
        return outputs


def _text(inputs: Sequence[Value], outputs: Sequence[Value], lines: Sequence[str]) -> str:
    input_names = [*(f"i{number}" for number in range(len(inputs)))]
    output_names = [*(f"o{number}" for number in range(len(outputs)))]
    text = HEAD.replace("{arguments}", ", ".join((*input_names, *output_names)))
    for value, name in zip(inputs, input_names, strict=True):
        conversion = ".to(tl.float64)" if value.kind == NUMBER else ".to(ACC)"
        conversion = conversion if value.dtype.is_floating_point else ""
        load = LOADS[value.kind].format(name, value.shape[-1] if value.kind == ROW else None)
        text += f"    {value.name} = {load}{conversion}\n"
    text += "".join(f"    {line}\n" for line in lines)
    for value, name in zip(outputs, output_names, strict=True):
        text += f"    {STORES[value.kind].format(name, value.name)}\n"
    return text
