"""Checks that a user's module and the function made of it agree on a few examples."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from metalearn import noise, rng
from metalearn.errors import ConfigError
from metalearn.models.external.functions import ATTENTION, DRAWS, Functions
from metalearn.models.external.generators import generator_states
from metalearn.models.external.leaves import named_tensors
from metalearn.models.external.memory import computed_tensors, held_tensors
from metalearn.models.external.module import (
    Inputs,
    Output,
    call_module,
    copy_module,
    entry,
    first_line,
)
from metalearn.tree import STATS, partition
from metalearn.types import EpisodeSpec, Learner, Params

KEY = rng.fold_in(0, "check")
EVAL = "pass the module in evaluation mode, net.eval(), to disable that"
HINTS = {  # part of an error of torch: what would be right
    "saved tensor hooks": " Call the block itself instead of torch.utils.checkpoint",
    "requires_grad_()": " Derivatives in forward are those of torch.func.grad or vjp",
    "setup_context": " (torch.utils.checkpoint has none: call the block itself)",
}


@contextmanager
def unfused_attention() -> Iterator[None]:
    """Context manager that disables the fast path of torch's attention layers.

    The fast path computes other outputs for padding than the path that records gradients."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


class _Operators(TorchDispatchMode):
    """Collects the operators that draw from torch's generator, and the parameters that any changes.

    A parameter is known by its memory, as it is changed by way of .data as well."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found, self.changed = set[str](), set[str]()
        self.names = {
            value.untyped_storage().data_ptr(): name for name, value in module.named_parameters()
        }

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.Tag.nondeterministic_seeded in func.tags:
            self.found.add(func.overloadpacket.__name__)
        for argument, value in zip(func._schema.arguments, args, strict=False):
            written = argument.alias_info is not None and argument.alias_info.is_write
            if written and isinstance(value, Tensor) and value.numel():
                self.changed.add(self.names.get(value.untyped_storage().data_ptr(), ""))
        return func(*args, **(kwargs or {}))


class _Reads(TorchFunctionMode):
    """Collects which of some tensors, by id, are arguments of torch's functions."""

    def __init__(self, names: dict[int, str]) -> None:
        super().__init__()
        self.names, self.found = names, set[str]()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for value in (*args, *(kwargs or {}).values()):
            for item in value if isinstance(value, list | tuple) else (value,):
                if (name := self.names.get(id(item))) is not None:
                    self.found.add(name)
        return func(*args, **(kwargs or {}))


def refuse_foreign_tensors(
    module: nn.Module,
    originals: Sequence[nn.Module],
    x: Tensor,
    inputs: Inputs,
    make_other: Callable[[], nn.Module],
) -> None:
    """Raise ConfigError if a copy of a module computes with tensors of the original module.

    A function in an attribute may refer to those, and no step would update them. Constants are
    accepted: what requires no gradient, is not changed by forward and is the same in
    `make_other()`, a module of another seed."""
    tensors = [(name, value) for net in originals for name, value in named_tensors(net).items()]
    constants = [
        (name, value) for name, value in tensors if not (value.requires_grad or is_lazy(value))
    ]
    before = [value.clone() for _, value in constants]
    held = [dict(held_tensors(net)) for net in originals]
    with _Reads({id(value): name for name, value in tensors}) as reads, torch.no_grad():
        call_module(copy_module(module), x.clone(), inputs)
    for net, values in zip(originals, held, strict=True):
        if set_in := [name for name, value in held_tensors(net) if values.get(name) is not value]:
            text = "is set by a function in a hook or an attribute, which in a copy sets that of"
            text += " the original module: make it a method that uses self"
            raise ConfigError(*((name, text) for name in set_in))
    if not reads.found:
        return
    second, constant = named_tensors(make_other()), set[int]()
    for (name, value), old in zip(constants, before, strict=True):
        if _same(value, old) and name in second and _same(second[name].to(old), old):
            constant.add(id(value))
    wrong = {name for name, v in tensors if name in reads.found and id(v) not in constant}
    if wrong:
        text = "is used by a function in an attribute or through a global variable, which uses the"
        text += " same tensor in a copy of the module: make it a method that uses self"
        raise ConfigError(*((name, text) for name in sorted(wrong)))


def refuse_computed_tensors(net: nn.Module, first: nn.Module, x: Tensor, inputs: Inputs) -> None:
    """Raise ConfigError if forward reads tensors that were computed from parameters before it.

    `first` is a copy of `net`. Tensors that forward computes again are accepted."""
    paths = computed_tensors(net).keys()
    if not paths:
        return
    clone = copy_module(first)
    held = dict(held_tensors(clone, parameters=False))
    names = {id(held[path]): path for path in paths if path in held}
    with _Reads(names) as reads, torch.no_grad():
        call_module(clone.eval(), x.clone(), inputs)
    if reads.found:
        text = "was computed from parameters before forward, so that their steps would not change"
        text += " it: compute it in forward"
        raise ConfigError(*((name, text) for name in sorted(reads.found)))


def refuse_other_values(first: nn.Module, second: nn.Module) -> None:
    """Raise ConfigError if two modules that were built with one seed have different values."""
    others = named_tensors(second)
    for name, value in named_tensors(first).items():
        other = others.get(name)
        if other is None or is_lazy(value) or value.shape != other.shape:  # refused elsewhere
            continue
        if not torch.allclose(value, other, equal_nan=True):
            text = "has other values each time it is built with the same seed: draw them with"
            text += " torch, numpy.random or random, not with a generator of unknown seed"
            raise ConfigError((name, text))


class Behaviour(NamedTuple):
    """What a forward pass does besides computing its output."""

    draws: bool  # noise, in training mode
    attends: bool  # by F.scaled_dot_product_attention


def watch_forward(
    quiet: nn.Module, noisy: nn.Module, x: Tensor, inputs: Inputs, output: Output
) -> Behaviour:
    """Return what the module does besides computing its output.

    Raises ConfigError for what a pure function cannot do: random numbers without a key, changes of
    buffers, other outputs in training mode. Both modules have substituted layers; `noisy` is in
    the modes in which the module was passed."""
    name = type(noisy).__name__
    with Functions(ATTENTION) as functions:
        eval_out, ops = _run_watched(copy_module(quiet), x, inputs, output)
    if ops:
        text = f"forward calls {ops}, also in evaluation mode: remove it, or sample outside"
        raise ConfigError((name, f"{text} of the network"))
    clone = copy_module(noisy)
    before = {key: value.clone() for key, value in clone.named_buffers()}
    with noise.noise_from(KEY) as scope, Functions(DRAWS):
        first, ops = _run_watched(clone, x, inputs, output)
    again, counters = _call_again(clone, x, inputs, output)
    if ops:
        text = f"forward calls {ops}, which uses torch's random number generator and not a key"
        raise ConfigError((name, f"{text}: use torch.nn.functional.dropout, or {EVAL}"))
    if counters:
        text = "changes with every call of forward, which a pure function cannot do: count"
        raise ConfigError(*((path, f"{text} outside of the network") for path in counters))
    changed = [key for key, v in clone.named_buffers() if not _same(v, before[key])]
    if changed:
        text = "is changed by forward, which a pure function cannot do"
        text += f" in training mode: {EVAL}" if noisy.training else ""
        raise ConfigError(*((key, text) for key in changed))
    if not ops and not _same(first, again):
        text = "computes another output when it is called again with the same random numbers:"
        raise ConfigError((name, f"{text} forward keeps state, or draws from another generator"))
    if not scope.draws:
        with Functions(ATTENTION):
            training_out = _run_watched(copy_module(noisy), x, inputs, output)[0]
        if not _same(training_out, eval_out):
            text = f"computes different results in training and evaluation mode: {EVAL}"
            raise ConfigError((name, text))
    return Behaviour(scope.draws > 0, bool(functions.met))


def _call_again(
    module: nn.Module, x: Tensor, inputs: Inputs, output: Output
) -> tuple[Tensor, list[str]]:
    """Return the output under the key of the first call, and the attributes that count calls."""
    counts = _counts(module)
    with noise.noise_from(KEY), Functions(DRAWS):
        again = entry(call_module(module, x, inputs), output)
    return again, [name for name, value in _counts(module).items() if counts.get(name) != value]


def _counts(module: nn.Module) -> dict[str, int | float]:
    """Return the plain attributes of all submodules that are numbers, by path."""
    return {
        f"{name}.{attribute}" if name else attribute: value
        for name, part in module.named_modules()
        for attribute, value in vars(part).items()
        if isinstance(value, int | float)
    }


def _run_watched(
    module: nn.Module, x: Tensor, inputs: Inputs, output: Output
) -> tuple[Tensor, str]:
    """Return the output, and the operators whose random numbers changed it ("" if none did)."""
    watch, x_copy = _Operators(module), x.clone()
    places = {name: value.data_ptr() for name, value in module.named_parameters()}
    states = generator_states(module)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        with watch:
            out = entry(call_module(module, x_copy, inputs), output)
        _refuse_generators(module, states)
        _refuse_changes(module, watch.changed, places)
        if not _same(x_copy, x):
            text = "changes x in place, which other code also uses: compute a new tensor"
            raise ConfigError((type(module).__name__, text))
        torch.manual_seed(1)
        if not watch.found or _same(out, entry(call_module(module, x_copy, inputs), output)):
            return out, ""
    return out, ", ".join(sorted(watch.found))


def _refuse_generators(module: nn.Module, before: dict[str, bytes]) -> None:
    """Raise ConfigError if a generator of Python or numpy is not in its state `before`."""
    after = generator_states(module)
    if drawn := ", ".join(name for name, state in before.items() if after.get(name) != state):
        text = f"forward draws from {drawn}, which no key determines: draw with torch.rand, or"
        text += f" {EVAL}" if module.training else " sample outside of the network"
        raise ConfigError((type(module).__name__, text))


def _refuse_changes(module: nn.Module, changed: set[str], places: dict[str, int]) -> None:
    """Raise ConfigError for parameters that forward has written to, or given other memory.

    `changed` are the names of the former, `places` the addresses before forward."""
    params = dict(module.named_parameters())
    moved = {
        name for name, at in places.items() if name in params and params[name].data_ptr() != at
    }
    if names := sorted((changed | moved) & params.keys()):
        text = "is changed by forward, which a pure function cannot do: compute a new tensor from"
        text += " it, such as self.weight.clamp(min=0), and use that"
        raise ConfigError(*((name, text) for name in names))


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a, b, equal_nan=True)


def perturbed(params: Params) -> Params:
    """Return the parameters with noise on those that steps update."""
    return {
        leaf: value
        if leaf.startswith(STATS)
        else value + 0.02 * rng.normal(rng.fold_in(KEY, leaf), value.shape, value.dtype).to(value)
        for leaf, value in params.items()
    }


def check_equal(learner: Learner, params: Params, x: Tensor, forward: Callable[..., Any]) -> None:
    """Raise ConfigError if module and `apply` differ with other values of the parameters."""
    params = perturbed(params)
    with torch.no_grad(), unfused_attention():
        ours, theirs = learner.apply(params, x), forward(learner.module(params), x)  # type: ignore[misc]
    close = 1e-8 if x.dtype == torch.float64 or ours.dtype == torch.float64 else 1e-3
    scale = theirs.abs().nan_to_num().max().clamp(min=1e-3)
    if ours.shape != theirs.shape or not torch.allclose(
        ours / scale, theirs / scale, rtol=0, atol=close, equal_nan=True
    ):
        text = (
            "is not a function of its named parameters and buffers and of x alone: forward keeps "
            "state, draws random numbers, or reads a copy of a parameter under another name"
        )
        raise ConfigError(("net", text))


def check_sizes(learner: Learner, params: Params, x: Tensor, name: str) -> None:
    """Raise ConfigError if the outputs are not one row per example, for any number of examples."""
    with torch.no_grad(), unfused_attention():
        row = learner.apply(params, x).shape[1:]
        for rows in (torch.cat([x, x[:1]]), x[:1]):
            try:
                shape = learner.apply(params, rows).shape
            except Exception as error:
                if len(rows) == 1:  # as statistics of one example
                    continue
                text = f"takes {len(x)} examples, but not {len(rows)}: {first_line(error)}"
                raise ConfigError((name, text)) from error
            if shape != (len(rows), *row):
                text = (
                    f"returns outputs {list(shape)} for {len(rows)} examples and {[len(x), *row]}"
                )
                text += f" for {len(x)}: it must return one row each (squeeze(-1), not squeeze())"
                raise ConfigError((name, text))


def examples_interact(learner: Learner, params: Params, x: Tensor) -> bool:
    """Return whether the output of an example depends on the others in the batch."""
    other_values, params = 3 + 2 * x[1:] if x.is_floating_point() else 1 - x[1:], perturbed(params)
    try:
        with torch.no_grad():
            first, second = (
                learner.apply(params, torch.cat([x[:1], neighbours]))[0]
                for neighbours in (x[1:], other_values)
            )
    except (ConfigError, RuntimeError):  # a look-up table of one row
        return False
    return not torch.allclose(first, second, rtol=1e-3, atol=1e-5, equal_nan=True)


def check_batched(learner: Learner, params: Params, x: Tensor) -> None:
    """Raise ConfigError if gradients cannot be batched over tasks.

    Warns if there is no second derivative, which first-order methods do not need."""
    stats, trainable = partition(params, lambda leaf: leaf.startswith(STATS))
    pair = torch.stack([x, x])

    def loss(inner: Params, x: Tensor) -> Tensor:
        return learner.apply({**inner, **stats}, x).abs().square().mean()

    def after_a_step(inner: Params, x: Tensor) -> Tensor:
        grads = torch.func.grad(loss)(inner, x)
        return loss({leaf: value - grads[leaf] for leaf, value in inner.items()}, x)

    if not trainable:
        return

    def noisy(inner: Params, x: Tensor, key: Tensor) -> Tensor:
        with noise.noise_from(key):
            return loss(inner, x)

    try:
        torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(trainable, pair)
        if learner.draws_noise:
            keys = rng.fold_in(KEY, torch.arange(2))
            torch.func.vmap(torch.func.grad(noisy), in_dims=(None, 0, 0))(trainable, pair, keys)
    except ConfigError:
        raise
    except Exception as error:
        text = f"cannot be batched over tasks by torch.func.vmap: {first_line(error)}"
        hint = next((hint for part, hint in HINTS.items() if part in str(error)), "")
        raise ConfigError(("net", text + hint)) from error
    try:
        torch.func.vmap(torch.func.grad(after_a_step), in_dims=(None, 0))(trainable, pair)
    except Exception as error:
        logging.getLogger("metalearn").warning(
            "this module has no second derivative, so only first-order methods can train it: %s",
            first_line(error),
        )


def check_outputs(spec: EpisodeSpec, out: Tensor, name: str) -> None:
    """Raise ConfigError if the outputs [B, *Y] or [B, *Y, C] do not fit the task."""
    if out.dim() == 1 and out.shape[0] and not spec.classification and spec.outputs == 1:
        return
    wrong = out.dim() < 2 or out.shape[0] == 0
    wrong = wrong or ((spec.classification or out.dim() == 2) and out.shape[-1] != spec.outputs)
    if wrong:
        width = out.shape[-1] if out.dim() > 1 else f"shape {list(out.shape)} and so no"
        text = (
            f"has {width} outputs, the task needs {spec.outputs}: head='new' replaces the "
            "head, head=None makes a learner without a head, for metric methods"
        )
        if spec.classification and out.dim() > 2 and out.shape[1] == spec.outputs:
            text = f"has the classes on axis 1 of {list(out.shape)}: they must be on the last axis,"
            text += " out.movedim(1, -1), as labels [B, *Y] need outputs [B, *Y, C]"
        raise ConfigError((name, text))
