"""Contrasts: the pairs of rows that are tested against each other, chosen before any result.

An experiment file names them under `contrasts`. Otherwise they follow from what the rows are, in
the order of the file: searched architectures against fixed ones, learned update rules against Adam
from the same start, meta-learned rows against transfer, and each family against scratch. All other
pairs are estimates without a test."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from metalearn.evaluate.holm import holm
from metalearn.results.factors import cell_of
from metalearn.results.records import Group, Json
from metalearn.results.searches import is_control

Pair = tuple[str, str]
META = ("initialization", "metric")
HAND_MADE = ("by hand", "Adam")


def contrasts(
    groups: Sequence[Group], named: Sequence[Pair] | None, order: Sequence[str] = ()
) -> list[Pair]:
    """The pairs of labels to test: `named` in the experiment file, else those by family.

    `order`: labels as the file lists them; rows without a place in it come last, by name."""
    if named is not None:
        return list(named)
    places = {label: place for place, label in enumerate(order)}
    rows = sorted(groups, key=lambda group: (places.get(group.label, len(places)), group.label))
    found = [*_searched(rows), *_learned(rows), *_families(rows)]
    unique: dict[frozenset[str], Pair] = {}
    for pair in found:
        unique.setdefault(frozenset(pair), pair)
    return list(unique.values())


def mark_contrasts(pairs: Sequence[Json], tested: Sequence[Pair]) -> list[Json]:
    """`paired` entries with `contrast`, and `p_holm` of those that are contrasts.

    p adjusted by Holm's method for the number of contrasts, rows that are missing or could not be
    tested included."""
    known = {frozenset((entry["a"], entry["b"])): entry["p"] for entry in pairs}
    keys = [frozenset(pair) for pair in tested]
    adjusted = dict(zip(keys, holm([known.get(key) for key in keys])))
    marked = []
    for entry in pairs:
        key = frozenset((entry["a"], entry["b"]))
        marked.append({**entry, "contrast": key in adjusted, "p_holm": adjusted.get(key)})
    return marked


def _searched(rows: Sequence[Group]) -> list[Pair]:
    """Each searched architecture against the first fixed one with the same start and optimizer."""
    searched = [row for row in rows if cell_of(row.first).architecture == "searched"]
    chosen = [row for row in searched if not is_control(row.first)] or searched
    return _with_first(chosen, rows, _is_fixed_twin)


def _is_fixed_twin(other: Group, row: Group) -> bool:
    a, b = cell_of(row.first), cell_of(other.first)
    fixed = b.architecture not in ("searched", "drawn at random")
    return fixed and (a.start, a.optimizer) == (b.start, b.optimizer)


def _learned(rows: Sequence[Group]) -> list[Pair]:
    """Each learned update rule against Adam from the same start."""
    learned = [row for row in rows if cell_of(row.first).optimizer not in HAND_MADE]
    return _with_first(learned, rows, _is_adam_twin)


def _is_adam_twin(other: Group, row: Group) -> bool:
    a, b = cell_of(row.first), cell_of(other.first)
    return b.optimizer == "Adam" and (a.start, _start(row)) == (b.start, _start(other))


def _families(rows: Sequence[Group]) -> list[Pair]:
    """The first meta-learned row against the first transfer row, and the first row of each family
    against scratch."""
    firsts: dict[str, Group] = {}
    for row in rows:
        hand_made = _family(row) == "optimizer" and cell_of(row.first).optimizer in HAND_MADE
        if not hand_made:
            firsts.setdefault(_family(row), row)
    scratch, transfer = firsts.pop("scratch", None), firsts.get("transfer")
    meta = next((firsts[name] for name in META if name in firsts), None)
    found = [] if meta is None or transfer is None else [(meta.label, transfer.label)]
    if scratch is not None:
        found += [(row.label, scratch.label) for row in firsts.values()]
    return found


def _with_first(
    chosen: Sequence[Group], rows: Sequence[Group], fits: Callable[[Group, Group], bool]
) -> list[Pair]:
    """Each of `chosen` with the first of `rows` that fits it, where one does."""
    found = []
    for row in chosen:
        twins = [other for other in rows if fits(other, row)]
        found += [(row.label, twins[0].label)] if twins else []
    return found


def _family(row: Group) -> str:
    return row.first.family or row.method


def _start(row: Group) -> object:
    return row.first.method_config.get("start")
