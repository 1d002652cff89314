"""Update rules with parameters: theta -> UpdateRule, the same pair that hand-made rules are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from metalearn.tree import flatten, leaves, tree_map, unflatten
from metalearn.types import Grads, Key, Params, State, UpdateRule, Updates

Theta = dict[str, Tensor]  # flat; float leaves of one dtype


class LearnedRule(NamedTuple):
    """An update rule with parameters theta, which an outer loop learns.

    `rule(theta, horizon)` is the pair for one task of `horizon` steps in all. The horizon lies in
    the rule's state, which `init` writes and `update` reads: a state that outlives an outer step
    goes on with the horizon that it began with, whatever `rule` is given then. Theta does not lie
    there: a state goes on under the theta of today."""

    init: Callable[[Key], Theta]
    rule: Callable[[Theta, Tensor | int], UpdateRule]


class LearnedComponent(Protocol):
    """The options of a learned rule."""

    name: str

    def build(
        self, dtype: torch.dtype = torch.float32, like: Params | None = None
    ) -> LearnedRule: ...


class Now(NamedTuple):
    """What all tensors of one step share."""

    step: Tensor  # [] steps already made
    horizon: Tensor  # [] steps in all
    loss: Tensor  # [] before the step
    seen: Any = None  # what the rule makes of the time, once for all tensors


Start = Callable[[Tensor], State]  # one parameter tensor -> what the rule keeps for it
Move = Callable[
    [Theta, Tensor, State, Tensor, Now], tuple[Tensor, State]
]  # (theta, grad, slots, param, now)


def over_tensors(
    start: Start, move: Move, see: Callable[[Tensor], Any] = lambda step: None
) -> Callable[[Theta, Tensor | int], UpdateRule]:
    """`LearnedRule.rule` made of two functions of one parameter tensor, and of what `see` makes of
    the step.

    State: {"count": [], "horizon": [], "slots": [what `start` and `move` give, one item a tensor]}.
    """

    def rule(theta: Theta, horizon: Tensor | int) -> UpdateRule:
        def init(params: Any) -> State:
            return {**clock(params, horizon), "slots": [start(param) for param in leaves(params)]}

        def update(grads: Grads, state: State, params: Any, loss: Tensor) -> tuple[Updates, State]:
            now = Now(state["count"], state["horizon"], loss, see(state["count"]))
            values, structure = flatten(params)
            moved = [
                move(theta, grad, slots, param, now)
                for grad, slots, param in zip(
                    in_order_of(params, grads), state["slots"], values, strict=True
                )
            ]
            updates, slots = [update for update, _ in moved], [kept for _, kept in moved]
            return unflatten(updates, structure), {**advanced(state), "slots": slots}

        return UpdateRule(init, update)

    return rule


def in_order_of(params: Any, grads: Grads) -> list[Tensor]:
    """The leaves of `grads` as those of `params` come, whatever the order of names in either."""
    return leaves(tree_map(lambda _, grad: grad, params, grads))


def clock(params: Any, horizon: Tensor | int) -> dict[str, Tensor]:
    """The shared part of a state before the first step: the count of steps, and how many there will
    be.
    """
    like = leaves(params)[0]
    steps = torch.as_tensor(horizon, dtype=like.dtype, device=like.device)
    return {"count": torch.zeros((), dtype=like.dtype, device=like.device), "horizon": steps}


def advanced(state: State) -> dict[str, Tensor]:
    """The shared part of a state, one step later."""
    return {"count": state["count"] + 1, "horizon": state["horizon"]}


def carried(learned: LearnedRule, theta: Theta, horizon: Tensor | int) -> UpdateRule:
    """The pair for one task with theta in its state: {"theta", "state"}.

    A gradient then reaches theta also where `inner/recompute` computes steps again. Not for a state
    that outlives an outer step: it would keep the theta of its first day.
    """
    fresh = learned.rule(theta, horizon)
    return UpdateRule(
        lambda params: {"theta": theta, "state": fresh.init(params)}, update_of(learned)
    )


def update_of(learned: LearnedRule) -> Callable[..., tuple[Updates, State]]:
    """The update of `carried`, which closes over no theta: one function for all tasks and outer
    steps.
    """

    def update(grads: Grads, state: State, params: Any, loss: Tensor) -> tuple[Updates, State]:
        inside = state["state"]
        updates, after = learned.rule(state["theta"], 0).update(
            grads, inside, params, loss
        )  # it reads its own horizon
        return updates, {"theta": state["theta"], "state": after}

    return update


def scalar(value: float, key: Key, dtype: torch.dtype) -> Tensor:
    """A leaf of theta: [] on the key's device."""
    return torch.full((), value, dtype=dtype, device=key.device)


def grown(start: float, log_factor: Tensor) -> Tensor:
    """start * e^x: a positive number learned as a logarithm; exactly `start` at x = 0."""
    return start * log_factor.exp()


def share(start: float, shift: Tensor) -> Tensor:
    """sigmoid(logit(start) + x): a decay learned as a logit; exactly `start` at x = 0, and 0 stays
    0.
    """
    return start / (start + (1 - start) * (-shift).exp())


def root(value: Tensor) -> Tensor:
    """The square root with slope 0 at 0, where its own is infinite: [*] -> [*]."""
    positive = value > 0
    return torch.where(positive, torch.where(positive, value, 1.0).sqrt(), 0.0)
