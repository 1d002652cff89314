"""Hash of everything that the speed of a step depends on: the key of stored timings."""

from __future__ import annotations

import functools
import hashlib
import json
from pathlib import Path

import torch

from metalearn.config.experiment import Experiment
from metalearn.machine import cpu_name, has_triton, own_kernels
from metalearn.types import EpisodeSpec


def signature(experiment: Experiment, spec: EpisodeSpec, device: str) -> str:
    """Return a hash of method, model, shapes, machine, threads, versions, and this code."""
    run = experiment.run
    free = {"outer"}
    if experiment.base_method.rate_is_input and not device.startswith("cuda"):
        free.add("inner_lr")
    facts = {
        "method": {
            key: value
            for key, value in experiment.base_method.model_dump(mode="json").items()
            if key not in free
        },
        "outer": str(getattr(getattr(experiment.base_method, "outer", None), "name", "")),
        "model": experiment.model.model_dump(mode="json"),
        "found": [str(experiment.method), str(experiment.found)] if experiment.found else [],
        "task": [experiment.task.source, repr(spec)],
        "size": [run.tasks_per_step, run.examples_per_step],
        "precision": [run.dtype, run.precision, run.checkpoint_inner, run.deterministic],
        "own_kernels": own_kernels(),
        "triton": device.startswith("cuda") and has_triton(),
        "machine": [
            device,
            torch.cuda.get_device_name(device) if device.startswith("cuda") else cpu_name(),
        ],
        "threads": torch.get_num_threads(),
        "versions": [torch.__version__, _code()],
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:24]


@functools.cache
def _code() -> str:
    """Return a hash of the source of the packages that a step runs."""
    package, digest = Path(__file__).resolve().parents[1], hashlib.sha256()
    packages = (
        "kernels",
        "models",
        "inner",
        "algorithms",
        "transfer",
        "nas",
        "learned_optimizers",
        "executors",
    )
    files = [
        path
        for name in packages
        for path in (package / name).rglob("*")
        if path.suffix in (".py", ".cpp")
    ]
    for path in sorted([*files, *package.glob("*.py")]):
        digest.update(path.read_bytes())
    return digest.hexdigest()
