"""Sampling only: our ImageSource and learn2learn's fused transforms, on the same images."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from metalearn.bench.engines.engine import Engine, package
from metalearn.bench.problem import Problem, images, synchronise
from metalearn.bench.workloads import Workload
from metalearn.rng import fold_in


def ours(problem: Problem) -> Engine:
    """Return T episodes per call, from bytes to support and query floats with permuted labels."""
    source, tasks = problem.source, problem.workload.tasks
    number = 0

    def step() -> None:
        nonlocal number
        number += 1
        source.sample(fold_in(problem.key, number), tasks)

    return Engine(step, None, lambda: synchronise(problem.device), per=tasks)


class Images(Dataset[tuple[Tensor, int]]):
    """The same images as learn2learn's data set: one example per index, floats in 0..1."""

    def __init__(self, work: Workload, beforehand: bool) -> None:
        pool = torch.from_numpy(images(work))
        self.labels = [label for label in range(pool.shape[0]) for _ in range(pool.shape[1])]
        self.beforehand = beforehand
        self.pool = pool.flatten(0, 1).float() / 255 if beforehand else pool.flatten(0, 1)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = self.pool[index]
        return image if self.beforehand else image.float() / 255, self.labels[index]


def theirs(problem: Problem) -> list[Engine]:
    """Return one episode per call, support and query unsplit, which learn2learn leaves to users.

    Two forms: all images converted to floats in advance, in four times the memory, or each when it
    is used, as ours."""
    return [
        _theirs(problem, Images(problem.workload, beforehand), form)
        for beforehand, form in ((True, "floats ready"), (False, "from bytes"))
    ]


def _theirs(problem: Problem, raw: Images, form: str) -> Engine:
    data, work = package("learn2learn").data, problem.workload
    indices: dict[int, list[int]] = {}
    for index, label in enumerate(raw.labels):
        indices.setdefault(label, []).append(index)
    dataset = data.MetaDataset(
        raw, labels_to_indices=indices, indices_to_labels=dict(enumerate(raw.labels))
    )
    chain = [
        data.transforms.FusedNWaysKShots(dataset, n=work.ways, k=work.shots + work.queries),
        data.transforms.LoadData(dataset),
        data.transforms.RemapLabels(dataset),
        data.transforms.ConsecutiveLabels(dataset),
    ]
    tasks = data.Taskset(dataset, task_transforms=chain, num_tasks=-1)
    return Engine(
        lambda: _to_device(tasks.sample(), problem.device),
        None,
        lambda: synchronise(problem.device),
        form,
    )


def _to_device(task: Any, device: str) -> None:
    for part in task:
        part.to(device)
