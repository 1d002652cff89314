"""Contrasts: the pairs of rows that are tested against each other, chosen before any result.

An experiment file names them under `contrasts`. Otherwise they follow from what the rows are, in
the order of the file: searched architectures against fixed ones, learned update rules against Adam
from the same start, meta-learned, transfer and in-context rows against each other, and each family
against scratch. All other pairs are estimates without a test."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations

from metalearn.evaluate.statistics.holm import holm
from metalearn.results.factors import run_factors
from metalearn.results.records import Group, Json
from metalearn.results.searches import is_control

Pair = tuple[str, str]
META = ("initialization", "metric")
SCRATCH, IN_CONTEXT = "scratch", "in_context"
# Version of the pairs that follow from the rows. 2: in-context rows are also paired with
# meta-learned and transfer rows.
DEFAULTS = 2
HAND_DESIGNED = ("by hand", "Adam")
SIGNIFICANT = 0.05  # largest p, adjusted by Holm's method, of a difference


def contrasts(
    groups: Sequence[Group],
    named_pairs: Sequence[Pair] | None,
    order: Sequence[str] = (),
    version: int = DEFAULTS,
) -> list[Pair]:
    """Return the pairs of labels to test: `named_pairs` of the file, else those by family.

    `order`: labels as the file lists them; rows that are not in it come last, by name. `version`:
    that of the pairs by family when the comparison was begun."""
    if named_pairs is not None:
        return list(named_pairs)
    places = {label: place for place, label in enumerate(order)}
    rows = sorted(groups, key=lambda group: (places.get(group.label, len(places)), group.label))
    pairs = [*_search_pairs(rows), *_learned_rule_pairs(rows), *_family_pairs(rows, version)]
    unique: dict[frozenset[str], Pair] = {}
    for pair in pairs:
        unique.setdefault(frozenset(pair), pair)
    return list(unique.values())


def mark_contrasts(
    pairs: Sequence[Json], tested: Sequence[Pair], exploratory: Sequence[Pair] = ()
) -> list[Json]:
    """Return `paired` entries with `contrast`, and `p_holm` of those that are contrasts.

    p is adjusted by Holm's method for the number of contrasts, including rows that are missing or
    could not be tested. Exploratory contrasts do not change the p of the others; theirs is adjusted
    for all of them."""
    p_values = {frozenset((entry["a"], entry["b"])): entry["p"] for entry in pairs}
    keys, later = [frozenset(pair) for pair in tested], [frozenset(pair) for pair in exploratory]
    of_all = zip([*keys, *later], holm([p_values.get(key) for key in [*keys, *later]]))
    adjusted_p = {**dict(of_all), **dict(zip(keys, holm([p_values.get(key) for key in keys])))}
    entries = []
    for entry in pairs:
        key = frozenset((entry["a"], entry["b"]))
        marks = {"contrast": key in adjusted_p, "exploratory": key in later}
        entries.append({**entry, **marks, "p_holm": adjusted_p.get(key)})
    return entries


def is_different(pair: Json) -> bool:
    """Return whether a `paired` entry is a contrast, chosen before results, that differs."""
    p_holm = pair.get("p_holm")
    if p_holm is None or not pair.get("contrast") or pair.get("exploratory"):
        return False
    return bool(p_holm <= SIGNIFICANT)


def _search_pairs(rows: Sequence[Group]) -> list[Pair]:
    """Pair each searched architecture with the first fixed one of the same start and optimizer."""
    searches = [row for row in rows if run_factors(row.first).architecture == "searched"]
    left = [row for row in searches if not is_control(row.first)] or searches
    return _pair_with_first(left, rows, _is_fixed_twin)


def _is_fixed_twin(other: Group, row: Group) -> bool:
    a, b = run_factors(row.first), run_factors(other.first)
    is_fixed = b.architecture not in ("searched", "drawn at random")
    return is_fixed and (a.start, a.optimizer) == (b.start, b.optimizer)


def _learned_rule_pairs(rows: Sequence[Group]) -> list[Pair]:
    """Pair each learned update rule with Adam from the same start."""
    left = [row for row in rows if run_factors(row.first).optimizer not in HAND_DESIGNED]
    return _pair_with_first(left, rows, _is_adam_twin)


def _is_adam_twin(other: Group, row: Group) -> bool:
    a, b = run_factors(row.first), run_factors(other.first)
    return b.optimizer == "Adam" and (a.start, _start(row)) == (b.start, _start(other))


def _family_pairs(rows: Sequence[Group], version: int) -> list[Pair]:
    """Pair the first meta-learned, transfer and in-context rows, and each family with scratch."""
    firsts: dict[str, Group] = {}
    for row in rows:
        is_hand_designed = (
            _family(row) == "optimizer" and run_factors(row.first).optimizer in HAND_DESIGNED
        )
        if not is_hand_designed:
            firsts.setdefault(_family(row), row)
    scratch = firsts.pop(SCRATCH, None)
    meta = next((firsts[name] for name in META if name in firsts), None)
    in_context = firsts.get(IN_CONTEXT) if version > 1 else None
    found = [row.label for row in (meta, firsts.get("transfer"), in_context) if row is not None]
    pairs = list(combinations(found, 2))
    if scratch is not None:
        pairs += [(row.label, scratch.label) for row in firsts.values()]
    return pairs


def _pair_with_first(
    left: Sequence[Group], rows: Sequence[Group], fits: Callable[[Group, Group], bool]
) -> list[Pair]:
    """Pair each of `left` with the first of `rows` that fits it, if there is one."""
    pairs = []
    for row in left:
        twins = [other for other in rows if fits(other, row)]
        pairs += [(row.label, twins[0].label)] if twins else []
    return pairs


def _family(row: Group) -> str:
    return row.first.family or row.method


def _start(row: Group) -> object:
    return row.first.method_config.get("start")
