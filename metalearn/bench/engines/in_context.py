"""A transformer neural process as a workload, and the same network in plain torch.

Plain torch: modules and scaled_dot_product_attention on all tasks at once, loss and gradient with
torch.compile, torch's fused Adam. It is what one would write for this network alone."""

from __future__ import annotations

import itertools
import math
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metalearn.bench.engines.engine import Engine, copy_grad
from metalearn.bench.engines.plain import FourBlocks, Perceptron
from metalearn.bench.engines.torch_loop import make_engine
from metalearn.bench.problem import Problem
from metalearn.in_context import TransformerNeuralProcess
from metalearn.rng import fold_in
from metalearn.tree import named_leaves
from metalearn.types import Episode, Method, Params

KIND = TransformerNeuralProcess()
FLOOR = 0.01  # the least standard deviation that is predicted


class InContextProblem(Problem):
    """The workloads in_context_sinusoid and in_context_omniglot."""

    @cached_property
    def method(self) -> Method:
        return KIND.build(self.learner, self.source.spec)

    @cached_property
    def start(self) -> Params:
        """The initial meta-parameters of every engine, with dotted names."""
        return named_leaves(self.method.init(fold_in(0, "bench", "init")).meta)


class Stack(nn.ModuleList):
    """Linear layers with ReLU between them."""

    def __init__(self, *sizes: int) -> None:
        super().__init__(nn.Linear(a, b) for a, b in itertools.pairwise(sizes))

    def forward(self, x: Tensor) -> Tensor:
        for index, layer in enumerate(self):
            x = layer(x.relu() if index else x)
        return x


class Block(nn.Module):
    """Attention and an MLP, each behind a layer normalisation."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key = nn.Linear(width, width), nn.Linear(width, width, bias=False)
        self.value, self.out = nn.Linear(width, width), nn.Linear(width, width)
        self.mlp, self.heads = Stack(width, 2 * width, width), heads

    def memory(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys and values of support tokens [T, B, D]: 2 x [T, H, B, D/H]."""
        z = self.before(x)
        return self._by_head(self.key(z)), self._by_head(self.value(z))

    def forward(self, x: Tensor, memory: tuple[Tensor, Tensor]) -> Tensor:
        queries = self._by_head(self.query(self.before(x)))
        attended = F.scaled_dot_product_attention(queries, *memory)
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        output: Tensor = x + self.mlp(self.between(x))
        return output

    def _by_head(self, x: Tensor) -> Tensor:
        """[T, L, D] -> [T, H, L, D/H]."""
        heads: Tensor = x.unflatten(-1, (self.heads, -1)).transpose(1, 2)
        return heads


class Context(nn.Module):
    """Support features and codes [T, B, .], query features [T, M, .] -> [T, M, outputs]."""

    def __init__(self, features: int, labels: int, outputs: int) -> None:
        super().__init__()
        width = KIND.width
        self.token = Stack(features + labels + 1, width, width)
        self.layers = nn.ModuleList(Block(width, KIND.heads) for _ in range(KIND.layers))
        self.last, self.out = nn.LayerNorm(width), Stack(width, width, outputs)

    def forward(self, z: Tensor, codes: Tensor, query: Tensor) -> Tensor:
        x = self.token(torch.cat([z, codes, torch.zeros_like(z[..., :1])], -1))
        blank = query.new_zeros(*query.shape[:-1], codes.shape[-1])
        q = self.token(torch.cat([query, blank, torch.ones_like(query[..., :1])], -1))
        for index, block in enumerate(self.layers):
            memory = block.memory(x)  # type: ignore[operator]
            q = block(q, memory)
            if index + 1 < len(self.layers):
                x = block(x, memory)
        outputs: Tensor = self.out(self.last(q))
        return outputs


class Network(nn.Module):
    """A body without its head and the transformer behind it, with our parameter names."""

    def __init__(self, problem: InContextProblem) -> None:
        super().__init__()
        work = problem.workload
        self.regression, self.outputs = work.regression, work.outputs
        self.params: nn.Module = Perceptron() if work.regression else FourBlocks(work)
        self.params.add_module("head", nn.Identity())
        shape = problem.start["context.token.0.weight"].shape
        outputs = 2 * work.outputs if work.regression else work.outputs
        self.context = Context(shape[1] - work.outputs - 1, work.outputs, outputs)
        self.load_state_dict(problem.start)

    def forward(self, sx: Tensor, sy: Tensor, qx: Tensor, qy: Tensor) -> Tensor:
        """Return the loss of all tasks: -log p of a normal distribution, or cross-entropy."""
        z, query = self._features(sx), self._features(qx)
        codes = sy if self.regression else F.one_hot(sy, self.outputs).to(z.dtype)
        outputs = self.context(z, codes, query)
        if not self.regression:
            loss: Tensor = F.cross_entropy(outputs.flatten(0, 1), qy.flatten())
            return loss
        mean, raw = outputs.chunk(2, -1)
        deviation = FLOOR + F.softplus(raw)
        nll: Tensor = deviation.log() + ((qy - mean) / deviation).square() / 2
        return nll.mean() + math.log(2 * math.pi) / 2

    def _features(self, x: Tensor) -> Tensor:
        """[T, B, *X] -> [T, B, D]."""
        features: Tensor = self.params.features(x.flatten(0, 1))  # type: ignore[operator]
        by_task: Tensor = features.unflatten(0, x.shape[:2])
        return by_task


def parts(episodes: Episode) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return *episodes.support[:2], *episodes.query[:2]


def reference(problem: InContextProblem, episodes: Episode) -> Params:
    """Return the meta-gradient in float64 from plain modules."""
    network = Network(problem).double()
    inputs: Any = (part.double() if part.is_floating_point() else part for part in parts(episodes))
    network(*inputs).backward()
    return {name: copy_grad(value) for name, value in network.named_parameters()}


def engine(problem: InContextProblem) -> Engine:
    """Return loss and gradient with torch.compile, fused Adam; sampling as other torch peers."""
    network = Network(problem).to(problem.device)
    loss = torch.compile(network, dynamic=False)

    def backward(episodes: Episode) -> None:
        loss(*parts(episodes)).backward()

    return make_engine(problem, network, backward, "torch.compile, all tasks at once", fused=True)
