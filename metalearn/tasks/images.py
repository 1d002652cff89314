"""N-way K-shot Q-query episodes of images, gathered from uint8 images on the device.

A batch of tasks is sampled at once. Every choice is a function of the task's key
(metalearn/rng.py), so episode t of a key is the same in a batch, alone and in chunks. Support and
query are disjoint by construction: one sample of K + Q different images of each class is cut in
two. Labels are the random order in which the classes were sampled, and support and query are each
permuted inside every episode, so that neither label nor position carries information."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from metalearn import rng
from metalearn.augment import Change, augment, require_square
from metalearn.component import TaskComponent, option
from metalearn.errors import ConfigError
from metalearn.kernels import draw, draw_in_torch
from metalearn.tasks import native
from metalearn.types import Batch, Episode, EpisodeSpec, Key, TaskSource

SPLITS = ("train", "valid", "test")
# uint8 gathered at a time on a CPU: a block and its floats stay in the cache between two passes.
_BLOCK_BYTES = 1 << 18
# Numbers, made at import: a step that hashes a name cannot be compiled.
_SUPPORT, _QUERY, _EXAMPLES = (int(rng.fold_in(0, f"augment {part}")) for part in range(3))


class SplitTask(TaskComponent):
    """A component with one source per split, on which `seed` has no effect."""

    def build(
        self,
        split: str = "train",
        seed: int = 0,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> TaskSource:
        """Return the source of one split; raises ConfigError if it is unknown."""
        del seed
        if problems := split_problem(split):
            raise ConfigError(*problems)
        return self.source_of(split=split, device=device, dtype=dtype)

    def source_of(self, **where: Any) -> TaskSource:
        """The source; `where` holds the fields `split`, `device` and `dtype` of its spec."""
        del where
        raise TypeError(f"{type(self).__name__} defines neither source_of nor build")

    def spec_of(self, x_shape: tuple[int, ...], classes: int = 0, **more: Any) -> EpisodeSpec:
        """The spec of tasks of the component's ways, shots and queries.

        classes: those of the split; 0: regression on one number. `more`: other fields."""
        fields, kind = dict(self), "classification" if classes else "regression"
        ways, shots, queries = fields["ways"], fields["shots"], fields["queries"]
        sizes: Any = (kind, ways, shots, queries, x_shape, ways, classes)
        return EpisodeSpec(*sizes, **more)


class ImageTask(SplitTask):
    """The fields of every image data set."""

    ways: int = option(5, "N, classes per task.", ge=2)
    shots: int = option(1, "K, support images per class.", ge=1)
    queries: int = option(15, "Q, query images per class; may be 0.", ge=0)
    augment: tuple[Change, ...] = option(
        (),
        "Random augmentations of training images: crop, flip, colour, affine, rotate.",
        later=True,
    )

    @property
    def pixels_in_unit(self) -> bool:
        return True


def four_rotations(images: Tensor) -> Tensor:
    """Rotate images counter-clockwise by 0, 90, 180, 270 degrees: [A, *, H, H] -> [4 A, *, H, H].

    Raises ConfigError for images that are not square."""
    height, width = images.shape[-2:]
    if height != width:
        text = f"quarter turns need square images, not {height}x{width}"
        raise ConfigError(("rotations", text))
    return torch.cat([torch.rot90(images, turn, (-2, -1)) for turn in range(4)])


def check_turned_classes(rotations: str, augment: Sequence[Change]) -> None:
    """Raise ValueError for quarter turns of images where a turned class is another class."""
    if rotations in ("classes", "classes_train") and "rotate" in augment:
        text = "rotate would turn images into those of another class, because rotations: "
        raise ValueError(f"augment: {text}{rotations} makes a turned character a class: omit one")


def split_problem(split: str) -> list[tuple[str, str]]:
    """Return the problem of an unknown split, as (field, sentence) of a ConfigError; else empty."""
    text = f"unknown split {split!r}; valid: {', '.join(SPLITS)}"
    return [] if split in SPLITS else [("split", text)]


def check_shares(value: tuple[float, ...]) -> tuple[float, ...]:
    """Return fractions of the splits; raises ValueError unless they are >= 0 with sum 1."""
    if min(value) < 0 or abs(sum(value) - 1) > 1e-6:
        formatted = ", ".join(f"{share:g}" for share in value)
        text = f"must be three numbers >= 0 with sum 1 (got {formatted} with sum {sum(value):.9g})"
        raise ValueError(text)
    return value


def episode_problems(
    ways: int,
    shots: int,
    queries: int,
    classes: int,
    examples: int,
    split: str = "train",
    smallest: str = "",
) -> list[tuple[str, str]]:
    """Return why episodes of this shape cannot be sampled from `classes` classes; else empty.

    All (field, sentence) pairs for a ConfigError. `examples` is the number of images of the class
    with the fewest, `smallest` its name."""
    problems = []
    if ways > classes:
        reason = f"{ways} ways, but the {split} split has {classes} classes: at most {classes}"
        problems.append(("ways", reason))
    if shots + queries > examples:
        location = f"class {smallest!r} of the {split}" if smallest else f"a class of the {split}"
        text = f"{shots} shots + {queries} queries = {shots + queries} different images per class"
        text += f", but {location} split has {examples}"
        problems.append(("shots", f"{text}; shots + queries may be at most {examples}"))
    return problems


class ImageSource:
    """Episodes from a pool of images: the TaskSource of every image data set.

    pool: uint8 [classes, examples, channels, H, W], ink bright; or, with `counts` [classes] int64
    for classes of unequal size, [images, channels, H, W], class after class. `spec` is a
    classification spec with ways = outputs and the number of classes of the split.
    `rotate_per_task` rotates each class of each task by a random multiple of 90 degrees (Santoro et
    al. 2016, section 4.1; cbfinn/maml), from copies of the pool rotated once. `changes` are made to
    every image, with the key of its task and its index there. `data_sha256` is the hash of the
    prepared data, for result.json. Raises ConfigError."""

    def __init__(
        self,
        pool: Tensor,
        spec: EpisodeSpec,
        rotate_per_task: bool = False,
        data_sha256: str = "",
        counts: Sequence[int] | None = None,
        changes: Sequence[Change] = (),
    ) -> None:
        self.spec = spec
        self.rotate_per_task, self.changes = rotate_per_task, tuple(changes)
        self.data_sha256 = data_sha256
        self.facts: dict[str, str | int] = {}  # how the component made the pool, for result.json
        # set by components that split the user's classes: names by class_ids, and the rule
        self.class_names: tuple[str, ...] = ()
        self.split_rule = ""
        if counts is None:
            counts, pool = [int(pool.shape[1])] * int(pool.shape[0]), pool.flatten(0, 1)
        sizes = [int(count) for count in counts]
        _check_pool(pool, sizes, spec)
        require_square(self.changes, spec.x_shape)
        images = four_rotations(pool) if rotate_per_task else pool
        rows = images.reshape(images.shape[0], -1).contiguous().to(spec.device)
        numbers = torch.tensor(sizes, dtype=torch.int64, device=spec.device)
        same = sizes[0] if len(set(sizes)) == 1 else None
        rotation_rows = int(pool.shape[0]) if rotate_per_task else 0
        self._pool = native.Pool(rows, numbers, numbers.cumsum(0) - numbers, same, rotation_rows)
        sizes_of_draw = spec.ways, spec.shots, spec.queries, len(sizes), same or 0, rotation_rows
        self._sizes = draw_in_torch.Sizes(*sizes_of_draw)
        draw_in_torch.words_of(self._sizes, str(self._pool.rows.device))  # outside of traces
        self._scale = torch.tensor(1.0 / 255.0, dtype=spec.dtype, device=spec.device)

    def sample(self, key: Key, num_tasks: int, start: int = 0) -> Episode:
        """Episodes start .. start + T - 1: support x [T, N*K, *X], query x [T, N*Q, *X], y int64.

        info: key [T] int64 of each task, step [T] zeros, class_ids [T, N] int64: the split's class
        of label n."""
        kernel = native.kernel() if _is_plain(key, self._pool.rows) else None
        if kernel is None:
            return self._augment_episode(self._sample(key, num_tasks, start))
        return self._augment_episode(
            native.episodes(kernel, self.spec, self._pool, key, num_tasks, start)
        )

    def _augment_episode(self, episodes: Episode) -> Episode:
        if not self.changes:
            return episodes

        def changed(part: Batch, name: int) -> Batch:
            positions = torch.arange(part.x.shape[1], device=part.x.device)
            keys = rng.fold_in(episodes.info["key"].unsqueeze(-1), name, positions)  # [T, B]
            return part._replace(x=self._augment(part.x, keys))

        return episodes._replace(
            support=changed(episodes.support, _SUPPORT), query=changed(episodes.query, _QUERY)
        )

    def _augment(self, x: Tensor, keys: Tensor) -> Tensor:
        """x [*B, *X] with one key for each image."""
        return augment(x.flatten(0, keys.dim() - 1), keys.flatten(), self.changes).reshape(x.shape)

    def _sample(self, key: Key, num_tasks: int, start: int) -> Episode:
        """Sample with torch's operators: on CUDA, in a trace, or without a compiler."""
        pool, spec = self._pool, self.spec
        rows = draw.episode_rows(
            key.to(pool.rows.device), pool.counts, pool.starts, start, num_tasks, self._sizes
        )
        return Episode(
            self._part(rows.support, rows.support_y),
            self._part(rows.query, rows.query_y),
            {
                "key": rows.keys,
                "step": torch.zeros(num_tasks, dtype=spec.dtype, device=pool.rows.device),
                "class_ids": rows.class_ids,
            },
        )

    def _part(self, rows: Tensor, labels: Tensor) -> Batch:
        """Return the images of rows [T, B] with their labels."""
        return Batch(self._gather(rows.flatten()).reshape(*rows.shape, *self.spec.x_shape), labels)

    def examples(self, key: Key, size: int) -> Batch:
        """Images labelled over all classes of the split: x [B, *X], y [B] int64, B = size.

        All classes are equally likely. With `rotate_per_task` each image is rotated by a random
        multiple of 90 degrees; its label stays."""
        pool = self._pool
        key = key.to(pool.rows.device)
        labels = rng.integers(rng.fold_in(key, "class"), (size,), self.spec.num_classes)
        fraction = rng.integers(rng.fold_in(key, "example"), (size,), 1 << 31)
        rows = pool.starts[labels] + ((fraction * pool.counts[labels]) >> 31)
        if self.rotate_per_task:
            rows = rows + rng.integers(rng.fold_in(key, "turn"), (size,), 4) * pool.turned
        x = self._gather(rows)
        if self.changes:
            x = self._augment(x, rng.fold_in(key, _EXAMPLES, torch.arange(size, device=key.device)))
        return Batch(x, labels)

    def _gather(self, rows: Tensor) -> Tensor:
        """Return rows [B] as floats in 0..1: [B, *X]; one gather, one multiplication."""
        count, width = int(rows.shape[0]), int(self._pool.rows.shape[1])
        if rows.device.type != "cpu":
            values = draw.scaled_rows(self._pool.rows, rows, self._scale)
            return values.reshape(count, *self.spec.x_shape)
        out = torch.empty((count, width), dtype=self.spec.dtype, device=rows.device)
        block = max(1, _BLOCK_BYTES // width)
        buffer = torch.empty((min(block, count), width), dtype=torch.uint8, device=rows.device)
        for first in range(0, count, block):
            last = min(first + block, count)
            block_rows, part = rows[first:last], buffer[: last - first]
            values = torch.index_select(self._pool.rows, 0, block_rows, out=part)
            torch.mul(values, self._scale, out=out[first:last])
        return out.reshape(count, *self.spec.x_shape)


def _is_plain(key: Key, rows: Tensor) -> bool:
    """Return whether both are ordinary CPU tensors outside any trace, which C++ may read."""
    plain = type(key) is type(rows) is Tensor and key.is_cpu and rows.is_cpu
    return plain and not torch.compiler.is_compiling() and not torch._C._len_torch_dispatch_stack()


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
    """The source of a component's episodes from the pool of one split, as in ImageSource.

    Images of other splits than `train` are as they are."""
    classes = int(pool.shape[0]) if counts is None else len(counts)
    shape = tuple(int(size) for size in pool.shape[-3:])
    spec = task.spec_of(shape, classes, split=split, dtype=dtype, device=device)
    changes = task.augment if split == "train" else ()
    return ImageSource(pool, spec, rotate_per_task, data_sha256, counts, changes)


def _check_pool(images: Tensor, sizes: list[int], spec: EpisodeSpec) -> None:
    """Raise ValueError (a bug) or ConfigError (bad options) if pool and spec do not fit."""
    if images.dtype != torch.uint8 or tuple(images.shape[1:]) != tuple(spec.x_shape):
        raise ValueError(
            f"pool of {images.dtype} {tuple(images.shape[1:])}, the spec says uint8 "
            f"{tuple(spec.x_shape)}"
        )
    if len(sizes) != spec.num_classes or sum(sizes) != images.shape[0]:
        text = f"{len(sizes)} classes with {sum(sizes)} images, the spec says {spec.num_classes}"
        raise ValueError(text)
    if not spec.classification or spec.outputs != spec.ways:
        raise ValueError("an image source needs a classification spec with outputs = ways")
    fewest = min(sizes, default=0)
    problems = episode_problems(spec.ways, spec.shots, spec.queries, len(sizes), fewest, spec.split)
    if problems:
        raise ConfigError(*problems)
