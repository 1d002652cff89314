"""The one image engine: N-way K-shot Q-query episodes by index gather from uint8 images held on the
device.

A batch of tasks is drawn at once. Every choice is a function of the task's own key
(metalearn/rng.py), so episode t of a key is the same in a batch, alone and in chunks. Support and
query are disjoint by construction: one draw of K + Q different drawings a class is cut in two.
Labels are the random order in which the classes were drawn, and support and query are each permuted
inside every episode, so that neither label nor place tells anything."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from metalearn import rng
from metalearn.component import TaskComponent, option
from metalearn.errors import ConfigError
from metalearn.tasks import native
from metalearn.types import Batch, Episode, EpisodeSpec, Key

SPLITS = ("train", "valid", "test")
_BLOCK_BYTES = (
    1 << 18
)  # uint8 gathered at a time on CPU: block and its floats stay in the cache between the two passes


class ImageTask(TaskComponent):
    """The fields that every image data set has."""

    ways: int = option(5, "N, classes in a task", ge=2)
    shots: int = option(1, "K, labelled images of each class in a task", ge=1)
    queries: int = option(
        15, "Q, test images of each class in a task; 0 gives an empty query set", ge=0
    )


def four_turns(images: Tensor) -> Tensor:
    """Copies turned counter-clockwise by 0, 90, 180, 270 degrees, in that order: [A, *, H, H] -> [4
    A, *, H, H].
    """
    if images.shape[-1] != images.shape[-2]:
        raise ConfigError(
            (
                "rotations",
                f"quarter turns need square images, not {images.shape[-2]}x{images.shape[-1]}",
            )
        )
    return torch.cat([torch.rot90(images, turn, (-2, -1)) for turn in range(4)])


def split_problem(split: str) -> list[tuple[str, str]]:
    """Why `split` is not the name of one."""
    return (
        [] if split in SPLITS else [("split", f"{split!r} is no split; valid: {', '.join(SPLITS)}")]
    )


def episode_problems(
    ways: int,
    shots: int,
    queries: int,
    classes: int,
    examples: int,
    split: str = "train",
    smallest: str = "",
) -> list[tuple[str, str]]:
    """Why episodes of this shape cannot be drawn from `classes` classes, the smallest of which has
    `examples` images.

    (place, sentence) pairs for a ConfigError, all at once; `smallest` names the class with the
    fewest images."""
    problems = []
    if ways > classes:
        problems.append(
            ("ways", f"{ways} ways, but the {split} split has {classes} classes: at most {classes}")
        )
    if shots + queries > examples:
        where = (
            f"class {smallest!r} of the {split} split has"
            if smallest
            else f"a class of the {split} split has"
        )
        text = (
            f"{shots} shots + {queries} queries = {shots + queries} different images a "
            f"class, but {where} {examples}"
        )
        problems.append(("shots", f"{text}; shots + queries may be at most {examples}"))
    return problems


class ImageSource:
    """Episodes from a pool of images: the TaskSource of every image data set.

    pool: uint8 [classes, examples, channels, H, W], ink bright; or, with `counts` [classes] int64
    for classes of unequal size, [images, channels, H, W], class after class. `spec` is a
    classification spec with ways = outputs and the number of classes of the split.
    `rotate_per_task` turns each class of each task by its own random multiple of 90 degrees
    (Santoro et al. 2016, section 4.1; cbfinn/maml), from copies of the pool turned once.
    `data_sha256` is the hash of the prepared data, kept for the record. Raises ConfigError."""

    def __init__(
        self,
        pool: Tensor,
        spec: EpisodeSpec,
        rotate_per_task: bool = False,
        data_sha256: str = "",
        counts: Sequence[int] | None = None,
    ) -> None:
        self.spec = spec
        self.rotate_per_task = rotate_per_task
        self.data_sha256 = data_sha256
        self.facts: dict[
            str, str | int
        ] = {}  # what the component records about how the pool came about
        sizes = (
            [int(pool.shape[1])] * int(pool.shape[0])
            if counts is None
            else [int(count) for count in counts]
        )
        images = pool.flatten(0, 1) if counts is None else pool
        _check_pool(images, sizes, spec)
        self._images = int(images.shape[0])
        turned = four_turns(images) if rotate_per_task else images
        self._rows = turned.reshape(turned.shape[0], -1).contiguous().to(spec.device)
        self._counts = torch.tensor(sizes, dtype=torch.int64, device=spec.device)
        self._starts = self._counts.cumsum(0) - self._counts
        self._same = sizes[0] if len(set(sizes)) == 1 else None
        self._scale = torch.tensor(1.0 / 255.0, dtype=spec.dtype, device=spec.device)

    def sample(self, key: Key, num_tasks: int, start: int = 0) -> Episode:
        """Episodes start .. start + T - 1 of `key`: support x [T, N*K, *X], query x [T, N*Q, *X], y
        [T, .] int64.

        info: key [T] int64 (each task's own), step [T] zeros, class_ids [T, N] int64: the split's
        class behind label n."""
        draw = native.kernel() if _plain(key, self._rows) else None
        if draw is None:
            return self._sample(key, num_tasks, start)
        turned = self._images if self.rotate_per_task else 0
        pool = (self._rows, self._counts, self._starts, self._same, turned)
        return native.episodes(draw, self.spec, *pool, key, num_tasks, start)

    def _sample(self, key: Key, num_tasks: int, start: int) -> Episode:
        """The same by torch: on CUDA, in a trace, without a compiler."""
        spec = self.spec
        key = key.to(self._rows.device)
        keys = rng.fold_in(key, torch.arange(start, start + num_tasks, device=key.device))
        purposes = torch.arange(
            5, device=key.device
        )  # five keys a task in one call: small calls are half the time
        of_classes, of_examples, of_turns, of_support, of_query = rng.fold_in(
            keys.unsqueeze(-1), purposes
        ).unbind(-1)
        class_ids = rng.choice(of_classes, spec.num_classes, spec.ways)
        rows = self._choose_rows(of_examples, class_ids)
        if self.rotate_per_task:
            rows = rows + rng.integers(of_turns, (spec.ways, 1), 4) * self._images
        support = self._part(of_support, rows[..., : spec.shots])
        query = self._part(of_query, rows[..., spec.shots :])
        step = torch.zeros(num_tasks, dtype=spec.dtype, device=key.device)
        return Episode(support, query, {"key": keys, "step": step, "class_ids": class_ids})

    def examples(self, key: Key, size: int) -> Batch:
        """Images labelled over all classes of the split, each class as likely: x [B, *X], y [B]
        int64, B = size.

        With `rotate_per_task` each image is turned by its own random multiple of 90 degrees; its
        label stays."""
        key = key.to(self._rows.device)
        labels = rng.integers(rng.fold_in(key, "class"), (size,), self.spec.num_classes)
        fraction = rng.integers(rng.fold_in(key, "example"), (size,), 1 << 31)
        rows = self._starts[labels] + ((fraction * self._counts[labels]) >> 31)
        if self.rotate_per_task:
            rows = rows + rng.integers(rng.fold_in(key, "turn"), (size,), 4) * self._images
        return Batch(self._gather(rows), labels)

    def _choose_rows(self, keys: Tensor, class_ids: Tensor) -> Tensor:
        """K + Q different rows of each class, in random order: [T, N, K + Q]."""
        each = self.spec.shots + self.spec.queries
        places = torch.arange(self.spec.ways, device=keys.device)
        draws = rng.fold_in(keys.unsqueeze(-1), places)
        if self._same is not None:
            chosen = rng.choice(draws, self._same, each)
        else:
            chosen = _choice_of(draws, self._counts[class_ids], each)
        return chosen + self._starts[class_ids].unsqueeze(-1)

    def _part(self, keys: Tensor, rows: Tensor) -> Batch:
        """The images at rows [T, N, R] as one permuted set a task, labelled by the
        place along N.
        """
        tasks, ways, each = rows.shape
        order = rng.permutation(keys, ways * each)
        labels = order // each if each else order
        x = self._gather(rows.reshape(tasks, ways * each).gather(-1, order).flatten())
        return Batch(x.reshape(tasks, ways * each, *self.spec.x_shape), labels)

    def _gather(self, rows: Tensor) -> Tensor:
        """Rows [B] as floats in 0..1: [B, *X]; one pass to gather bytes, one multiplication that
        also converts.
        """
        count, width = int(rows.shape[0]), int(self._rows.shape[1])
        out = torch.empty((count, width), dtype=self.spec.dtype, device=rows.device)
        block = max(1, _BLOCK_BYTES // width) if rows.device.type == "cpu" else max(1, count)
        buffer = torch.empty((min(block, count), width), dtype=torch.uint8, device=rows.device)
        for first in range(0, count, block):
            last = min(first + block, count)
            taken = torch.index_select(self._rows, 0, rows[first:last], out=buffer[: last - first])
            torch.mul(taken, self._scale, out=out[first:last])
        return out.reshape(count, *self.spec.x_shape)


def _plain(key: Key, rows: Tensor) -> bool:
    """Whether key and pool are ordinary tensors of a CPU outside any trace: then their memory may
    be read.
    """
    here = type(key) is type(rows) is Tensor and key.is_cpu and rows.is_cpu
    return here and not torch.compiler.is_compiling() and not torch._C._len_torch_dispatch_stack()


def image_source(
    pool: Tensor,
    task: ImageTask,
    *,
    split: str = "train",
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    rotate_per_task: bool = False,
    data_sha256: str = "",
    counts: Sequence[int] | None = None,
) -> ImageSource:
    """The source of a component's episodes over the pool of one split; arguments as in
    ImageSource.
    """
    classes = int(pool.shape[0]) if counts is None else len(counts)
    spec = EpisodeSpec(
        kind="classification",
        ways=task.ways,
        shots=task.shots,
        queries=task.queries,
        x_shape=tuple(int(size) for size in pool.shape[-3:]),
        outputs=task.ways,
        num_classes=classes,
        split=split,
        dtype=dtype,
        device=device,
    )
    return ImageSource(pool, spec, rotate_per_task, data_sha256, counts)


def _check_pool(images: Tensor, sizes: list[int], spec: EpisodeSpec) -> None:
    """Refuse a pool that the spec does not fit; the first three are a programmer's mistakes."""
    if images.dtype != torch.uint8 or tuple(images.shape[1:]) != tuple(spec.x_shape):
        raise ValueError(
            f"pool of {images.dtype} {tuple(images.shape[1:])}, the spec says uint8 "
            f"{tuple(spec.x_shape)}"
        )
    if len(sizes) != spec.num_classes or sum(sizes) != images.shape[0]:
        raise ValueError(
            f"{len(sizes)} classes with {sum(sizes)} images, the spec says {spec.num_classes}"
        )
    if not spec.classification or spec.outputs != spec.ways:
        raise ValueError("an image source needs a classification spec with outputs = ways")
    fewest = min(sizes, default=0)
    problems = episode_problems(spec.ways, spec.shots, spec.queries, len(sizes), fewest, spec.split)
    if problems:
        raise ConfigError(*problems)


def _choice_of(keys: Tensor, sizes: Tensor, count: int) -> Tensor:
    """rng.choice where each key [*B] has its own number to choose from, sizes [*B] >= count: [*B,
    count].

    Floyd's sampling (Bentley & Floyd 1987) throughout: its rounds take a tensor for the size as
    well as a number."""
    draws = rng.integers(keys, (count,), 1 << 31)
    chosen: list[Tensor] = []
    for place in range(count):
        top = sizes - count + place
        drawn = (draws[..., place] * (top + 1)) >> 31
        seen = torch.zeros_like(drawn, dtype=torch.bool)
        for earlier in chosen:
            seen = seen | (drawn == earlier)
        chosen.append(torch.where(seen, top, drawn))
    if not chosen:
        return torch.empty((*keys.shape, 0), dtype=torch.int64, device=keys.device)
    return torch.stack(chosen, -1).gather(-1, rng.permutation(rng.fold_in(keys, "order"), count))
