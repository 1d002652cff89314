"""CUDA graphs: a pure function recorded once as kernel launches, replayed without the host.

A training step, several of them, and the two functions with which a method learns new tasks:
validation repeats the same thousands of kernel launches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree

from metalearn.errors import ConfigError, first_line
from metalearn.executors.simplify import interpret_shortened
from metalearn.executors.trace import Flat, Trace, compile_flat, specialize_by_shape
from metalearn.logger import log
from metalearn.scopes.over_tasks import called_by

# calls before the capture, as torch's notes on CUDA graphs ask for: libraries choose and allocate
# in them
WARM_UP = 3
LARGEST = 100_000  # operations that a graph of several steps repeats
# largest difference of a replay from the eager call, in units of a result's largest number; beside
# it stands what two eager calls differ by, as sums by atomic additions do
FAR = 1e-3
# the first of the graphs that share their memory, and the stream on which all are captured: memory
# that was free in one capture is found by another on the same stream only
Pool = list[tuple[torch.cuda.CUDAGraph, torch.cuda.Stream]]


def captured(
    function: Callable[..., Any],
    *,
    compiling: bool,
    pool: Pool | None = None,
    exact: bool = False,
) -> Callable[..., Any]:
    """`function` of trees of CUDA tensors, captured anew for every combination of shapes.

    First compiled, if asked for. Traced first, so that its constants lie on the device before the
    capture, which allows no copy from the host. Arguments are copied into the graph's own memory,
    results out of it: what was returned is never written to again. Graphs of one `pool` share what
    they compute in, so no two of them may run at once. ConfigError where a replay gives other
    numbers than an eager call; `exact` asks for its bits."""
    finish = partial(_capture, compiling=compiling, pool=pool, exact=exact)
    return specialize_by_shape(function, finish)


def captured_steps(function: Callable[..., Any], *, compiling: bool) -> Callable[..., Any]:
    """`function` (state, key, number) -> (state, metrics), captured; number is [] int64.

    `.several(count, state, key, number)` gives the state after `count` steps, the numbers counting
    up from `number`, and the metrics of each: one graph of all of them, captured at its first use,
    which gives the bits of so many single replays; these, where it is too large or fails."""
    call = captured(function, compiling=compiling)

    def several(count: int, *args: Any) -> tuple[Any, list[Any]]:
        traced, flat, tensors = call.find(*args)  # type: ignore[attr-defined]
        state, *metrics = flat.several(count, *tensors)
        found = [traced.whole([*state, *values]) for values in metrics]
        return found[-1][0], [each for _, each in found]

    call.several = several  # type: ignore[attr-defined]
    return call


def _capture(
    traced: Trace,
    tensors: list[Tensor],
    compiling: bool,
    pool: Pool | None = None,
    exact: bool = False,
) -> Flat:
    nodes, pool = len(traced.graph.graph.nodes), [] if pool is None else pool
    finish = compile_flat if compiling else partial(interpret_shortened, exact=exact)
    flat = finish(traced, tensors)
    single = _captured_flat(flat, tensors, traced.constants, pool)
    graphs: dict[int, Flat] = {}

    def several(count: int, *given: Tensor) -> list[Sequence[Tensor]]:
        if count not in graphs:
            graphs[count] = _repeated(single, count)
            if count * nodes <= LARGEST:
                try:
                    repeated = _repeated(flat, count)
                    graphs[count] = _captured_flat(repeated, list(given), traced.constants, pool)
                except (RuntimeError, ConfigError) as error:
                    log.info(f"{count} steps are so many replays of one: {first_line(error)}")
        results, size = graphs[count](*given), len(given) - 2
        per_step = (len(results) - size) // count
        starts = range(size, len(results), per_step)
        return [results[:size], *(results[start : start + per_step] for start in starts)]

    single.several = several  # type: ignore[attr-defined]
    return single


def _repeated(flat: Flat, count: int) -> Flat:
    """`count` steps in a row: the last state, then the metrics of each step."""

    def run(*given: Tensor) -> list[Tensor]:
        *state, key, number = given
        metrics = list[Tensor]()
        for place in range(count):
            found = flat(*state, key, number + place if place else number)
            state, rest = list(found[: len(state)]), found[len(state) :]
            metrics += rest
        return [*state, *metrics]

    return run


def _captured_flat(flat: Flat, tensors: list[Tensor], constants: list[Tensor], pool: Pool) -> Flat:
    device = _device_of(tensors)
    inputs = [tensor.clone() for tensor in tensors]
    held = {_place(tensor) for tensor in (*inputs, *constants)}
    graph, side = torch.cuda.CUDAGraph(), pool[0][1] if pool else torch.cuda.Stream(device)
    # torch.cuda.graph leaves its stream current where a capture fails: the outer block restores it.
    with torch.cuda.device(device), torch.cuda.stream(torch.cuda.current_stream(device)):
        side.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(side):
            for _ in range(WARM_UP - 2):
                flat(*inputs)
            expected, again = _copies(flat(*inputs)), _copies(flat(*inputs))
        torch.cuda.current_stream(device).wait_stream(side)
        shared = pool[0][0].pool() if pool else None
        with torch.cuda.graph(graph, pool=shared, stream=side):
            outputs = [_owned(output, held) for output in flat(*inputs)]
        _check_replay(graph, outputs, expected, again)
        pool[:] = pool or [(graph, side)]

    def replay(*given: Tensor) -> list[Tensor]:
        with torch.cuda.device(device):
            _copy(inputs, given)
            graph.replay()
            results = [torch.empty_like(output) for output in outputs]
            _copy(results, outputs)
        return results

    return replay


def _device_of(tensors: list[Tensor]) -> torch.device:
    """The device of all inputs; ConfigError where one lies elsewhere, as a replay repeats what the
    device did and not what the host did.
    """
    devices = {tensor.device for tensor in tensors}
    if len(devices) != 1 or next(iter(devices)).type != "cuda":
        names = ", ".join(sorted(map(str, devices))) or "none"
        text = f"a CUDA graph takes tensors of one CUDA device (got: {names}): use vmap"
        raise ConfigError(("run.executor", text))
    return devices.pop()


def _check_replay(
    graph: torch.cuda.CUDAGraph,
    outputs: list[Tensor],
    expected: list[Tensor],
    again: list[Tensor],
) -> None:
    """ConfigError unless a replay computes what two eager calls have computed.

    The graph's results are overwritten first: a capture that recorded nothing leaves right ones."""
    for output, right in zip(outputs, expected, strict=True):
        output.copy_(right + float("nan") if right.is_floating_point() else ~right)
    graph.replay()
    for place, (found, one, other) in enumerate(zip(outputs, expected, again, strict=True)):
        if not _agree(found, one, other):
            text = (
                f"a replay of the captured graph gives other numbers than the step itself (result "
                f"{place} of {len(outputs)}): use vmap or compiled, and please report it"
            )
            raise ConfigError(("run.executor", text))


def _agree(found: Tensor, one: Tensor, other: Tensor) -> bool:
    """Whether a replayed result equals an eager one, `other` being that of a second eager call."""
    if not one.is_floating_point() or not one.numel():
        return torch.equal(found, one) or not torch.equal(one, other)
    finite = one.isfinite() & found.isfinite()
    gap, noise, size = (
        torch.where(finite, value.abs(), torch.zeros_like(value)).nan_to_num().max()
        for value in (one - found, one - other, one)
    )
    same = torch.equal(one.isfinite(), found.isfinite())
    return same and bool(gap <= FAR * size + 4 * noise)


def _copies(results: Sequence[Tensor]) -> list[Tensor]:
    return [result.clone() for result in results]


def _owned(result: Tensor, held: set[int]) -> Tensor:
    """A result in memory of its own: not in that of an input or a constant, no number twice."""
    repeats = any(size > 1 and not step for size, step in zip(result.shape, result.stride()))
    return result.clone() if repeats or _place(result) in held else result


def _place(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _copy(into: Sequence[Tensor], given: Sequence[Tensor]) -> None:
    """Copy many tensors in few launches: one list for every type."""
    for kind in {tensor.dtype for tensor in into}:
        places = [place for place, tensor in enumerate(into) if tensor.dtype == kind]
        torch._foreach_copy_([into[place] for place in places], [given[place] for place in places])


class _Function:
    """A function of new tasks, captured for each combination of shapes.

    From the first call on, so that no number depends on how many came before. Where that fails it
    goes on as it is."""

    def __init__(self, function: Callable[..., Any], owner: Any, pool: Pool) -> None:
        self.function, self.owner = function, owner
        self.graph = captured(function, compiling=False, pool=pool, exact=True)
        self.failed: set[Any] = set()

    def __call__(self, *args: Any) -> Any:
        leaves, structure = _pytree.tree_flatten(args)
        tensors = [leaf for leaf in leaves if leaf is not None]
        if not all(type(leaf) is Tensor and leaf.is_cuda for leaf in tensors):
            return self.function(*args)  # stand-ins, of which FLOPs are counted
        form = structure, *((leaf.shape, leaf.dtype) for leaf in tensors)
        if form in self.failed:
            return self.function(*args)
        try:
            return self.graph(*args)
        except (RuntimeError, TypeError, ValueError, ConfigError) as error:
            self.failed.add(form)
            log.info(f"learning new tasks is not captured: {first_line(error)}")
            return self.function(*args)


@contextmanager
def captured_learning(device: str) -> Iterator[None]:
    """A context in which methods learn new tasks by captured graphs, on CUDA.

    The graphs share one memory, which is free again at its end."""
    if not device.startswith("cuda"):
        yield
        return
    with called_by(learning_by_graphs()):
        yield


def learning_by_graphs() -> Callable[..., Any]:
    """What `captured_learning` calls functions of new tasks by; it keeps their graphs."""
    made: dict[Any, _Function] = {}
    pool: Pool = []

    def caller(function: Callable[..., Any], owner: Any, key: Any, *args: Any) -> Any:
        name = id(owner), key  # _Function keeps the owner
        if name not in made:
            made[name] = _Function(function, owner, pool)
        return made[name](*args)

    return caller
