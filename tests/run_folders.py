"""Plausible finished run directories for the tests of comparisons and reports."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from metalearn.evaluate.cost_block import total_seconds
from metalearn.evaluate.ledger import PHASES
from metalearn.results import records
from metalearn.results.comparison import collect
from metalearn.results.records import Group
from metalearn.storage.files import plain

STEPS = [0, 1, 2, 5, 10, 20]
TUNE = {"inner_lr": {"min": 0.001, "max": 1.0, "distribution": "log_uniform"}}
# label: start, end, speed (steps to get half way), uses_steps, consumes
METHODS: dict[str, tuple[float, float, float, bool, str]] = {
    "maml": (0.2, 0.93, 0.4, True, "episodes"),
    "reptile": (0.2, 0.88, 2.0, True, "episodes"),
    "proto_net": (0.95, 0.95, 1.0, False, "episodes"),
    "fine_tune": (0.2, 0.86, 4.0, True, "examples"),
    "linear_probe": (0.2, 0.81, 3.0, True, "examples"),
    "scratch": (0.2, 0.47, 5.0, True, "nothing"),
}


PUBLISHED = [
    {"published": value, "published_ci95": half, "source": "Finn et al. 2017, table 1"}
    for value, half in ((None, None), (0.987, 0.004))
]
FACTS = ("source", "split", "ways", "shots", "queries", "data_sha256")
GLYPHS = dict(zip(FACTS, ("glyphs", "test", 5, 1, 15, "d" * 64), strict=True))
SINUSOID = dict(zip(FACTS, ("sinusoid", "test", 1, 5, 100, None), strict=True))


def write_run(
    path: Path,
    label: str,
    method: str,
    seed: int = 0,
    *,
    episodes: int = 600,
    change: Callable[[dict[str, Any]], None] = id,
) -> Path:
    """A plausible finished classification run; `change` edits result.json before it is written."""
    start, end, speed, uses_steps, consumes = METHODS[method]
    # the same hard tasks for every method
    tasks = np.random.default_rng(7).normal(0, 0.06, episodes)
    generator = np.random.default_rng([sum(map(ord, label)), seed])
    steps = np.asarray(STEPS, np.float64)
    level = start + (end - start) * (steps / (steps + speed) if uses_steps else np.ones(len(steps)))
    noise = generator.normal(0, 0.09, (episodes, len(steps) if uses_steps else 1))
    shift = generator.normal(0, 0.004) * ((steps > 0) | (not uses_steps))
    known = np.clip(level[None] + shift + tasks[:, None] * (level > 0.25) + noise, 0, 1)
    accuracy = np.round(known * 75) / 75
    loss = -np.log(np.clip(accuracy, 0.02, 1)) + 0.05
    test = _test(STEPS, accuracy, loss)
    tuned = {"inner_lr": 0.05, "headline_step": 10, "on_edge": []}
    result = _result(label, method, seed, episodes, test) | {
        "task": dict(GLYPHS),
        "normalisation": "query_batch",
        "transductive": True,
        "headline": _headline("accuracy", 10 if uses_steps else 20, test)
        | PUBLISHED[method == "maml"],
        "traits": _traits(uses_steps, consumes) | {"transductive": True},
        "tuned": None if consumes == "episodes" else tuned,
        "cost": cost_block(consumes, uses_steps),
    }
    result["tuning"] = _tuning(end) if result["tuned"] else None
    result["seconds"] = total_seconds(result["cost"]) * 1.01
    result["timing"] = {"rounds": 5, "rows": 1, "others": 0.01}
    change(result)
    tune = TUNE if result["tuned"] else None
    config = {"experiment": "demo", "task": {"source": "glyphs"}, "model": {"name": "conv4"}}
    config |= {"method": {"name": method, "tune": tune}, "run": {"seeds": [seed]}}
    lines = _metrics(generator, end) if consumes != "nothing" else []
    _write(path, result, config, lines, {"accuracy": accuracy, "loss": loss})
    _write_image_episodes(path)
    return path


def _tuning(end: float) -> dict[str, Any]:
    """The record of four trials, the second of which diverged."""
    scores = [end - 0.1, None, end, end - 0.05]
    best = [end - 0.1, end - 0.1, end, end]
    stage = {"acts_in": "new tasks", "fields": ["inner_lr"], "trials": 4, "flops": 4e9}
    stages = [{**stage, "scores": scores, "best_so_far": best}]
    return {"trials": 4, "flops": None, "once": True, "seed": 0, "stages": stages}


def _write_image_episodes(path: Path) -> None:
    drawn = np.random.default_rng(3).random((3, 5, 1, 28, 28)) ** 6
    asked = np.random.default_rng(4).random((3, 15, 1, 28, 28)) ** 6
    labels = np.stack([np.random.default_rng(place).permutation(5) for place in range(3)])
    twice = np.arange(15) % 5
    many = np.stack([np.random.default_rng(place).permutation(twice) for place in range(3)])
    np.savez(path / "episodes.npz", support_x=drawn, support_y=labels, query_x=asked, query_y=many)


def write_regression(
    path: Path, label: str, method: str = "maml", seed: int = 0, *, exploding: int = 0
) -> Path:
    """A plausible finished sinusoid run; `exploding` tasks leave every bound after the first
    step."""
    generator = np.random.default_rng([sum(map(ord, label)), seed])
    fast, slow = [4.9, 0.66, 0.52, 0.45, 0.38, 0.36], [4.2, 2.4, 2.35, 2.3, 2.25, 2.2]
    level = np.asarray(fast if method == "maml" else slow)
    loss = level * generator.gamma(2.0, 0.5, (600, 1))
    loss = loss * generator.uniform(0.8, 1.2, (600, len(STEPS)))
    loss[:exploding, 2:] = 1e6
    loss[: exploding // 2, 4:] = math.inf
    test = _test(STEPS, None, loss)
    result = _result(label, method, seed, 600, test) | {
        "experiment": "sinusoid",
        "task": dict(SINUSOID),
        "normalisation": "none",
        "transductive": False,
        "headline": _headline("loss", 1, test)
        | {"published": 0.67, "published_ci95": None, "source": "Finn et al. 2017"}
        | {"published_curve": {"1": 0.67, "5": 0.38}},
        "traits": _traits(True, "episodes"),
        "tuned": None,
        "cost": cost_block("episodes", True),
    }
    result["seconds"] = total_seconds(result["cost"]) * 1.01
    config = {"experiment": "sinusoid", "method": {"name": method}}
    _write(path, result, config, [], {"accuracy": np.full_like(loss, np.nan), "loss": loss})
    x = generator.uniform(-5, 5, (3, 5, 1))
    query = generator.uniform(-5, 5, (3, 100, 1))
    targets = {"support_y": 3 * np.sin(x), "query_y": 3 * np.sin(query)}
    np.savez(path / "episodes.npz", support_x=x, query_x=query, **targets)
    return path


def _headline(metric: str, step: int, test: dict[str, Any]) -> dict[str, Any]:
    value, half = (test[name][STEPS.index(step)] for name in (metric, f"{metric}_ci95"))
    return {"metric": metric, "step": step, "value": value, "ci95": half}


def _traits(uses_steps: bool, consumes: str) -> dict[str, Any]:
    steps = {"uses_steps": uses_steps, "support_at_step_0": not uses_steps}
    return {**steps, "transductive": False, "consumes": consumes}


def _test(steps: list[int], accuracy: np.ndarray | None, loss: np.ndarray) -> dict[str, Any]:
    def half(values: np.ndarray) -> list[float]:
        with np.errstate(invalid="ignore"):
            return list(1.96 * values.std(0, ddof=1) / math.sqrt(len(values)))

    gone = ~np.isfinite(loss) | (loss > 10 * loss[:, :1].mean())
    kept = [loss[~gone[:, place], place] for place in range(len(steps))]
    return {
        "steps": steps,
        "accuracy": None if accuracy is None else list(accuracy.mean(0)),
        "accuracy_ci95": None if accuracy is None else half(accuracy),
        "loss": list(loss.mean(0)),
        "loss_ci95": half(loss),
        "loss_median": list(np.median(loss, 0)),
        "loss_converged": [float(values.mean()) for values in kept],
        "loss_converged_ci95": [half(values[:, None])[0] for values in kept],
        "diverged": list(gone.mean(0)),
    }


def _result(
    label: str, method: str, seed: int, episodes: int, test: dict[str, Any]
) -> dict[str, Any]:
    return {
        "schema": 1,
        "experiment": "demo",
        "label": label,
        "method": method,
        "seed": seed,
        "config_hash": "c0ffee" * 5,
        "git": "0123456789abcdef",
        "episodes": {"count": episodes, "seed": 1, "fingerprint": "f" * 64},
        "checkpoint": "best",
        "test": test,
    }


def cost_block(consumes: str, uses_steps: bool, flops: float = 3e6) -> dict[str, Any]:
    """A whole ledger: 2,000 steps of training, 20 of adaptation; `flops` a gradient step of one
    task."""
    counts = ("flops", "flops_elementwise", "flops_architecture", "peak_bytes", "gradient_steps")
    nothing: dict[str, Any] = dict.fromkeys(
        (*counts, "examples", "labels", "candidates", "tasks"), 0
    )
    nothing |= {"seconds": 0.0, "seconds_waiting": 0.0, "device": "cpu", "energy_joules": None}

    def spent(steps: int, seconds: float, tasks: int = 1, **more: Any) -> dict[str, Any]:
        work = {"flops": steps * tasks * flops, "flops_elementwise": steps * tasks * flops // 6}
        row = {**nothing, **work, "flops_architecture": work["flops"], "seconds": seconds}
        row |= {"gradient_steps": steps, "peak_bytes": 2**28, "examples": 10 * steps * tasks}
        return row | more

    def new(steps: int, batched: float, alone: float, **more: Any) -> dict[str, Any]:
        row = spent(steps, batched) if batched else nothing
        row = row | {"seconds_batched": batched, "seconds_alone": alone, "tasks": 600} | more
        kinds = [name for name in row if name.startswith("seconds_") and name != "seconds_waiting"]
        return row | {"rounds": {name: [row[name]] * 5 for name in kinds}}

    table = {phase: dict(nothing) for phase in PHASES}
    for phase, seconds in (("setup", 5.5), ("compile", 1.0)):
        uncounted = dict.fromkeys(("flops", "flops_elementwise", "flops_architecture"))
        table[phase] = spent(0, seconds) | uncounted
    if consumes != "episodes":
        table["tune"] = spent(300, 14.2)
    if consumes != "nothing":
        phase = "pretrain" if consumes == "examples" else "meta_train"
        table[phase] = spent(2000, 92.5, 16, labels=20_000)
    start = {"flops_at_start": 0, "seconds_at_start": 0.0} if uses_steps else {}
    adapt = (20, 0.012, 0.031) if uses_steps else (1, 0.0007, 0.002)
    table |= {"search": new(0, 0.0, 0.0), "retrain": new(0, 0.0, 0.0)}
    predict = new(1, 0.0006, 0.002, gradient_steps=0)
    return table | {"adapt": new(*adapt, labels=5, **start), "predict": predict}


def _metrics(generator: np.random.Generator, end: float) -> list[dict[str, Any]]:
    lines = []
    for step in range(0, 2001, 200):
        for split, lost in (("train", 0.0), ("valid", 0.06)):
            level = 0.2 + (end - 0.2) * step / (step + 250) - lost * step / 2000
            level += generator.normal(0, 0.008)
            line = {"kind": "valid", "step": step, "split": split}
            line |= {"accuracy": level, "accuracy_ci95": 0.012}
            lines.append(line | {"loss": 1 - level, "loss_ci95": 0.02})
    return lines


def _write(
    path: Path, result: Any, config: Any, lines: list[dict[str, Any]], scores: dict[str, np.ndarray]
) -> None:
    path.mkdir(parents=True)
    (path / "result.json").write_text(json.dumps(plain(result)))
    (path / "config.yaml").write_text(yaml.safe_dump(config))
    whole = "".join(json.dumps(line) + "\n" for line in lines)
    (path / "metrics.jsonl").write_text(whole + '{"kind": "tr')
    environment = {"python": "3.11.7", "torch": "2.13.0", "threads": 2}
    environment |= {"started": "2026-01-01T00:00:00", "argv": ["metalearn", "compare", "demo"]}
    (path / "environment.json").write_text(json.dumps(environment))
    arrays = {name: values.astype(np.float32) for name, values in scores.items()}
    np.savez(path / "scores.npz", **arrays)


def write_rows(root: Path, labels: list[str], seeds: int = 1, **how: Any) -> Path:
    for label in labels:
        for seed in range(seeds):
            write_run(root / "methods" / label / f"seed-{seed}", label, label, seed, **how)
    return root


def groups_of(root: Path) -> list[Group]:
    return records.group(records.load(path) for path in records.run_directories(root)[0])


def the_check(root: Path, name: str) -> dict[str, Any]:
    found = {check["name"]: check for check in collect(root)["checks"]}
    return dict(found[name])


def searching(
    tmp_path: Path, label: str, searcher: str, count: int = 16, seeds: int = 3, **more: Any
) -> None:
    def change(result: dict[str, Any]) -> None:
        spent = {"flops": 5e8, "seconds": 0.5, "seconds_batched": 0.5}
        result["cost"]["search"] |= {**spent, "candidates": count}
        result["method"] = "per_task_nas"
        result["seconds"] = total_seconds(result["cost"])

    for seed in range(seeds):
        folder = tmp_path / f"methods/{label}/seed-{seed}"
        write_run(folder, label, "scratch", seed, change=change)
        words = f"searcher: {{name: {searcher}}}, candidates: {count}"
        config = f"\nmethod: {{name: per_task_nas, space: {{name: conv4-micro}}, {words}}}\n"
        text = (folder / "config.yaml").read_text()
        (folder / "config.yaml").write_text(text[: text.index("method:")] + config)
        if more:
            arrays = {name: values[seed] for name, values in more.items()}
            np.savez(folder / "selection.npz", **arrays)
