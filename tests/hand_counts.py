"""FLOPs of a strided Conv4 and of methods on it, derived by hand: 2 for a multiply-add."""

from __future__ import annotations

from typing import NamedTuple

SIDES = (28, 14, 7, 4, 2)  # of the maps: the input, then after each stride of 2


class Net(NamedTuple):
    """Convolutions 3 x 3 with stride 2, then a mean over places and a linear head."""

    filters: int
    outputs: int

    def layers(self, batch: int) -> list[int]:
        """One product of each layer, the head last."""
        widths = (1, *[self.filters] * 4)
        convs = [
            2 * batch * side * side * 9 * inputs * outputs
            for side, inputs, outputs in zip(SIDES[1:], widths, widths[1:])
        ]
        return [*convs, self.head(batch)]

    def head(self, batch: int) -> int:
        return 2 * batch * self.filters * self.outputs

    def forward(self, batch: int) -> int:
        return sum(self.layers(batch))

    def features(self, batch: int) -> int:
        return self.forward(batch) - self.head(batch)

    def gradient(self, batch: int) -> int:
        """Forward, weight gradients, and input gradients of all layers but the first, which sees
        data."""
        return 2 * self.forward(batch) + self.hidden(batch)

    def hidden(self, batch: int) -> int:
        return sum(self.layers(batch)[1:])

    def second(self, batch: int) -> int:
        """A vector times the derivative of `gradient` in the weights.

        For the weight gradient x' g: one product for g in every layer, one for x in all but the
        first. For the input gradient w' g: one for g and one for w in all but the first. Then
        backwards through the forward pass once more."""
        weight_gradient = self.forward(batch) + self.hidden(batch)
        input_gradient = 2 * self.hidden(batch)
        return weight_gradient + input_gradient + self.forward(batch) + self.hidden(batch)


def maml(net: Net, support: int, query: int, steps: int, *, first_order: bool) -> int:
    """One task of one meta-step: each inner gradient, the query's, and, at second order, each inner
    one's derivative.

    The derivative of the first inner step is the same work: its weights are the meta-parameters."""
    once = steps * net.gradient(support) + net.gradient(query)
    return once if first_order else once + steps * net.second(support)


def proto_net(net: Net, ways: int, support: int, query: int) -> int:
    """Features of both sets and their gradient; class means are a product [N, B] x [B, D] and its
    transpose, distances a product [M, D] x [D, N] with two gradients."""
    both = [net.layers(size)[:-1] for size in (support, query)]
    forward = sum(map(sum, both))
    hidden = sum(sum(layers[1:]) for layers in both)
    means = 2 * ways * support * net.filters
    distances = 2 * ways * query * net.filters
    return 2 * forward + hidden + 2 * means + 3 * distances
