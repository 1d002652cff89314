"""The results of the GPU suite as one section of a Markdown file."""

from __future__ import annotations

import datetime
import platform
from pathlib import Path
from typing import Any

from metalearn.bench.markdown import every_row, ratios
from metalearn.bench.table import speedup
from metalearn.report.markdown import replace_section, table
from metalearn.storage.files import read_json

HEAD = """# Results on GPUs

Written by `metalearn bench --gpu-suite` (see [GPU.md](GPU.md)); the section of a card is replaced
by its next run.
"""
TARGETS = {"seconds": 600.0, "accuracy": 0.983, "speedup": 10.0}
POOLED = "conv4_pool_5w1s_q1"


def write_section(path: Path, out: Path, state: dict[str, dict[str, Any]]) -> None:
    """Replace the section of this GPU, or append it."""
    from metalearn.machine import cuda_facts

    facts = cuda_facts("cuda")
    replace_section(path, f"gpu: {facts['card']}", render(facts, out, state), HEAD)


def render(facts: dict[str, Any], out: Path, state: dict[str, dict[str, Any]]) -> str:
    """Render GPU and versions, targets, every piece, executors by precision, the peers."""
    import torch

    day = datetime.datetime.now(datetime.UTC).date().isoformat()
    versions = f"{day}; Python {platform.python_version()}; torch {torch.__version__}; "
    versions += "; ".join(f"{name}: {value}" for name, value in facts.items() if name != "card")
    parts = [f"## {facts['card']}", versions, _targets(out), "### Pieces", _pieces(state)]
    parts += _precisions(out)
    for title, name in (
        ("Executors, float32", "executors-float32.json"),
        ("Executors, TF32", "executors-tf32.json"),
        ("Executors, float32, without Triton", "executors-no-triton.json"),
        ("Executors, float32, torch's convolutions", "executors-torch.json"),
        ("Beside other packages", "bench.json"),
    ):
        data = _json(out / name)
        if data.get("rows"):
            parts += [f"### {title}", ratios(data["rows"], data.get("workloads", {}))]
            parts += [every_row(data["rows"])]
    return "\n\n".join(parts) + "\n"


def _targets(out: Path) -> str:
    """Render the three targets of a GPU, with what was measured."""
    rows = [row for row in _json(out / "bench.json").get("rows", []) if row["workload"] == POOLED]
    ratio = speedup(rows, ("learn2learn",)) if rows else None
    result = _json(next(iter(sorted(out.glob("omniglot/**/result.json"))), out / "none"))
    cost, score = result.get("cost", {}), _accuracy(result)
    seconds = sum(cost.get(phase, {}).get("seconds") or 0.0 for phase in ("compile", "meta_train"))
    lines = [
        ["pooled Conv4-64, 5-way 1-shot: times learn2learn", "≥ 10", _number(ratio, ".1f")],
        [
            "60,000 iterations of MAML, Omniglot 5-way 1-shot",
            "< 600 s (aim 300)",
            _number(seconds or None, ".0f") + (" s" if seconds else ""),
        ],
        ["accuracy of that run", "≥ 98.3 %", _number(score and 100 * score, ".2f")],
    ]
    return table(["target", "asked for", "measured"], lines, left=1)


def _accuracy(result: dict[str, Any]) -> float | None:
    value = result.get("headline", {}).get("value")
    return float(value) if isinstance(value, (int, float)) else None


def _number(value: float | None, form: str) -> str:
    return "not measured" if value is None else format(value, form)


def _pieces(state: dict[str, dict[str, Any]]) -> str:
    lines = [
        [f"`{name}`", entry["status"], str(entry.get("seconds", "–")), _plain(entry.get("last"))]
        for name, entry in state.items()
    ]
    return table(["piece", "status", "seconds", "last line"], lines, left=2)


def _plain(text: str | None) -> str:
    return (text or "").replace("|", "\\|")


def _precisions(out: Path) -> list[str]:
    """Render the accuracy of each precision: error of a meta-gradient, score."""
    lines = []
    for folder in sorted(out.glob("precision-*/")):
        environment = _json(next(iter(sorted(folder.rglob("environment.json"))), folder / "none"))
        result = _json(next(iter(sorted(folder.rglob("result.json"))), folder / "none"))
        error = environment.get("precision", {}).get("gradient_error")
        score = _accuracy(result)
        cells = [_number(error, ".1e"), _number(score and 100 * score, ".2f")]
        lines.append([folder.name.removeprefix("precision-"), *cells])
    head = ["precision", "gradient error", "accuracy after 500 steps, %"]
    return ["### Precision", table(head, lines, left=1)] if lines else []


def _json(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}
