"""When contrasts were chosen: before any row had finished, or after, which makes them exploratory.

comparison-request.json has `requests`: one entry for each time that the contrasts or the methods of
the experiment file changed, with the number of rows that had finished by then (null: made by a
version that did not record it). `defaults` of an entry without named contrasts is the version of
the rules that give them (contrasts.py; missing: 1), so that later rules add none to a comparison
that was begun before."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from metalearn.results.contrasts import DEFAULTS, Pair, contrasts
from metalearn.results.records import Group, Json

Key = frozenset[str]


class ContrastChoice(NamedTuple):
    """The contrasts of a comparison, by when they were chosen."""

    tested: list[Pair]  # chosen before results, and those of methods that were added later
    exploratory: list[Pair]  # chosen after rows had finished: no verdict
    note: str  # one or two sentences

    @property
    def pairs(self) -> list[Pair]:
        return [*self.tested, *self.exploratory]


def append_request(request: Json, previous: Json, finished: int) -> list[Json]:
    """Return `requests` of a new request: those of the previous one, and itself if it differs.

    `previous` is empty if there is none; `finished` is the number of rows that have finished."""
    entry = {name: request[name] for name in ("contrasts", "labels")} | {"defaults": DEFAULTS}
    requests = list(previous.get("requests") or ())
    if previous and not requests:
        requests = [{**_entry(previous), "finished": None}]
    if requests and _entry(requests[-1]) == _entry(entry):
        return requests
    return [*requests, {**_entry(entry), "finished": finished}]


def _entry(request: Json) -> Json:
    pairs = request.get("contrasts")
    named = None if pairs is None else [list(pair) for pair in pairs]
    entry = {"contrasts": named, "labels": list(request.get("labels") or ())}
    version = request.get("defaults", 1)
    return entry if pairs is not None or version == 1 else {**entry, "defaults": version}


def contrast_choice(groups: Sequence[Group], request: Json) -> ContrastChoice:
    """Return the contrasts of comparison-request.json, by when they were chosen.

    The contrasts of the first request are tested, even if a later one drops them. So are those
    that follow from methods which were added later. All others that a later request names are
    exploratory."""
    request = request or {"defaults": DEFAULTS}  # rows without a comparison
    requests: list[Json] = request.get("requests") or [{**_entry(request), "finished": None}]
    start = max((n for n, one in enumerate(requests) if one.get("finished") == 0), default=0)
    first, tested = requests[start], _pairs(groups, requests[start])
    exploratory, sentences = list[Pair](), [_describe_first(first, "requests" in request)]
    if first.get("finished"):
        tested, exploratory = [], tested
    for one in requests[start + 1 :]:
        now, known = _pairs(groups, one), {frozenset(pair) for pair in [*tested, *exploratory]}
        new = [pair for pair in now if frozenset(pair) not in known]
        by_methods = [pair for pair in new if _is_of_new_method(pair, one, first)]
        changed = [pair for pair in new if pair not in by_methods]
        tested, exploratory = [*tested, *by_methods], [*exploratory, *changed]
        sentences.append(_describe_change(one, by_methods, changed))
    dropped = _missing(tested, _pairs(groups, requests[-1]))
    if dropped:
        sentences.append(f"Dropped later, but still tested: {_list(dropped)}.")
    return ContrastChoice(tested, exploratory, " ".join(filter(None, sentences)))


def _pairs(groups: Sequence[Group], request: Json) -> list[Pair]:
    named, labels = request.get("contrasts"), request.get("labels") or ()
    pairs = None if named is None else [(pair[0], pair[1]) for pair in named]
    rows = [one for one in groups if not labels or one.label in labels]
    return contrasts(rows, pairs, labels, request.get("defaults", 1))


def _is_of_new_method(pair: Pair, request: Json, first: Json) -> bool:
    """Return whether the default contrasts of a method that the first request lacks have it."""
    labels = first.get("labels") or ()
    return request.get("contrasts") is None and bool(labels) and not set(pair) <= set(labels)


def _missing(pairs: Iterable[Pair], others: Iterable[Pair]) -> list[Pair]:
    keys: set[Key] = {frozenset(pair) for pair in others}
    return [pair for pair in pairs if frozenset(pair) not in keys]


def _describe_first(first: Json, recorded: bool) -> str:
    """Return when the first contrasts were chosen; `recorded`: whether the folder has a record."""
    finished = first.get("finished")
    by_default = first.get("contrasts") is None
    origin = "They follow from the families of the methods. " if by_default else ""
    if finished == 0:
        return f"{origin}They were recorded before any row of this folder had finished."
    if finished is not None:
        when = f"They were first recorded when {_rows(finished)} had finished"
        return f"{origin}{when}: all are exploratory."
    which = "the first ones" if recorded else "they"
    return f"{origin}Not recorded: whether {which} were chosen before any row had finished."


def _describe_change(request: Json, by_methods: list[Pair], changed: list[Pair]) -> str:
    finished = request.get("finished")
    when = "later" if finished is None else f"when {_rows(finished)} had finished"
    parts = [f"Added with new methods {when}: {_list(by_methods)}."] if by_methods else []
    parts += [f"Chosen {when}, so exploratory: {_list(changed)}."] if changed else []
    return " ".join(parts)


def _rows(count: int) -> str:
    return f"{count} row{'s' * (count != 1)}"


def _list(pairs: Iterable[Pair]) -> str:
    return ", ".join(f"{a} − {b}" for a, b in pairs)
