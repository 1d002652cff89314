"""Hand-designed update rules: (init, update) pairs for inner and outer loops.

The caller adds the updates. State is float tensors of the parameters' dtype, counts included, so
that a step compiles once and a checkpoint is only tensors.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from functools import reduce
from operator import mul
from typing import Annotated, Any, Literal

import torch
from pydantic import model_validator
from torch import Tensor

from metalearn.component import OneOf, RuleComponent, option
from metalearn.errors import ConfigError
from metalearn.tree import leaves, tree_map, zeros_like
from metalearn.types import EpisodeSpec, UpdateRule

Schedule = Callable[[Tensor], Tensor]  # number [] of earlier steps -> factor [] of the step size


def _count(params: Any) -> Tensor:
    like = next(iter(leaves(params)), None)
    if like is None:
        text = "has no trainable parameter: all are frozen (requires_grad=False)"
        raise ConfigError(("model", text))
    return torch.zeros((), dtype=like.dtype, device=like.device)


def rate_as_input(lr: float, spec: EpisodeSpec) -> float | Tensor:
    """A step size [] that is an input of a compiled step, so that one step serves every step size.

    On CUDA it is the number itself: a tensor on the host would keep a step out of a captured graph.
    """
    return (
        lr
        if spec.device.startswith("cuda")
        else torch.tensor(lr, dtype=torch.float64, device="cpu")
    )


def _times(rate: float | Tensor, g: Tensor) -> Tensor:
    return (rate.to(g.dtype) if isinstance(rate, Tensor) else rate) * g


def sgd(lr: float | Tensor, schedule: Schedule | None = None) -> UpdateRule:
    """Gradient descent: u = -lr * g.

    >>> rule, params = ml.inner.sgd(0.5), {"w": torch.tensor([2.0])}
    >>> updates, _ = rule.update({"w": torch.tensor([4.0])}, rule.init(params), params, None)
    >>> updates["w"]  # added to the parameters by the caller
    tensor([-2.])
    """
    if schedule is None:
        down = -lr
        return UpdateRule(
            lambda params: {},
            lambda grads, state, params, loss: (tree_map(lambda g: _times(down, g), grads), state),
            elementwise=True,
        )

    def update(grads: Any, state: Any, params: Any, loss: Tensor) -> tuple[Any, Any]:
        rate = lr * schedule(state["count"])
        return tree_map(lambda g: -rate * g, grads), {"count": state["count"] + 1}

    return UpdateRule(lambda params: {"count": _count(params)}, update, elementwise=True)


def momentum(
    lr: float, decay: float, schedule: Schedule | None = None, *, nesterov: bool = False
) -> UpdateRule:
    """Heavy-ball momentum (Polyak 1964), as torch.optim.SGD: m = decay * m + g; u = -lr * m.

    Nesterov's (Sutskever et al. 2013) goes on along m: u = -lr * (g + decay * m).
    """

    def init(params: Any) -> Any:
        return {"count": _count(params), "velocity": zeros_like(params)}

    def update(grads: Any, state: Any, params: Any, loss: Tensor) -> tuple[Any, Any]:
        velocity = tree_map(lambda m, g: decay * m + g, state["velocity"], grads)
        rate = lr if schedule is None else lr * schedule(state["count"])
        ahead = tree_map(lambda m, g: g + decay * m, velocity, grads) if nesterov else velocity
        return tree_map(lambda m: -rate * m, ahead), {
            "count": state["count"] + 1,
            "velocity": velocity,
        }

    return UpdateRule(init, update, elementwise=True)


def adam(
    lr: float,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    eps_root: float = 0.0,
    schedule: Schedule | None = None,
) -> UpdateRule:
    """Adam (Kingma & Ba 2015, algorithm 1): u = -lr * m_hat / (sqrt(v_hat + eps_root) + eps).

    The smallest normal number stands beside `eps_root`: it changes no value, and gives the root a
    finite slope at zero, where a gradient is taken through the rule. A larger `eps_root` bounds
    that slope further.

    >>> rule, params = ml.inner.adam(0.01), {"w": torch.tensor([2.0])}
    >>> updates, _ = rule.update({"w": torch.tensor([4.0])}, rule.init(params), params, None)
    >>> updates["w"]  # the first step has the size of the rate
    tensor([-0.0100])
    """

    def init(params: Any) -> Any:
        return {"count": _count(params), "first": zeros_like(params), "second": zeros_like(params)}

    def update(grads: Any, state: Any, params: Any, loss: Tensor) -> tuple[Any, Any]:
        count = state["count"] + 1
        first = tree_map(lambda m, g: beta1 * m + (1 - beta1) * g, state["first"], grads)
        second = tree_map(lambda v, g: beta2 * v + (1 - beta2) * g * g, state["second"], grads)
        rate = lr if schedule is None else lr * schedule(state["count"])
        first_scale, second_scale = 1 - beta1**count, 1 - beta2**count
        root = eps_root + torch.finfo(count.dtype).tiny
        updates = tree_map(
            lambda m, v: -rate * (m / first_scale) / ((v / second_scale + root).sqrt() + eps),
            first,
            second,
        )
        return updates, {"count": count, "first": first, "second": second}

    return UpdateRule(init, update, elementwise=True)


def clip_by_global_norm(rule: UpdateRule, limit: float) -> UpdateRule:
    """`rule` with clipped gradients (Pascanu et al. 2013, section 3.2).

    g * min(1, limit / |g|), |g| the norm over all leaves
    """

    def update(grads: Any, state: Any, params: Any, loss: Tensor) -> tuple[Any, Any]:
        squares = torch.stack([g.square().sum() for g in leaves(grads)]).sum()
        size = (squares + torch.finfo(squares.dtype).tiny).sqrt()  # a finite slope at zero
        factor = (limit / size).clamp(max=1)
        return rule.update(tree_map(lambda g: factor * g, grads), state, params, loss)

    return rule._replace(update=update)


def clip_by_value(rule: UpdateRule, limit: float) -> UpdateRule:
    """`rule` with every number of a gradient clamped to [-limit, limit]."""

    def update(grads: Any, state: Any, params: Any, loss: Tensor) -> tuple[Any, Any]:
        bounded = tree_map(lambda g: g.clamp(-limit, limit), grads)
        return rule.update(bounded, state, params, loss)

    return rule._replace(update=update)


def with_l2(rule: UpdateRule, strength: float) -> UpdateRule:
    """`rule` on the loss + strength / 2 * |p|^2: g + strength * p instead of g.

    It is the weight_decay of torch.optim.SGD and Adam; momentum and moments contain it."""

    def update(grads: Any, state: Any, params: Any, loss: Tensor) -> tuple[Any, Any]:
        total = tree_map(lambda g, p: g + strength * p, grads, params)
        return rule.update(total, state, params, loss)

    return rule._replace(update=update)


def with_weight_decay(
    rule: UpdateRule, lr: float, schedule: Schedule | None, decay: float
) -> UpdateRule:
    """`rule` with decoupled weight decay (Loshchilov & Hutter 2019).

    u = rule(g) - lr * schedule * decay * p
    """

    def update(grads: Any, state: Any, params: Any, loss: Tensor) -> tuple[Any, Any]:
        rate = lr if schedule is None else lr * schedule(state["count"])
        updates, state = rule.update(grads, state, params, loss)
        return tree_map(lambda u, p: u - rate * decay * p, updates, params), state

    return rule._replace(update=update)


def per_parameter(rates: Any) -> UpdateRule:
    """Descent with a rate for each parameter (Meta-SGD, Li et al. 2017): u = -rates * g."""

    def update(grads: Any, state: Any, params: Any, loss: Tensor) -> tuple[Any, Any]:
        return tree_map(lambda rate, g: -rate * g, state["rates"], grads), state

    # The rates are learned: they ride in the state, so that a gradient finds them where steps are
    # computed again.
    return UpdateRule(lambda params: {"rates": rates}, update)


def make_schedule(name: str, total: int | None) -> Schedule | None:
    """The schedule of a name over `total` steps; None, constant, if their number is not known."""
    if name == "constant" or total is None:
        return None
    if name == "linear":
        return lambda count: (1 - count / total).clamp(min=0)
    return lambda count: 0.5 * (1 + torch.cos(math.pi * (count / total).clamp(max=1)))


def multi_step(milestones: Sequence[int], gamma: float | Sequence[float]) -> Schedule:
    """The factor gamma^(number of milestones reached), as torch.optim.lr_scheduler.MultiStepLR.

    With one gamma per milestone, it is the product of those of the milestones reached."""

    def schedule(count: Tensor) -> Tensor:
        reached = [(count >= at).to(count.dtype) for at in milestones]
        if isinstance(gamma, Sequence):
            parts = [base**passed for base, passed in zip(gamma, reached, strict=True)]
            return reduce(mul, parts, torch.ones_like(count))
        return gamma ** sum(reached, torch.zeros_like(count))

    return schedule


class _Rule(RuleComponent):
    lr: float = option(0.001, "Step size.", gt=0)
    schedule: Literal["constant", "linear", "cosine", "steps"] = option(
        "constant",
        "Schedule of the step size: constant, linear or cosine decay to zero (constant if "
        "the number of steps is unknown), or steps: multiplied by gamma at each milestone.",
    )
    milestones: tuple[int, ...] = option(
        (), "Steps at which the step size is multiplied by gamma (schedule: steps).", later=True
    )
    gamma: float | tuple[float, ...] = option(
        0.1, "Multiplier of the step size at every milestone, or one per milestone.", later=True
    )
    clip: float | None = option(
        None, "Maximum global norm of the gradient; null: no clipping.", gt=0, later=True
    )
    clip_value: float | None = option(
        None, "Maximum absolute value of each gradient entry; null: no clipping.", gt=0, later=True
    )
    weight_decay: float = option(0.0, "Decoupled weight decay, multiplied by lr.", ge=0, later=True)
    l2: float = option(
        0.0,
        "L2 penalty, added to the gradient as weight_decay of torch.optim.SGD.",
        ge=0,
        later=True,
    )

    def build(self, steps: int | None = None) -> UpdateRule:
        at = self.milestones
        schedule = multi_step(at, self.gamma) if at else make_schedule(self.schedule, steps)
        rule = with_l2(self.build_rule(schedule), self.l2) if self.l2 else self.build_rule(schedule)
        rule = rule if self.clip is None else clip_by_global_norm(rule, self.clip)
        rule = rule if self.clip_value is None else clip_by_value(rule, self.clip_value)
        decay = self.weight_decay
        return with_weight_decay(rule, self.lr, schedule, decay) if decay else rule

    @model_validator(mode="after")
    def _milestones(self) -> _Rule:
        at = self.milestones
        if (self.schedule == "steps") != bool(at):
            raise ValueError("schedule: steps and milestones must be set together")
        if any(step < 1 for step in at) or list(at) != sorted(set(at)):
            raise ValueError(f"milestones must be ascending and >= 1 (got {list(at)})")
        gammas = (self.gamma,) if isinstance(self.gamma, float) else self.gamma
        if not all(0 < one < 1 for one in gammas):
            raise ValueError(f"gamma must be between 0 and 1 (got {self.gamma})")
        if not isinstance(self.gamma, float) and len(gammas) != len(at):
            raise ValueError(
                f"gamma must have one entry per milestone (got {len(gammas)} for {len(at)})"
            )
        return self

    @model_validator(mode="after")
    def _one_of_a_kind(self) -> _Rule:
        if self.l2 and self.weight_decay:
            text = "l2 and weight_decay are alternatives: set only one of them"
            raise ValueError(text)
        if self.clip is not None and self.clip_value is not None:
            raise ValueError("clip and clip_value are alternatives: set only one of them")
        return self

    @abstractmethod
    def build_rule(self, schedule: Schedule | None) -> UpdateRule:
        """The rule without clipping and weight decay; its step size is lr times `schedule`."""


class SGD(_Rule):
    """Gradient descent.

    >>> params, grads = {"w": torch.zeros(2)}, {"w": torch.ones(2)}
    >>> rule = ml.inner.SGD(lr=0.1).build()
    >>> rule.update(grads, rule.init(params), params, torch.tensor(1.0))[0]
    {'w': tensor([-0.1000, -0.1000])}
    """

    name: Literal["sgd"] = option("sgd", "The rule.")

    def build_rule(self, schedule: Schedule | None) -> UpdateRule:
        return sgd(self.lr, schedule)


class Momentum(_Rule):
    """Gradient descent with heavy-ball momentum.

    >>> params, grads = {"w": torch.zeros(2)}, {"w": torch.ones(2)}
    >>> rule = ml.inner.Momentum(lr=0.1).build()
    >>> rule.update(grads, rule.init(params), params, torch.tensor(1.0))[0]
    {'w': tensor([-0.1000, -0.1000])}
    """

    name: Literal["momentum"] = option("momentum", "The rule.")
    decay: float = option(0.9, "Momentum coefficient.", ge=0, lt=1)
    nesterov: bool = option(False, "Use Nesterov momentum, as torch.optim.SGD.", later=True)

    def build_rule(self, schedule: Schedule | None) -> UpdateRule:
        return momentum(self.lr, self.decay, schedule, nesterov=self.nesterov)


class Adam(_Rule):
    """Adam.

    >>> params, grads = {"w": torch.zeros(2)}, {"w": torch.ones(2)}
    >>> rule = ml.inner.Adam(lr=0.1).build()
    >>> rule.update(grads, rule.init(params), params, torch.tensor(1.0))[0]
    {'w': tensor([-0.1000, -0.1000])}
    """

    name: Literal["adam"] = option("adam", "The rule.")
    beta1: float = option(0.9, "Decay rate of the first moment.", ge=0, lt=1)
    beta2: float = option(0.999, "Decay rate of the second moment.", ge=0, lt=1)
    eps: float = option(1e-8, "Added to the square root of the second moment.", gt=0)
    eps_root: float = option(
        0.0,
        "Added inside the square root; keeps the derivative of the rule finite.",
        ge=0,
        later=True,
    )

    def build_rule(self, schedule: Schedule | None) -> UpdateRule:
        return adam(self.lr, self.beta1, self.beta2, self.eps, self.eps_root, schedule)


RULES: dict[str, type[RuleComponent]] = {"sgd": SGD, "momentum": Momentum, "adam": Adam}
Rule = Annotated[SGD | Momentum | Adam, OneOf(RULES, RuleComponent, "rule")]
