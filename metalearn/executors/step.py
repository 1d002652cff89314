"""One meta-step as `step_input` and `step`, computed by one process or by several.

Rank r of R processes has tasks of its own, and one flat vector is summed over them:

    rank r:   v_r = [sum over its tasks of gradients, of metrics]
    all:      v = v_1 + ... + v_R,   theta <- update(theta, v / T)

Tasks are numbered within a step, so that they are the same tasks whatever R is. Every process makes
the update, because sending the result would cost more than computing it again."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any, NamedTuple

import torch
from torch import Tensor

from metalearn.executors.allocator import keep_freed_memory
from metalearn.executors.chunks import Transform, identity, sum_in_chunks, workers_on
from metalearn.executors.executor import (
    CAPTURED,
    Step,
    chunk_size,
    get_multi_step_transform,
    get_transform,
    is_chunked,
    make_step,
)
from metalearn.executors.nonfinite import with_nan_policy
from metalearn.executors.precision import with_tf32
from metalearn.executors.trace import has_small_constants, interpret_unchanged, traceable
from metalearn.kernels import draw
from metalearn.labels import check_number
from metalearn.rng import fold_in
from metalearn.tree import flatten, scale, unflatten
from metalearn.types import Key, MetaState, Method, Metrics, TaskSource

# (key, count, first): the tasks first .. first + count - 1 of a step, or its batch of examples
BatchSampler = Callable[[Key, int, int], Any]
RankSum = Callable[[Tensor], Tensor]  # sums a vector over all processes
LocalStep = Callable[[MetaState, Any], Any]  # what one process computes from its own tasks
StepSampler = Callable[[Key, Tensor], Any]  # (key of the run, step index []) -> the step's tasks
MultiStep = Callable[[MetaState, int, int], tuple[MetaState, list[Metrics]]]


class Settings(NamedTuple):
    """How a process computes its part of a step: the arguments of `make_step`."""

    method: Method
    executor: str
    chunk: int | None
    workers: int | None


class TrainStep(NamedTuple):
    """A training step under an executor: state, metrics = step(state, step_input(n))."""

    # What step n learns from: its tasks, or n itself as a 0-d tensor if sampling is traced as a
    # part of the step.
    step_input: Callable[[int], Any]
    step: Step
    # (state, n, count): the state after steps n .. n + count - 1, and the metrics of each; None if
    # no captured graph holds several steps
    multi_step: MultiStep | None = None


def make_batch_sampler(source: TaskSource, method: Method, examples_per_step: int) -> BatchSampler:
    """The function that samples the input of a step: tasks, or a batch of examples.

    (key, count, first) -> the tasks first .. first + count - 1"""

    def examples(key: Key, count: int, first: int) -> Any:
        batch = source.examples(key, examples_per_step)
        check_number(batch, examples_per_step, f"examples(key, {examples_per_step})")
        return batch

    def sample(key: Key, count: int, first: int) -> Any:
        episodes = source.sample(key, count, first)
        check_number(episodes.support, count, f"sample(key, {count}, {first})")
        return episodes

    return examples if method.traits.consumes == "examples" else sample


def build_train_step(
    method: Method,
    sample: BatchSampler,
    key: Key,
    *,
    tasks: int,
    device: str,
    executor: str,
    chunk: int | None = None,
    workers: int | None = None,
    task_slice: tuple[int, int] | None = None,
    sum_over_ranks: RankSum = identity,
) -> TrainStep:
    """The training step under an executor; step n learns from `sample(fold_in(key, n), ...)`.

    `task_slice` is this process's (first, count) of the `tasks` of a step, and `sum_over_ranks`
    sums a vector over the processes; the state's lanes are those of this process's tasks. Without
    `sum_over_ranks` one process computes the whole step, and nothing is packed. Methods without
    `task_grad` compute the whole step in every process. `workers` threads compute the chunks of a
    step on a CPU."""
    if not device.startswith("cuda"):
        keep_freed_memory()
    sharded = sum_over_ranks is not identity and method.task_grad is not None
    first, count = task_slice if task_slice is not None and sharded else (0, tasks)
    chunk = None if executor == "compiled" and chunk is not None and count <= chunk else chunk
    chunked = method.task_grad is not None and is_chunked(executor, chunk)
    settings = Settings(method, executor, chunk, workers_on(device, workers))
    local_step: LocalStep | None = make_step(*settings) if chunked else method.step
    if sharded:
        local_step, combine = _sharded(settings, tasks, count, sum_over_ranks)
    assert local_step is not None
    get = get_transform if sharded else get_multi_step_transform
    transform: Transform = identity if chunked else get(executor)
    sample_step, key = _step_sampler(sample, count, first, device), key.to(device)
    sampling_is_traced = _is_sampling_traced(executor, chunked, sample_step, key, device)
    build = _sampling_traced if sampling_is_traced else _sampling_separate
    step_fns = build(transform, local_step, sample_step, key, device)
    return _combined(step_fns, combine) if sharded else step_fns


def with_run_options(train_step: TrainStep, precision: str, on_nan: str) -> TrainStep:
    """`train_step` with TF32 products and skipped steps if `run.precision`, `run.on_nan` say so."""
    step = with_nan_policy(with_tf32(train_step.step, precision), on_nan)
    multi_step = None if on_nan == "skip" else train_step.multi_step
    multi_step = None if multi_step is None else with_tf32(multi_step, precision)
    return TrainStep(train_step.step_input, step, multi_step)


def _is_sampling_traced(
    executor: str, chunked: bool, sample: StepSampler, key: Key, device: str
) -> bool:
    """Whether sampling is traced as a part of the step.

    Always in CUDA graphs; under `traced`, and `compiled` without chunks, if it reads no large
    data."""
    if executor in CAPTURED:
        return True
    whole = executor in ("traced", "compiled") and not chunked
    return whole and has_small_constants(sample, key, _index(0, device))


def _combined(train_step: TrainStep, combine: Step) -> TrainStep:
    return train_step._replace(
        step=lambda state, data: combine(state, train_step.step(state, data)), multi_step=None
    )


def _step_sampler(sample: BatchSampler, count: int, first: int, device: str) -> StepSampler:
    """On CUDA the key of a step is computed by one kernel."""
    fold = draw.fold_in if device.startswith("cuda") else fold_in
    return lambda key, step_index: sample(fold(key, step_index), count, first)


def _sampling_traced(
    transform: Transform, local_step: LocalStep, sample: StepSampler, key: Key, device: str
) -> TrainStep:
    """Sampling is traced as a part of the step."""
    run = transform(lambda state, key, index: local_step(state, sample(key, index)))
    run_several = getattr(run, "several", None)

    def multi_step(state: MetaState, start: int, count: int) -> tuple[MetaState, list[Metrics]]:
        assert run_several is not None
        after: tuple[MetaState, list[Metrics]] = run_several(
            count, state, key, _index(start, device)
        )
        return after

    return TrainStep(
        lambda step_index: _index(step_index, device),
        lambda state, index: run(state, key, index),
        None if run_several is None else multi_step,
    )


def _sampling_separate(
    transform: Transform, local_step: LocalStep, sample: StepSampler, key: Key, device: str
) -> TrainStep:
    index, step = _index(0, device), transform(local_step)
    traced = traceable(sample, key, index) if device.startswith("cuda") else None
    if traced is None:
        return TrainStep(lambda step_index: sample(key, _index(step_index, device)), step)
    # Its constants stay on the device: copying them makes the host wait.
    flat = interpret_unchanged(traced, [key, index])
    return TrainStep(
        lambda step_index: traced.unflatten(flat(key, _index(step_index, device))), step
    )


def _index(step_index: int, device: str) -> Tensor:
    """A step index as a 0-d tensor: on CUDA written by a kernel, which the host does not wait
    for.
    """
    return torch.full((), step_index, dtype=torch.int64, device=device)


def _sharded(
    settings: Settings, tasks: int, count: int, sum_over_ranks: RankSum
) -> tuple[LocalStep, Step]:
    """(what a process computes from its `count` tasks, the step from the sum over processes)."""
    method, executor, chunk, workers = settings
    assert method.update is not None
    update, packing, transform = method.update, Packing(), get_transform(executor)
    sums = (
        sum_in_chunks(method, chunk_size(executor, chunk), transform, workers)
        if is_chunked(executor, chunk)
        else sum_in_chunks(method, count, identity)
    )

    def local_step(state: MetaState, data: Any) -> tuple[Tensor, Any]:
        grads_and_metrics, lanes = sums(state, data)
        return packing.pack(grads_and_metrics), lanes

    def apply(state: MetaState, vector: Tensor) -> tuple[MetaState, Metrics]:
        grads, metrics = scale(packing.unpack(vector), 1 / tasks)
        return update(state, grads), metrics

    apply = transform(apply)

    def combine(state: MetaState, local: tuple[Tensor, Any]) -> tuple[MetaState, Metrics]:
        vector, lanes = local
        state, metrics = apply(state._replace(lanes=None), sum_over_ranks(vector))
        return state._replace(lanes=lanes), metrics

    return local_step, combine


def rank_slice(count: int, rank: int, size: int) -> tuple[int, int]:
    """(first, size) of a rank's slice of `count` items; the first ranks take the remainder."""
    per_rank, remainder = divmod(count, size)
    return rank * per_rank + min(rank, remainder), per_rank + (rank < remainder)


class Packing:
    """A tree of tensors as one vector, and back; `pack` stores the structure for `unpack`."""

    def pack(self, tree: Any) -> Tensor:
        leaves, self._structure = flatten(tree)
        self._forms = [(leaf.shape, leaf.dtype) for leaf in leaves]
        dtype = reduce(torch.promote_types, (leaf.dtype for leaf in leaves))
        return torch.cat([leaf.reshape(-1).to(dtype) for leaf in leaves])

    def unpack(self, vector: Tensor) -> Any:
        parts = vector.split([shape.numel() for shape, _ in self._forms])
        leaves = [part.view(shape).to(dtype) for part, (shape, dtype) in zip(parts, self._forms)]
        return unflatten(leaves, self._structure)
