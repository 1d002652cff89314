"""Utilities for a user's module: copy, cast, call it with an example, without changing it."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parameter import UninitializedBuffer, is_lazy

from metalearn import rng
from metalearn.errors import ConfigError
from metalearn.models.external.generators import seeded
from metalearn.models.external.memory import computed_tensors, shared_memory
from metalearn.types import EpisodeSpec

EXAMPLES = 4  # of a probe: with two, a batch norm gives -1 and 1 whatever it is given
Inputs = Callable[[Tensor], Any] | None  # x -> the arguments of forward; None: x itself
Output = str | int | None  # the entry of what forward returns


def copy_module(module: nn.Module, share: bool = False) -> nn.Module:
    """Return a deep copy; with `share` parameters and buffers are not copied but shared."""
    # such as the weight of torch.nn.utils.weight_norm, and those that nn.LSTM lists
    memo: dict[int, Any] = {id(v): v.detach() for v in computed_tensors(module).values()}
    for part in module.modules():
        for buffer in part._buffers.values():
            if isinstance(buffer, UninitializedBuffer):  # which has no deep copy of its own
                like: Any = {"device": buffer.device, "dtype": buffer.dtype}
                memo[id(buffer)] = UninitializedBuffer(**like)
    if share:
        memo |= {id(value): value for value in (*module.parameters(), *module.buffers())}
    try:
        return copy.deepcopy(module, memo)
    except Exception as error:
        text = f"cannot be copied ({first_line(error)}): pass a function that creates it"
        raise ConfigError((type(module).__name__, text)) from error


def build_module(make: Any, seed: int) -> nn.Module:
    """Return the module that a class or function makes with all generators at `seed`.

    Those of torch, Python and numpy; their states are restored."""
    _refuse_arguments(make)
    with seeded(seed):
        module = make()
    if not isinstance(module, nn.Module):
        text = f"must return a torch.nn.Module (got a {type(module).__name__})"
        raise ConfigError((getattr(make, "__name__", "net"), text))
    return module


def _refuse_arguments(make: Any) -> None:
    if not callable(make):
        description = repr(make) if len(repr(make)) < 60 else f"a {type(make).__name__}"
        text = f"{description} is neither a torch module nor a class or function that creates one"
        raise ConfigError(("net", text))
    try:
        inspect.signature(make).bind()
    except TypeError as error:
        name = getattr(make, "__name__", "net")
        text = f"is called without arguments, but has a {error}: pass a function without arguments"
        raise ConfigError((name, f"{text}, such as lambda: {name}(...)")) from error
    except ValueError:
        return  # a callable whose signature Python does not know


def cast(module: nn.Module, spec: EpisodeSpec) -> nn.Module:
    """Move the module to the device of `spec` and its floating-point tensors to the dtype."""
    to = {
        torch.float64: module.double,
        torch.float32: module.float,
        torch.float16: module.half,
        torch.bfloat16: module.bfloat16,
    }
    module = to[spec.dtype]().to(torch.device(spec.device))
    return _with_own_buffers(module)


def _with_own_buffers(module: nn.Module) -> nn.Module:
    """Give each layer its own copy of a buffer that several layers share; returns the module."""
    buffer_ids = set[int]()
    for part in module.modules():
        for name, buffer in part._buffers.items():
            if buffer is not None and id(buffer) in buffer_ids and not is_lazy(buffer):
                part._buffers[name] = buffer = buffer.clone()
            buffer_ids.add(id(buffer))
    return module


def refuse_unsupported(module: nn.Module) -> None:
    """Raise ConfigError if the module cannot become a function of all of its parameters."""
    problems = []
    for name, part in module.named_modules():
        if isinstance(part, torch.jit.ScriptModule | torch._dynamo.OptimizedModule):
            text = "is compiled: pass the original module"
        elif isinstance(part, nn.DataParallel | nn.parallel.DistributedDataParallel):
            text = "splits a batch across devices: pass the inner module"
        else:
            continue
        problems.append((name or type(part).__name__, text))
        break
    problems.extend(
        (name, "is on the meta device and has no values: load them first")
        for name, value in (*module.named_parameters(), *module.named_buffers())
        if value.is_meta
    )
    for name, value in module.named_parameters():
        if value.requires_grad and not value.is_floating_point():
            text = "is complex: use a real parameter [..., 2] and torch.view_as_complex in forward"
            problems.append((name, text))
        elif value._backward_hooks or getattr(value, "_post_accumulate_grad_hooks", None):
            text = "has a hook on its gradient, which would never be called: change"
            problems.append((name, f"{text} the parameter or the activations in forward instead"))
    for name, part in module.named_modules():
        problems.extend((name or type(part).__name__, text) for text in _unsupported_layer(part))
    problems.extend(_shared_buffers(module))
    problems.extend(shared_memory(module))
    problems.extend(_unregistered(module))
    if problems:
        raise ConfigError(*problems)


def _unsupported_layer(part: nn.Module) -> list[str]:
    """Return the reasons why a layer is rejected."""
    problems = []
    if isinstance(part, nn.Embedding | nn.EmbeddingBag):
        if part.max_norm is not None:
            problems.append("has max_norm, with which forward changes its weight: remove it")
        if part.sparse:
            problems.append(
                "has sparse gradients, which cannot be batched over tasks: use sparse=False"
            )
    if part._backward_hooks or part._backward_pre_hooks:
        text = "has a hook on its backward pass, which would never be called: change"
        problems.append(f"{text} the activations in forward instead, or remove it")
    return problems


def _shared_buffers(module: nn.Module) -> list[tuple[str, str]]:
    """Return the problems of running statistics that two layers share."""
    names: dict[int, str] = {}
    problems = []
    for name, buffer in module.named_buffers(remove_duplicate=False):
        first = names.setdefault(id(buffer), name)
        layers = {
            module.get_submodule(buffer_name.rpartition(".")[0]) for buffer_name in (first, name)
        }
        if len(layers) > 1 and any(isinstance(part, _NormBase) for part in layers):
            problems.append((name, f"is the same buffer as {first}: use separate buffers"))
    return problems


def _unregistered(module: nn.Module) -> list[tuple[str, str]]:
    """Trainable tensors in plain attributes, lists and dicts, which no optimizer of torch finds."""
    parameter_ids = {id(value) for value in module.parameters()}
    problems = []
    for name, part in module.named_modules():
        for attribute, value in vars(part).items():
            if attribute.startswith("_") or not any(
                tensor.requires_grad and tensor.is_leaf and id(tensor) not in parameter_ids
                for tensor in _tensors_in(value)
            ):
                continue
            path = f"{name}.{attribute}" if name else attribute
            text = "contains trainable tensors that are not parameters: use nn.Parameter,"
            text += " nn.ParameterList or nn.ModuleList, or requires_grad_(False) for constants"
            problems.append((path, text))
    return problems


def _tensors_in(value: Any) -> Iterable[Tensor]:
    """Return the tensors of a plain attribute: itself, or those of the entries of a collection."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, nn.Module):
        return value.parameters()
    entries = value.values() if isinstance(value, Mapping) else value
    if not isinstance(value, list | tuple | Mapping):
        return []
    return (tensor for item in entries for tensor in _tensors_in(item))


def initialise_lazy_layers(module: nn.Module, x: Tensor, inputs: Inputs, seed: int) -> None:
    """Run one forward pass, which creates the parameters of LazyLinear and similar layers."""
    if any(is_lazy(value) for value in (*module.parameters(), *module.buffers())):
        modes = {part: part.training for part in module.modules()}
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(seed)
            call_module(module.eval(), x, inputs)
        for part, training in modes.items():
            part.training = training


def call_module(module: nn.Module, x: Tensor, inputs: Inputs) -> Any:
    """Return the output of forward for x [B, *X]."""
    args, kwargs = arguments(x, inputs)
    return module(*args, **kwargs)


def arguments(x: Tensor, inputs: Inputs) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return (positional, keyword) arguments of forward, from a tensor, a tuple or a dict."""
    args = x if inputs is None else inputs(x)
    if isinstance(args, Mapping):
        return (), dict(args)
    return (tuple(args), {}) if isinstance(args, tuple | list) else ((args,), {})


def entry(out: Any, output: Output) -> Tensor:
    """Return the tensor in the output of forward: all of it, or the entry `output`."""
    if output is None:
        value = out
    elif isinstance(out, Tensor):
        text = f"{output!r} is the name of an entry of the output, but forward returns one tensor"
        raise ConfigError(("output", f"{text}: omit it, or pass net.eval()"))
    else:
        value = _select_entry(out, output)
    if not isinstance(value, Tensor):
        kind, names = type(value).__name__, _entries(value)
        text = f"forward returns a {kind} instead of a tensor: set output to one of {names}"
        raise ConfigError(("output", text))
    return value


def _select_entry(out: Any, output: str | int) -> Any:
    try:
        if isinstance(out, Mapping) or isinstance(output, int):
            return out[output]
        return getattr(out, output)
    except (LookupError, AttributeError, TypeError) as error:
        text = f"forward returns a {type(out).__name__} without {output!r}; it has {_entries(out)}"
        raise ConfigError(("output", text)) from error


def _entries(out: Any) -> str:
    if isinstance(out, Mapping):
        return ", ".join(repr(name) for name in out)
    if hasattr(out, "_fields"):  # of a named tuple
        return ", ".join(map(repr, out._fields))
    if isinstance(out, tuple | list):
        return ", ".join(str(n) for n in range(len(out)))
    return ", ".join(map(repr, getattr(out, "__dict__", {}))) or "none"


def example(module: nn.Module, spec: EpisodeSpec, inputs: Inputs) -> Tensor:
    """Return an x [B, *X] that forward accepts; raises ConfigError if there is none.

    Normal numbers, or int64 if the module has a look-up table: ones and zeros, or zeros."""
    shape = (EXAMPLES, *spec.x_shape)
    numbers = rng.normal(rng.fold_in(0, "example"), shape, spec.dtype).to(spec.device)
    problem: Exception | None = None
    indices = torch.arange(numbers.numel(), device=spec.device).reshape(shape)
    for x in (numbers, (indices % 3 != 1).long(), torch.zeros_like(indices)):
        try:
            x_copy = x.clone()
            with torch.random.fork_rng(devices=[]), torch.no_grad():
                call_module(copy_module(module).eval(), x_copy, inputs)
            if not torch.equal(x_copy, x):
                text = "changes x in place, which other code also uses: compute a new tensor"
                raise ConfigError((type(module).__name__, text))
            return x
        except ConfigError:
            raise
        except Exception as error:
            problem = problem or error
    assert problem is not None
    text = f"forward fails on x {list(shape)} of {spec.dtype}: {first_line(problem)}"
    if isinstance(problem, LookupError | AttributeError) and _has_hooks_of_functions(module):
        text += " (in a copy of the module; a hook must be a method or use its arguments alone)"
    raise ConfigError((type(module).__name__, text)) from problem


def _has_hooks_of_functions(module: nn.Module) -> bool:
    """Return whether a hook is a function with variables of another one, such as self."""
    return any(
        getattr(hook, "__closure__", None)
        for part in module.modules()
        for hook in (*part._forward_hooks.values(), *part._forward_pre_hooks.values())
    )


def takes_numbers(module: nn.Module, x: Tensor, spec: EpisodeSpec, inputs: Inputs) -> bool:
    """Return whether forward takes x in the dtype of `spec`; False if x indexes a table."""
    if x.is_floating_point():
        return True
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            call_module(copy_module(module).eval(), x.to(spec.dtype), inputs)
    except Exception:
        return False
    return True


def require_integers(inputs: Inputs) -> Callable[[Tensor], Any]:
    """Return `inputs` for a module with a look-up table: raises ConfigError for floats."""

    def checked_inputs(x: Tensor) -> Any:
        if x.is_floating_point():
            text = "of these tasks are floats, but the module needs integer indices: pass"
            text += " inputs=lambda x: x.long() with it, to ml.models.Module or from_module"
            raise ConfigError(("inputs", text))
        return x if inputs is None else inputs(x)

    return checked_inputs


def first_line(error: Exception) -> str:
    """Return the type of an error and the first line of its text."""
    return (
        f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
        if str(error)
        else repr(error)
    )
