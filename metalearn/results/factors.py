"""What each part of a method adds: start, optimizer of new tasks, architecture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from metalearn.results.records import Group, Json, Run
from metalearn.results.searches import candidate_count


class Factors(NamedTuple):
    """The parts of a method."""

    start: str
    optimizer: str
    architecture: str


def run_factors(run: Run) -> Factors:
    """Return start, optimizer of new tasks, and architecture of a row.

    Those in its result under `factors` take precedence."""
    facts = run.result.get("factors") or {}
    model = run.config.get("model") or {}
    consumes = run.traits.get("consumes", "nothing")
    other_start = "pretrained" if consumes == "examples" else "random"
    start = "meta-learned" if consumes == "episodes" else other_start
    architecture = str(model.get("name", "fixed"))
    if run.method_config.get("space"):
        architecture = "drawn at random" if candidate_count(run) == 1 else "searched"
    return Factors(
        str(facts.get("start", start)),
        str(facts.get("optimizer", "by hand")),
        str(facts.get("architecture", architecture)),
    )


def run_family(run: Run) -> str:
    """Return `meta-learned`, `transfer` or `scratch`, by the training data or the
    initialization."""
    start = (run.result.get("factors") or {}).get("start")
    consumes = run.traits.get("consumes", "nothing")
    if consumes == "nothing":
        families = {"pretrained": "transfer", None: "scratch", "random": "scratch"}
        return families.get(start, "meta-learned")
    return "transfer" if consumes == "examples" else "meta-learned"


def factors(groups: Sequence[Group], pairs: Sequence[Json]) -> list[Json]:
    """Return the `factors` rows of comparison.json: pairs of methods that differ in one part.

    These are methods with steps, with their paired difference."""
    cells = {group.label: run_factors(group.first) for group in groups if group.uses_steps}
    rows = []
    for entry in pairs:
        if entry["difference"] is None or not {entry["a"], entry["b"]} <= set(cells):
            continue
        a, b = (cells[entry[side]]._asdict() for side in ("a", "b"))
        differ = [name for name in a if a[name] != b[name]]
        if len(differ) == 1:
            same = [a[name] for name in a if name not in differ]
            row = {"part": differ[0], "from": b[differ[0]], "to": a[differ[0]], "same": same}
            rows.append(row | {key: entry[key] for key in ("a", "b", "difference", "ci95")})
    return sorted(rows, key=lambda row: str(row["part"]))
