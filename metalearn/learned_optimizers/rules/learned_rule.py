"""Update rules with parameters: theta -> UpdateRule, the same pair as hand-designed rules."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from metalearn.component import Component
from metalearn.tree import flatten, leaves, tree_map, unflatten
from metalearn.types import Grads, Key, Params, State, UpdateRule, Updates

Theta = dict[str, Tensor]  # flat; float leaves of one dtype


class LearnedRule(NamedTuple):
    """An update rule with parameters theta, which an outer loop learns.

    `rule(theta, horizon)` is the pair for one task of `horizon` steps. The horizon is part of the
    rule's state, which `init` writes and `update` reads: a state that outlives an outer step keeps
    its first horizon, whatever is passed to `rule` later. Theta is not part of the state, which
    continues with the current theta."""

    init: Callable[[Key], Theta]
    rule: Callable[[Theta, Tensor | int], UpdateRule]


class LearnedRuleComponent(Component):
    """The options of a learned rule."""

    reads_loss: ClassVar[bool] = False
    fixed_shapes: ClassVar[bool] = False  # theta fits the parameters of only one network

    name: str

    @abstractmethod
    def build(self, dtype: torch.dtype = torch.float32, like: Params | None = None) -> LearnedRule:
        """Build the rule with theta of `dtype`, for parameters with names and shapes of `like`.

        Only rules with `fixed_shapes` need `like`."""


class StepInfo(NamedTuple):
    """The values of a step that are the same for all tensors."""

    step: Tensor  # [] steps already made
    horizon: Tensor  # [] total number of steps
    loss: Tensor  # [] before the step
    time: Any = None  # the rule's features of the step


Init = Callable[[Tensor], State]  # one parameter tensor -> its slots
# (theta, grad, slots, param, info) -> (update, slots)
Update = Callable[[Theta, Tensor, State, Tensor, StepInfo], tuple[Tensor, State]]


def per_tensor_rule(
    start: Init, move: Update, time_features: Callable[[Tensor], Any] = lambda step: None
) -> Callable[[Theta, Tensor | int], UpdateRule]:
    """Build `LearnedRule.rule` from two functions of one parameter tensor.

    `time_features(step)` is computed once for all tensors. State: {"count": [], "horizon": [],
    "slots": [result of `start` or `move` for each tensor]}."""

    def rule(theta: Theta, horizon: Tensor | int) -> UpdateRule:
        def init(params: Any) -> State:
            slots = [start(param) for param in leaves(params)]
            return {**init_clock(params, horizon), "slots": slots}

        def update(grads: Grads, state: State, params: Any, loss: Tensor) -> tuple[Updates, State]:
            count = state["count"]
            info = StepInfo(count, state["horizon"], loss, time_features(count))
            values, structure = flatten(params)
            tensors = zip(grads_in_order(params, grads), state["slots"], values, strict=True)
            results = [move(theta, grad, slots, param, info) for grad, slots, param in tensors]
            updates, slots = [update for update, _ in results], [slot for _, slot in results]
            return unflatten(updates, structure), {**advance_clock(state), "slots": slots}

        return UpdateRule(init, update)

    return rule


def grads_in_order(params: Any, grads: Grads) -> list[Tensor]:
    """Return the leaves of `grads` in the order of those of `params`."""
    return leaves(tree_map(lambda _, grad: grad, params, grads))


def init_clock(params: Any, horizon: Tensor | int) -> dict[str, Tensor]:
    """Return the shared part of an initial state: the count of steps, and the horizon."""
    like = leaves(params)[0]
    count = torch.zeros((), dtype=like.dtype, device=like.device)
    # full_like is a kernel; a copy from the host would synchronise in every step
    steps = horizon.to(count) if isinstance(horizon, Tensor) else torch.full_like(count, horizon)
    return {"count": count, "horizon": steps}


def advance_clock(state: State) -> dict[str, Tensor]:
    """Return the shared part of a state, one step later."""
    return {"count": state["count"] + 1, "horizon": state["horizon"]}


def bind_theta(learned: LearnedRule, theta: Theta, horizon: Tensor | int) -> UpdateRule:
    """Return the pair for one task with theta in its state: {"theta", "state"}.

    A gradient then reaches theta also where `inner/recompute` repeats steps. Not for a state that
    outlives an outer step, as it would keep its first theta.

    >>> learned = ml.learned_optimizers.LearnedSGD(lr=0.1).build()
    >>> theta, params = learned.init(ml.fold_in(0)), {"w": torch.tensor([2.0])}
    >>> rule = ml.learned_optimizers.bind_theta(learned, theta, horizon=10)
    >>> grads, loss = {"w": torch.tensor([4.0])}, torch.tensor(4.0)
    >>> updates, _ = rule.update(grads, rule.init(params), params, loss)
    >>> updates["w"]
    tensor([-0.4000])
    """
    rule = learned.rule(theta, horizon)
    return UpdateRule(
        lambda params: {"theta": theta, "state": rule.init(params)}, make_bound_update(learned)
    )


def make_bound_update(learned: LearnedRule) -> Callable[..., tuple[Updates, State]]:
    """Return the update of `bind_theta`; it captures no theta, so it serves all tasks and steps."""

    def update(grads: Grads, state: State, params: Any, loss: Tensor) -> tuple[Updates, State]:
        rule = learned.rule(state["theta"], 0)  # the horizon is read from the state
        updates, next_state = rule.update(grads, state["state"], params, loss)
        return updates, {"theta": state["theta"], "state": next_state}

    return update


def scalar(value: float, key: Key, dtype: torch.dtype) -> Tensor:
    """Return a leaf of theta: [] on the device of the key."""
    return torch.full((), value, dtype=dtype, device=key.device)


def exp_scaled(start: float, log_factor: Tensor) -> Tensor:
    """start * e^x, a positive number learned as a logarithm; exactly `start` at x = 0."""
    return start * log_factor.exp()


def shifted_sigmoid(start: float, shift: Tensor) -> Tensor:
    """sigmoid(logit(start) + x), a decay learned as a logit; exactly `start` at x = 0 and at 0."""
    return start / (start + (1 - start) * (-shift).exp())


def safe_sqrt(value: Tensor) -> Tensor:
    """Return the square root with derivative 0 at 0, where it is infinite: [*] -> [*]."""
    positive = value > 0
    return torch.where(positive, torch.where(positive, value, 1.0).sqrt(), 0.0)
