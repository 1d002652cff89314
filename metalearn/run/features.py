"""Features of a frozen network on the tasks of a curve, computed once per image and stored.

The cost of a new task does not change: its images are new to the learner, so that FLOPs and seconds
of a task are those of the network (run/cost.py). Validation and tuning use the same images again
and again: they run the network once for each image whose features are not stored, and then read
the stored features. The data folder holds those of earlier runs too; so that the cost of a run does
not depend on what ran before it, validation pays for each of its images, stored or not."""

from __future__ import annotations

import hashlib
import io
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metalearn.config.build import Parts
from metalearn.distributed.curve import TaskSet
from metalearn.distributed.ranks import ALONE, Ranks
from metalearn.evaluate.flops import Flops, UnknownFlops, cached_count
from metalearn.evaluate.ledger import FLOPS
from metalearn.kernels.feature_cache import DIGEST, FeatureTable, FrozenNetwork, digests_of
from metalearn.logger import log
from metalearn.rng import fold_in
from metalearn.run.job import Job
from metalearn.run.tuning.choice import has_tuning
from metalearn.storage.files import UNREADABLE, write_atomic
from metalearn.tasks.store import cache_root
from metalearn.types import Ledger, TaskSource


@contextmanager
def features_once(
    parts: Parts,
    tasks: TaskSet,
    chunk: int,
    ledger: Ledger,
    ranks: Ranks = ALONE,
    phase: str = "setup",
) -> Iterator[None]:
    """Context manager in which a frozen network of the learner looks up the images of `tasks`.

    Features that are not stored yet are computed and stored first. Their FLOPs and seconds are
    recorded under `phase`, that of the curve in the block, whose own FLOPs are those of
    look-ups."""
    network, source = parts.learner.frozen, getattr(parts, tasks.split)
    if network is None or parts.device != "cpu":
        yield
        return
    with ledger.span(phase):
        path = _path(network, source)
        table, _, new = _complete(network, source, tasks, chunk, ranks, path)
        count = sum(ranks.gather(new))  # all ranks together, as those of the curve
        ledger.add(phase, 0.0, examples=count, **_flops(network, source, count))
    with network.using(table):
        yield


def record_validation_features(job: Job) -> None:
    """Record the features of the validation tasks of a run as tuning, before anything uses them.

    Images whose features an earlier run stored cost the FLOPs of the network, and its seconds per
    image when they were computed."""
    experiment, network = job.experiment, job.parts.learner.frozen
    path = None if network is None else _path(network, job.parts.valid)
    validates = experiment.run.validate.every is not None or has_tuning(experiment)
    if path is None or job.parts.device != "cpu" or not validates:
        return
    tasks = TaskSet("valid", experiment.run.validate.episodes, job.seed)
    parts = (network, job.parts.valid, tasks, experiment.evaluate.chunk, job.ranks, path)
    with job.ledger.span("tune"):
        table, images, new = _complete(*parts)
    count, stored = (sum(job.ranks.gather(number)) for number in (images, images - new))
    counts = {"examples": count, "seconds_waiting": 0.0}
    seconds = stored * table.seconds / max(len(table), 1)
    job.ledger.add("tune", seconds, **counts, **_flops(network, job.parts.valid, count))


def _complete(
    network: FrozenNetwork,
    source: TaskSource,
    tasks: TaskSet,
    chunk: int,
    ranks: Ranks,
    path: Path | None,
) -> tuple[FeatureTable, int, int]:
    """Return (a table with every image of this rank's tasks, their number, that of new ones)."""
    stored = _read(path, network.width, source.spec.dtype)
    new: dict[bytes, Tensor] = {}
    images, seconds = set[bytes](), 0.0
    first, count = ranks.share(tasks.episodes) if ranks.size > 1 else (0, tasks.episodes)
    key = fold_in(tasks.seed, "episodes")
    for start in range(first, first + count, chunk):
        episodes = source.sample(key, min(chunk, first + count - start), start)
        for x in (episodes.support.x.flatten(0, 1), episodes.query.x.flatten(0, 1)):
            digests = digests_of(x)
            images.update(digests)
            rows = {
                digest: row
                for row, digest in enumerate(digests)
                if digest not in stored and digest not in new
            }
            if rows:
                started = time.perf_counter()
                features = network.compute(x[list(rows.values())])
                seconds += time.perf_counter() - started
                new.update(zip(rows, features, strict=True))
    if not new:
        return stored, len(images), 0
    table = stored.add(list(new), torch.stack(list(new.values())), seconds)
    if path is not None:
        log.info(f"{len(new)} features computed, {len(table)} stored in {path}")
        _write(path, table)
    return table, len(images), len(new)


def _flops(network: FrozenNetwork, source: TaskSource, images: int) -> dict[str, float | None]:
    """Return the FLOPs of the network on `images` images, by the names of the ledger."""
    image = torch.zeros((1, *source.spec.x_shape), dtype=source.spec.dtype)
    try:
        flops = cached_count(network.network, image).times(images) if images else Flops()
    except UnknownFlops:
        return dict.fromkeys(FLOPS)
    return dict(zip(FLOPS, map(float, (*flops, flops.matrix)), strict=True))


def _path(network: FrozenNetwork, source: TaskSource) -> Path | None:
    """Return the file of a network and an image set; None if the data have no hash."""
    spec, data = source.spec, getattr(source, "data_sha256", "")
    if not data:
        return None
    facts = (network.sha256, data, spec.split, spec.x_shape, str(spec.dtype))
    name = hashlib.sha256(repr(facts).encode()).hexdigest()[:24]
    return cache_root() / "features" / f"{name}.npz"


def _read(path: Path | None, width: int, dtype: torch.dtype) -> FeatureTable:
    """Return the stored table, or an empty one if there is none that fits."""
    empty = FeatureTable([], torch.empty((0, width), dtype=dtype))
    if path is None or not path.exists():
        return empty
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            digests, features = archive["digests"], torch.from_numpy(archive["features"])
            seconds = float(archive["seconds"])
    except (*UNREADABLE, KeyError) as error:
        log.warning(f"{path} cannot be read and is recomputed: {error}")
        return empty
    rows, shape_fits = [row.tobytes() for row in digests], features.shape == (len(digests), width)
    if not shape_fits or digests.shape != (len(rows), DIGEST) or features.dtype != dtype:
        log.warning(f"{path} is not a table of this network and is recomputed")
        return empty
    return FeatureTable(rows, features, seconds)


def _write(path: Path, table: FeatureTable) -> None:
    buffer = io.BytesIO()
    digests = np.frombuffer(b"".join(table.digests), np.uint8).reshape(-1, DIGEST)
    arrays: dict[str, Any] = {"digests": digests, "features": table.features.numpy()}
    arrays["seconds"] = np.float64(table.seconds)
    np.savez(buffer, **arrays)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, buffer.getvalue())
    except OSError as error:  # the run continues without the file
        log.warning(f"features could not be stored: {error}")
