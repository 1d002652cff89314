"""A prepared torch module as a pure function of its leaves."""

from __future__ import annotations

from contextlib import ExitStack

from torch import Tensor, nn

from metalearn import noise
from metalearn.errors import ConfigError
from metalearn.models.external.functions import ATTENTION, DRAWS, Functions
from metalearn.models.external.head import Reached
from metalearn.models.external.leaves import Leaves
from metalearn.models.external.module import Inputs, Output, arguments, entry, first_line
from metalearn.models.forward_pass import statistics_of_rows
from metalearn.models.threads import functional_call
from metalearn.scopes.running_statistics import training_scope
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

    def __call__(self, params: Params, x: Tensor, rows: int | None = None) -> Tensor:
        args, kwargs = arguments(x, self.inputs)
        named, tied = self.leaves.named(params), self.leaves.tied
        module = self.noisy if noise.is_active() else self.quiet
        with ExitStack() as stack:
            stack.enter_context(statistics_of_rows(rows))
            if noise.is_active():
                stack.enter_context(Functions(DRAWS))
            elif self.attends:
                stack.enter_context(Functions(ATTENTION))
            try:
                out = functional_call(module, named, args, kwargs, tie_weights=tied)
            except Reached as end:
                return end.features
            except IndexError as error:
                raise self._index_error(x, error) from error
        return entry(out, self.output)

    def _index_error(self, x: Tensor, error: IndexError) -> ConfigError:
        tables = (nn.Embedding, nn.EmbeddingBag)
        if x.is_floating_point() and not any(isinstance(m, tables) for m in self.quiet.modules()):
            return ConfigError((type(self.quiet).__name__, f"forward fails: {first_line(error)}"))
        text = f"contains an index outside an embedding of the module: {error}"
        return ConfigError(("x", text))

    def refreshed(self, params: Params, x: Tensor) -> Params:
        """The parameters, running statistics moved by one batch as torch moves them."""
        with noise.noise_from(None), training_scope() as scope:
            self(params, x)
        return scope.updated(params)
