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
from metalearn.executors.trace import FlatFn, Trace, compile_flat, specialize_by_shape
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
    backend = partial(_capture, compiling=compiling, pool=pool, exact=exact)
    return specialize_by_shape(function, backend)


def captured_steps(function: Callable[..., Any], *, compiling: bool) -> Callable[..., Any]:
    """`function` (state, key, number) -> (state, metrics), captured; number is [] int64.

    `.several(count, state, key, number)` gives the state after `count` steps, the numbers counting
    up from `number`, and the metrics of each: one graph of all of them, captured at its first use,
    which gives the bits of so many single replays; these, where it is too large or fails."""
    call = captured(function, compiling=compiling)

    def several(count: int, *args: Any) -> tuple[Any, list[Any]]:
        traced, flat, tensors = call.find(*args)  # type: ignore[attr-defined]
        state, *metrics = flat.several(count, *tensors)
        results = [traced.unflatten([*state, *values]) for values in metrics]
        return results[-1][0], [each for _, each in results]

    call.several = several  # type: ignore[attr-defined]
    return call


def _capture(
    traced: Trace,
    tensors: list[Tensor],
    compiling: bool,
    pool: Pool | None = None,
    exact: bool = False,
) -> FlatFn:
    nodes, pool = len(traced.graph.graph.nodes), [] if pool is None else pool
    backend = compile_flat if compiling else partial(interpret_shortened, exact=exact)
    flat = backend(traced, tensors)
    single = _captured_flat(flat, tensors, traced.constants, pool)
    graphs: dict[int, FlatFn] = {}

    def several(count: int, *step_inputs: Tensor) -> list[Sequence[Tensor]]:
        if count not in graphs:
            graphs[count] = _repeated(single, count)
            if count * nodes <= LARGEST:
                try:
                    repeated = _repeated(flat, count)
                    graphs[count] = _captured_flat(
                        repeated, list(step_inputs), traced.constants, pool
                    )
                except (RuntimeError, ConfigError) as error:
                    log.info(f"{count} steps are replays of a single step: {first_line(error)}")
        results, size = graphs[count](*step_inputs), len(step_inputs) - 2
        per_step = (len(results) - size) // count
        starts = range(size, len(results), per_step)
        return [results[:size], *(results[start : start + per_step] for start in starts)]

    single.several = several  # type: ignore[attr-defined]
    return single


def _repeated(flat: FlatFn, count: int) -> FlatFn:
    """`count` steps in a row: the last state, then the metrics of each step."""

    def run(*inputs: Tensor) -> list[Tensor]:
        *state, key, step_index = inputs
        metrics = list[Tensor]()
        for offset in range(count):
            outputs = flat(*state, key, step_index + offset if offset else step_index)
            state, step_metrics = list(outputs[: len(state)]), outputs[len(state) :]
            metrics += step_metrics
        return [*state, *metrics]

    return run


def _captured_flat(
    flat: FlatFn, tensors: list[Tensor], constants: list[Tensor], pool: Pool
) -> FlatFn:
    device = _device_of(tensors)
    inputs = [tensor.clone() for tensor in tensors]
    input_places = {_place(tensor) for tensor in (*inputs, *constants)}
    graph, side = torch.cuda.CUDAGraph(), pool[0][1] if pool else torch.cuda.Stream(device)
    # torch.cuda.graph leaves its stream current where a capture fails: the outer block restores it.
    with torch.cuda.device(device), torch.cuda.stream(torch.cuda.current_stream(device)):
        side.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(side):
            for _ in range(WARM_UP - 2):
                flat(*inputs)
            expected, repeated = _copies(flat(*inputs)), _copies(flat(*inputs))
        torch.cuda.current_stream(device).wait_stream(side)
        shared = pool[0][0].pool() if pool else None
        with torch.cuda.graph(graph, pool=shared, stream=side):
            outputs = [_owned(output, input_places) for output in flat(*inputs)]
        _check_replay(graph, outputs, expected, repeated)
        pool[:] = pool or [(graph, side)]

    def replay(*new_inputs: Tensor) -> list[Tensor]:
        with torch.cuda.device(device):
            _copy(inputs, new_inputs)
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
        text = f"a CUDA graph needs tensors of one CUDA device (got {names}): use vmap"
        raise ConfigError(("run.executor", text))
    return devices.pop()


def _check_replay(
    graph: torch.cuda.CUDAGraph,
    outputs: list[Tensor],
    expected: list[Tensor],
    repeated: list[Tensor],
) -> None:
    """ConfigError unless a replay computes what two eager calls have computed.

    The graph's results are overwritten first: a capture that recorded nothing leaves right ones."""
    for output, right in zip(outputs, expected, strict=True):
        output.copy_(right + float("nan") if right.is_floating_point() else ~right)
    graph.replay()
    for index, (replayed, one, other) in enumerate(zip(outputs, expected, repeated, strict=True)):
        if not _agree(replayed, one, other):
            text = (
                f"a replay of the captured graph gives other results than the step itself (result "
                f"{index} of {len(outputs)}): use vmap or compiled, and please report it"
            )
            raise ConfigError(("run.executor", text))


def _agree(replayed: Tensor, eager: Tensor, repeated: Tensor) -> bool:
    """Return whether a replayed result equals an eager one; `repeated`: of a second eager call."""
    if not eager.is_floating_point() or not eager.numel():
        return torch.equal(replayed, eager) or not torch.equal(eager, repeated)
    finite = eager.isfinite() & replayed.isfinite()
    gap, noise, size = (
        torch.where(finite, value.abs(), torch.zeros_like(value)).nan_to_num().max()
        for value in (eager - replayed, eager - repeated, eager)
    )
    same = torch.equal(eager.isfinite(), replayed.isfinite())
    return same and bool(gap <= FAR * size + 4 * noise)


def _copies(results: Sequence[Tensor]) -> list[Tensor]:
    return [result.clone() for result in results]


def _owned(result: Tensor, input_places: set[int]) -> Tensor:
    """A result in memory of its own: not in that of an input or a constant, no number twice."""
    repeats = any(size > 1 and not step for size, step in zip(result.shape, result.stride()))
    return result.clone() if repeats or _place(result) in input_places else result


def _place(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _copy(targets: Sequence[Tensor], sources: Sequence[Tensor]) -> None:
    """Copy many tensors in few launches: one list for every type."""
    for dtype in {tensor.dtype for tensor in targets}:
        indices = [index for index, tensor in enumerate(targets) if tensor.dtype == dtype]
        torch._foreach_copy_(
            [targets[index] for index in indices], [sources[index] for index in indices]
        )


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
            log.info(f"adaptation to new tasks is not captured: {first_line(error)}")
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
    functions: dict[Any, _Function] = {}
    pool: Pool = []

    def caller(function: Callable[..., Any], owner: Any, key: Any, *args: Any) -> Any:
        name = id(owner), key  # _Function keeps the owner
        if name not in functions:
            functions[name] = _Function(function, owner, pool)
        return functions[name](*args)

    return caller
