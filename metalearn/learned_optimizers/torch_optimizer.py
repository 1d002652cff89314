"""A learned update rule as a torch.optim.Optimizer, for the parameters of any module."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from numbers import Real
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from metalearn.errors import ConfigError
from metalearn.learned_optimizers.rules import LearnedRuleChoice
from metalearn.learned_optimizers.rules.learned_rule import LearnedRule, LearnedRuleComponent, Theta
from metalearn.logger import log
from metalearn.rng import fold_in
from metalearn.tree import from_named, named_leaves
from metalearn.types import Params, State, UpdateRule

OPTIONS = {"lr": 1.0, "weight_decay": 0.0}  # of a group, with their defaults
STATE = "rule"  # key of the rule's state, by name, in the state of the first parameter
COUNT = "steps"  # key of the number of steps made, in the same state
DTYPES = (torch.float32, torch.float64)  # second moments underflow in fewer bits
HALF = (torch.float16, torch.bfloat16)


class LearnedOptimizer(torch.optim.Optimizer):
    """p <- p + rule_theta(grad): `rule` with the learned `theta`, for a run of `num_steps` steps.

        loss = loss_of(model(x), y);  optimizer.zero_grad();  loss.backward();
        optimizer.step(loss=loss)

    or `optimizer.step(closure)`. A rule updates all parameters together; per parameter group, `lr`
    scales the updates (default 1; torch's schedulers set it), and `weight_decay` is a decoupled
    weight decay, multiplied by lr. Parameters without a gradient, frozen parameters and those of
    half precision are not updated. `state_dict()` holds the state but not theta: see `save`."""

    _last_state: State | None = None  # after the last step of this process, as a tree

    def __init__(
        self, params: Any, rule: LearnedRuleComponent, theta: Theta, num_steps: int
    ) -> None:
        if not isinstance(num_steps, int) or isinstance(num_steps, bool) or num_steps < 1:
            text = f"must be an integer >= 1 (got {num_steps!r}), the number of steps in all"
            raise ConfigError(("num_steps", text))
        self.rule = rule
        self._initialized = False
        super().__init__(params, {**OPTIONS, "num_steps": num_steps})
        self._initialized = True
        self._check_parameters()
        updated = self._updated_parameters()
        like = next(iter(updated.values()))
        self.theta = {name: value.detach().to(like) for name, value in theta.items()}
        self._learned: LearnedRule = rule.build(like.dtype, like=updated)
        self._check_theta(like)
        self._update_rule()  # raises its errors here and not at the first step

    @classmethod
    def load(cls, path: str | Path, params: Any, num_steps: int) -> LearnedOptimizer:
        """Load the optimizer from a file of `save`, for `params` and `num_steps` steps in total."""
        rule, theta = read_rule(Path(path))
        return cls(params, rule, theta, num_steps)

    def save(self, path: str | Path) -> None:
        """Write the rule's options and theta, for `load`; the parameters are not written."""
        write_rule(Path(path), self.rule, self.theta)

    def __getstate__(self) -> dict[str, Any]:
        return {
            **super().__getstate__(),
            "rule": self.rule,
            "theta": self.theta,
            "_initialized": self._initialized,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a copy or pickle; `load_state_dict` passes only state and groups."""
        super().__setstate__(state)
        if "rule" in state:
            updated = self._updated_parameters()
            self._learned = self.rule.build(next(iter(updated.values())).dtype, like=updated)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the state of an optimizer with this rule; raises ConfigError for any other."""
        if not all("num_steps" in group for group in state_dict.get("param_groups", [{}])):
            text = "belongs to another optimizer: its groups have no num_steps"
            raise ConfigError(("state_dict", text))
        groups = [{**OPTIONS, **group} for group in state_dict["param_groups"]]
        super().load_state_dict({**state_dict, "param_groups": groups})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Raise ConfigError for groups with other options, and after construction."""
        options = sorted(set(param_group) - {"params", "param_names", "num_steps", *OPTIONS})
        if options:
            text = f"{', '.join(options)}: a learned rule has no such options; groups may only"
            raise ConfigError(("params", f"{text} differ in lr (a factor) and weight_decay"))
        for name in OPTIONS:
            value = param_group.get(name, 0)
            if not isinstance(value, Tensor | Real) or not float(value) >= 0:
                raise ConfigError((name, f"must be >= 0 (got {value!r})"))
        if self._initialized:
            why = "the state of a learned rule covers all parameters: pass all groups at once"
            raise ConfigError(("params", why))
        super().add_param_group(param_group)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None, *, loss: Any = None) -> Any:
        """Update every parameter that has a gradient; returns the loss.

        Some rules read the loss: they need `closure` or `loss`."""
        if closure is not None and not callable(closure):
            text = f"got a {type(closure).__name__} instead of a closure: use step(loss=loss)"
            raise ConfigError(("step", text))
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if loss is None and self.rule.reads_loss:
            name = self.rule.name
            text = f"{name} needs the loss: call step(closure) or step(loss=loss)"
            raise ConfigError(("step", text))
        params = self._updated_parameters()
        grads = {name: _gradient(name, param) for name, param in params.items()}
        like = next(iter(params.values()))
        value = like.new_zeros(()) if loss is None else _loss(loss, like)
        rule = self._update_rule()
        state = self._state(rule, params)
        updates, state = rule.update(grads, state, params, value)
        self.state[like][STATE], self._last_state = named_leaves(state), state
        self._count_step(like)
        options = self._options()
        for name, param in params.items():
            if param.grad is not None and param.requires_grad:
                factor, decay = options[param]
                if decay:
                    param.mul_(1 - factor * decay)
                param.add_(updates[name], alpha=factor)
        return loss

    def _count_step(self, first: Tensor) -> None:
        """Warn at the first step after `num_steps`."""
        count = self.state[first].get(COUNT, 0) + 1
        self.state[first][COUNT] = count
        steps = self.param_groups[0]["num_steps"]
        if count == steps + 1:
            text = (
                f"step {count} of a learned optimizer that was made for num_steps={steps}: beyond"
            )
            log.warning(f"{text} them it may diverge; give num_steps as the number of all steps")

    def _options(self) -> dict[Tensor, tuple[float, float]]:
        """Return (factor of the updates, weight decay) of each parameter."""
        return {
            param: (float(group["lr"]), float(group["weight_decay"]))
            for group in self.param_groups
            for param in group["params"]
        }

    def _update_rule(self) -> UpdateRule:
        return self._learned.rule(self.theta, self.param_groups[0]["num_steps"])

    def _state(self, rule: UpdateRule, params: Params) -> State:
        """Return the state of the rule as a tree; a state_dict stores it flat."""
        stored, like = self.state[next(iter(params.values()))].get(STATE), self._last_state
        if stored is None or like is None:
            like = rule.init({name: param.detach() for name, param in params.items()})
        if stored is None:
            return like
        try:
            return from_named(like, stored)
        except KeyError as error:
            text = f"belongs to another rule or other parameters: {error.args[0]}"
            raise ConfigError(("state_dict", text)) from error

    def _updated_parameters(self) -> Params:
        """Return the parameters that the rule updates, by name.

        The names are those passed to the optimizer, else the indices among all parameters."""
        return {
            name: param
            for name, param in self._named_parameters().items()
            if not _is_excluded(param)
        }

    def _named_parameters(self) -> Params:
        """Return all parameters by name."""
        named: Params = {}
        for group in self.param_groups:
            names = group.get("param_names") or [
                str(len(named) + index) for index in range(len(group["params"]))
            ]
            named.update(zip(names, group["params"], strict=True))
        return named

    def _check_parameters(self) -> None:
        params = [param for group in self.param_groups for param in group["params"]]
        updated = [param for param in params if not _is_excluded(param)] or params
        kinds = {(param.dtype, param.device) for param in updated}
        if len(kinds) > 1 or updated[0].dtype not in DTYPES:
            described = ", ".join(
                sorted(f"{dtype} on {device}" for dtype, device in kinds)
            ).replace("torch.", "")
            text = f"are {described}: a learned rule updates float32 or float64 on one device"
            raise ConfigError(("params", f"{text} (autocast keeps parameters float32)"))
        named = self._named_parameters()
        if len(named) != len(params):
            raise ConfigError(("params", "two parameters have the same name"))
        half = [n for n, p in named.items() if p.requires_grad and _is_excluded(p)]
        if half:
            text = (
                f"{len(half)} parameters of half precision are not updated: {', '.join(half[:4])}"
            )
            log.warning(text)

    def _check_theta(self, like: Tensor) -> None:
        expected = _shapes(self._learned.init(fold_in(0, "theta").to(like.device)))
        actual = _shapes(self.theta)
        mismatches = sorted(
            name
            for name in expected.keys() | actual.keys()
            if expected.get(name) != actual.get(name)
        )
        if mismatches:
            text = f"does not fit {self.rule.name} on these parameters: {', '.join(mismatches[:4])}"
            raise ConfigError(("theta", text))


def write_rule(path: Path, rule: LearnedRuleComponent, theta: Theta) -> None:
    """Write tensors and one JSON string, which torch.load(weights_only=True) can read."""
    named = {name: value.detach().cpu().contiguous().clone() for name, value in theta.items()}
    torch.save({"rule": json.dumps(rule.model_dump(mode="json")), "theta": named}, path)


def read_rule(path: Path) -> tuple[LearnedRuleComponent, Theta]:
    """Return (rule, theta) of a file of `write_rule`; raises ConfigError for any other file."""
    try:
        data = torch.load(path, weights_only=True, map_location="cpu")
        theta = dict(data["theta"])
        if not theta or not all(isinstance(value, Tensor) for value in theta.values()):
            raise TypeError("theta must be a mapping of names to tensors")
        return parse_rule(json.loads(data["rule"])), theta
    except (
        OSError,
        RuntimeError,
        EOFError,
        pickle.UnpicklingError,
        LookupError,
        TypeError,
        ValueError,
    ) as error:
        why = " ".join(str(error).split())[:200]
        text = f"contains no learned optimizer ({why}): pass a run directory, or a file of"
        raise ConfigError((str(path), f"{text} LearnedOptimizer.save")) from error


def parse_rule(options: Any) -> LearnedRuleComponent:
    """Return the learned rule of plain options; raises ConfigError if they are not valid."""
    try:
        rule: LearnedRuleComponent = TypeAdapter(LearnedRuleChoice).validate_python(options)
    except ValidationError as error:
        raise ConfigError(
            *((".".join(map(str, item["loc"])), item["msg"]) for item in error.errors())
        ) from error
    return rule


def _loss(loss: Any, like: Tensor) -> Tensor:
    """Return the loss as a scalar []; raises ConfigError for anything else."""
    try:
        value = torch.as_tensor(loss).detach().to(like)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(("loss", f"must be a number (got {loss!r})")) from error
    if value.numel() != 1:
        text = f"must be a scalar (got shape {list(value.shape)}): pass its mean"
        raise ConfigError(("loss", text))
    return value.reshape(())


def _is_excluded(param: Tensor) -> bool:
    """Return whether a rule never updates it: half precision, or frozen in an unsupported dtype."""
    return param.dtype in HALF or (param.dtype not in DTYPES and not param.requires_grad)


def _gradient(name: str, param: Tensor) -> Tensor:
    if param.grad is None or not param.requires_grad:
        return torch.zeros_like(param)
    if param.grad.is_sparse:
        text = f"{name} has a sparse gradient: build its layer with sparse=False"
        raise ConfigError(("params", text))
    return param.grad


def _shapes(theta: Theta) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in theta.items()}
