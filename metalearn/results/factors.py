"""What each part of a method adds: start, optimizer of new tasks, architecture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from metalearn.results.records import Group, Json, Run
from metalearn.results.searches import candidates


class Cell(NamedTuple):
    """What a method is made of."""

    start: str
    optimizer: str
    architecture: str


def cell_of(run: Run) -> Cell:
    """Start, optimizer of new tasks, and architecture of a row.

    What its result states under `factors` comes first."""
    stated = run.result.get("factors") or {}
    model = run.config.get("model") or {}
    consumes = run.traits.get("consumes", "nothing")
    pretrained = "pretrained" if consumes == "examples" else "random"
    start = "meta-learned" if consumes == "episodes" else pretrained
    architecture = str(model.get("name", "fixed"))
    if run.method_config.get("space"):
        architecture = "drawn at random" if candidates(run) == 1 else "searched"
    return Cell(
        str(stated.get("start", start)),
        str(stated.get("optimizer", "by hand")),
        str(stated.get("architecture", architecture)),
    )


def family_of(run: Run) -> str:
    """`meta-learned`, `transfer` or `scratch`: by what it was trained on, or by where it starts."""
    start = (run.result.get("factors") or {}).get("start")
    consumes = run.traits.get("consumes", "nothing")
    if consumes == "nothing":
        families = {"pretrained": "transfer", None: "scratch", "random": "scratch"}
        return families.get(start, "meta-learned")
    return "transfer" if consumes == "examples" else "meta-learned"


def factors(groups: Sequence[Group], paired: Sequence[Json]) -> list[Json]:
    """The `factors` rows of comparison.json: pairs of methods that differ in one part.

    Methods with steps, with their paired difference."""
    cells = {group.label: cell_of(group.first) for group in groups if group.uses_steps}
    rows = []
    for entry in paired:
        if entry["difference"] is None or not {entry["a"], entry["b"]} <= set(cells):
            continue
        a, b = (cells[entry[side]]._asdict() for side in ("a", "b"))
        differ = [name for name in a if a[name] != b[name]]
        if len(differ) == 1:
            same = [a[name] for name in a if name not in differ]
            row = {"part": differ[0], "from": b[differ[0]], "to": a[differ[0]], "same": same}
            rows.append(row | {key: entry[key] for key in ("a", "b", "difference", "ci95")})
    return sorted(rows, key=lambda row: str(row["part"]))
