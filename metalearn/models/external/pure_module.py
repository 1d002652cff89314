"""A prepared torch module as a pure function of its leaves."""

from __future__ import annotations

from contextlib import ExitStack

from torch import Tensor, nn

from metalearn import noise
from metalearn.models.external.batch_norm import StatedBatchNorm
from metalearn.models.external.functions import ATTENTION, DRAWS, Functions
from metalearn.models.external.head import Reached
from metalearn.models.external.leaves import Leaves
from metalearn.models.external.module import Inputs, Output, arguments, entry
from metalearn.models.forward_pass import Moments, forward_pass
from metalearn.models.functional import MOMENTUM, running_norms
from metalearn.models.threads import functional_call
from metalearn.tree import STATS
from metalearn.types import Params


class PureModule:
    """(params, x, rows) -> the module's output for x [B, *X].

    In evaluation mode, but in the modes that it was handed over in where noise is drawn."""

    def __init__(
        self,
        quiet: nn.Module,
        noisy: nn.Module,
        leaves: Leaves,
        inputs: Inputs,
        output: Output,
        attends: bool,
    ) -> None:
        self.quiet, self.noisy, self.leaves = quiet, noisy, leaves
        self.inputs, self.output, self.attends = inputs, output, attends

    def __call__(
        self,
        params: Params,
        x: Tensor,
        rows: int | None = None,
        recorded: dict[str, Moments] | None = None,
    ) -> Tensor:
        args, kwargs = arguments(x, self.inputs)
        named, tied = self.leaves.named(params), self.leaves.tied
        module = self.noisy if noise.is_active() else self.quiet
        with ExitStack() as stack:
            stack.enter_context(forward_pass(rows, recorded))
            if noise.is_active():
                stack.enter_context(Functions(DRAWS))
            elif self.attends:
                stack.enter_context(Functions(ATTENTION))
            try:
                out = functional_call(module, named, args, kwargs, tie_weights=tied)
            except Reached as end:
                return end.features
        return entry(out, self.output)

    def refreshed(self, params: Params, x: Tensor) -> Params:
        """The parameters, running statistics moved by one batch as torch moves them."""
        recorded: dict[str, Moments] = {}
        with noise.noise_from(None):
            self(params, x, None, recorded)
        new, own = dict(params), running_norms(self.quiet)
        for name, layer in self.quiet.named_modules():
            leaves = ("mean", "var") if name in own else ("running_mean", "running_var")
            share = layer.momentum if isinstance(layer, StatedBatchNorm) else MOMENTUM
            assert share is not None
            for moments in recorded.get(name, []):
                for leaf, value in zip(leaves, moments, strict=True):
                    place = f"{STATS}{name}.{leaf}"
                    new[place] = (1 - share) * new[place] + share * value.detach()
        return new
