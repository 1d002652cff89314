"""The tables of a report about cost: solved tasks, break-even, budgets, what selection was worth,
the ledger.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from metalearn.evaluate.accounts import EACH, ONCE, Axis, per_task
from metalearn.report.figures.axes import by_label
from metalearn.report.figures.cost import amount, operations
from metalearn.report.html import details, left, row, table
from metalearn.report.tables import NONE, method_name, score
from metalearn.results.costs import AXES
from metalearn.results.records import Group, Json, Run, mean

VERDICTS = {
    "pays": "pays",
    "always": "always",
    "never": "never",
    "not_reached": "not reached",
    "undecided": "undecided",
    "same": "the same",
}
WORDS = {
    "tune": "tuning",
    "pretrain": "pretraining",
    "meta_train": "meta-training",
    "setup": "set-up",
}


def cost(value: float | None, axis: Axis) -> str:
    """A cost for people; not measured is a dash, zero a zero."""
    return NONE if value is None else "0" if value == 0 else amount(value, axis)


def solved(groups: Sequence[Group], compared: Json) -> str:
    """Share of tasks solved, and their price, one row a method."""
    price, half = "<small>a solved task</small>", "<small>half solved by</small>"
    heads = [
        "method",
        "tasks solved",
        f"FLOPs{price}",
        f"time{price}",
        f"FLOPs{half}",
        f"time{half}",
        "FLOPs<small>mean, to the cap</small>",
        "cap",
    ]
    rows = []
    known = by_label(compared, "solved")
    for group in groups:
        found = known.get(group.label)
        if found is None:
            rows.append(row(method_name(group, groups), [NONE] * (len(heads) - 1)))
            continue
        cells = [
            f"{found['share']:.1%}".replace("%", " %"),
            *(cost(found["per_solved"][axis], axis) for axis in AXES),
            *(cost(found["median"][axis], axis) for axis in AXES),
            cost(found["restricted"]["flops"], "flops"),
            f"{found['cap']} steps" if group.uses_steps else "no steps",
        ]
        rows.append(row(method_name(group, groups), cells))
    note = (
        '<p class="note">A task is solved if it reaches the target at its method’s headline step, '
        "which validation tasks chose (of a method that starts at chance, at step 1 or later). A "
        "solved task’s cost: all cost of learning up to that step, that of the failed tasks too, "
        "over the tasks solved. Half solved, and the mean to the cap: each task up to the first "
        "point from which on it stays at the target, as if one knew when to stop; Kaplan-Meier, "
        f"{NONE} where fewer than half ever are.</p>"
    )
    return table(heads, rows) + note


def break_even(found: Json, axis: Axis, common: bool = False) -> str:
    """Every pair: whether the dearer start is repaid, and after how many new tasks; `common`: at
    the pair's level.
    """
    pairs = [
        entry
        for entry in found["break_even_common" if common else "break_even"]
        if entry["axis"] == axis
    ]
    several = any(entry["leave_one_out"] for entry in pairs)
    priced = all(entry.get("variants") for entry in pairs)
    heads = [
        "dearer start<small>against</small>",
        f"level<small>{'that both reach' if common else 'to be reached'}</small>",
        "verdict",
        "pays from<small>new task</small>",
        "95 % interval<small>of that number</small>",
        *(["without tuning", "with answering"] if priced else []),
        *(["without<small>one seed each</small>"] if several else []),
    ]
    rows = []
    order = list(VERDICTS)
    for entry in sorted(pairs, key=lambda entry: order.index(entry["verdict"])):
        level = entry.get("level", found["target"]["value"])
        cells = [
            _level(level, found["target"]["metric"]),
            f'<td class="wrap '
            f'short"><strong>{VERDICTS[entry["verdict"]]}</strong>{_why(entry)}</td>',
            _tasks(entry["tasks"]) if entry["verdict"] in ("pays", "always") else NONE,
            _interval(entry["ci95"]),
            *([_variant(entry, one) for one in entry["variants"]] if priced else []),
            *([_without_one(entry)] if several else []),
        ]
        rows.append(row(f"{escape(entry['a'])}<small>against {escape(entry['b'])}</small>", cells))
    return table(heads, rows, left=(2, 7 if priced else 5))


def _without_one(entry: Json) -> str:
    counts = [_tasks(one["tasks"], "never") for one in entry["leave_one_out"]]
    return left(", ".join(counts) or NONE)


def _variant(entry: Json, one: Json) -> str:
    """Verdict and number of tasks under another price."""
    words = VERDICTS[one["verdict"]]
    swapped = " (roles swapped)" if one["a"] != entry["a"] else ""
    shown = f" {_tasks(one['tasks'])}" if one["verdict"] == "pays" else ""
    return f"{words}{shown}{swapped}"


def _why(entry: Json) -> str:
    """What a verdict does not say by itself (HTML); of the others the note below the tables says
    what they mean.
    """
    told = entry["verdict"] in ("not_reached", "undecided")
    return f": <small>{escape(entry['why'])}</small>" if told else ""


def _level(value: float | None, metric: str) -> str:
    return (
        NONE
        if value is None
        else f"{value * 100:.3g} %"
        if metric == "accuracy"
        else f"{value:.3g}"
    )


def _tasks(value: float | None, otherwise: str = NONE) -> str:
    """A number of tasks, always rounded up: before it the price is not yet paid back."""
    if value is None or value == float("inf"):
        return otherwise
    return f"{int(-(-value // 1)):,}" if value < 1e6 else operations(value)


def _interval(ends: Sequence[float | None] | None) -> str:
    if ends is None:
        return NONE
    low, high = (_tasks(end, "never") for end in ends)
    return low if low == high else f"{low} to {high}"


def budgets(groups: Sequence[Group], compared: Json) -> str:
    """The best score on validation tasks that each method had reached within a total budget."""
    found = compared.get("equal_compute")
    if found is None:
        return ""
    up, tasks = groups[0].higher_better, found["tasks"]
    heads = ["method", *(f"{amount(budget, 'flops')}" for budget in found["budgets"])]
    known = by_label({"rows": found["rows"]}, "rows")
    tops = [_best(column, up) for column in zip(*(row["values"] for row in found["rows"]))]
    rows = []
    for group in groups:
        values = known[group.label]["values"]
        shown = [score(value, up) for value in values]
        cells = [
            f"<strong>{text}</strong>" if value is not None and value == top else text
            for text, value, top in zip(shown, values, tops)
        ]
        rows.append(row(method_name(group, groups), cells))
    unit = "Accuracy, %, higher is better" if up else "Squared error, lower is better"
    note = (
        f'<p class="note">{unit}, on validation tasks: the best look at them by the time that '
        f"tuning, training so far "
        f"and learning {tasks:,} new tasks together had taken the FLOPs at the head of the "
        f"column. {NONE}: more than "
        "that was spent before the first look. The best of a column is bold.</p>"
    )
    return table(heads, rows) + note


def _best(values: Sequence[float | None], up: bool) -> float | None:
    known = [value for value in values if value is not None]
    return (max if up else min)(known, default=None)


def ledger(groups: Sequence[Group]) -> str:
    """FLOPs and seconds by phase, then everything else."""
    once = ["tune", "pretrain", "meta_train", "search"]
    each = "<small>one new task</small>"
    heads = [
        "method",
        *(f"{WORDS.get(phase, phase)}<small>beforehand</small>" for phase in once),
        *(f"{phase}{each}" for phase in EACH),
    ]
    parts = []
    for title, names in (
        ("FLOPs of matrix products and convolutions", ("flops", "flops")),
        ("FLOPs of elementwise work", ("flops_elementwise", "flops_elementwise")),
        ("FLOPs of the chosen architectures alone", ("flops_architecture", "flops_architecture")),
        ("Seconds; of new tasks in a batch (throughput)", ("seconds", "seconds_batched")),
        ("Seconds; of one new task by itself (latency)", ("seconds", "seconds_alone")),
    ):
        axis: Axis = "seconds" if "seconds" in names[0] else "flops"
        rows = []
        for group in groups:
            cells = [_short(group.once(phase, names[0]), axis) for phase in once]
            cells += [_short(group.each(phase, names[1]), axis) for phase in EACH]
            rows.append(row(method_name(group, groups), cells))
        opened = names in (("flops", "flops"), ("seconds", "seconds_batched"))
        parts.append(details(title, table(heads, rows), opened=opened))
    return "\n".join(
        [*parts, details("Memory, energy, steps, examples, labels, candidates", _counts(groups))]
    )


def _entries(run: Run, phase: str) -> tuple[Json, Json]:
    """(what was spent once, what one new task takes) of one phase; empty where nothing of that kind
    was.
    """
    entry = run.phase(phase)
    if not per_task(entry):
        return entry, {}
    return entry.get("once") or {}, entry


def _short(value: float | None, axis: Axis) -> str:
    """A cost in a table whose title says the unit: 12.3 M, 4.6 s."""
    return operations(value) if axis == "flops" and value is not None else cost(value, axis)


def _counts(groups: Sequence[Group]) -> str:
    heads = [
        "method",
        "set-up<small>imports, data, compiling, measuring</small>",
        "peak memory",
        "energy",
        "gradient steps<small>beforehand</small>",
        "examples<small>beforehand</small>",
        "labels<small>across tasks</small>",
        "labels<small>of one new task</small>",
        "candidates<small>in all, or a task</small>",
    ]
    rows = []
    for group in groups:
        cells = [
            cost(group.once("setup", "seconds"), "seconds"),
            _peak(group),
            _energy(group),
            *(_whole(_sum(group, ONCE, name)) for name in ("gradient_steps", "examples", "labels")),
            _whole(_largest(group, "labels")),
            _whole(_largest(group, "candidates", _sum(group, ONCE, "candidates"))),
        ]
        rows.append(row(method_name(group, groups), cells))
    note = (
        '<p class="note">Peak memory of a run on a CPU is that of the whole process, torch '
        "included.</p>"
    )
    return table(heads, rows) + note


def _sum(group: Group, phases: Sequence[str], name: str) -> float | None:
    values = [
        mean([_entries(run, phase)[0].get(name, 0) for run in group.runs]) for phase in phases
    ]
    return (
        sum(value for value in values if value is not None)
        if any(value is not None for value in values)
        else None
    )


def _largest(group: Group, name: str, at_least: float | None = None) -> float | None:
    values = [mean([_entries(run, phase)[1].get(name, 0) for run in group.runs]) for phase in EACH]
    return max((value for value in (*values, at_least) if value is not None), default=None)


def _peak(group: Group) -> str:
    peaks = [entry.get("peak_bytes") for run in group.runs for entry in run.cost.values() if entry]
    known = [peak for peak in peaks if peak]
    return f"{max(known) / 2**30:.2g} GiB" if known else NONE


def _energy(group: Group) -> str:
    values = [_run_energy(run) for run in group.runs]
    found = mean(values)
    return NONE if found is None else f"{found / 1000:.3g} kJ"


def _run_energy(run: Run) -> float | None:
    """Joules of all that was measured: of new tasks times the tasks, and what was spent for all of
    them together.
    """
    shared = [entry["once"] for entry in run.cost.values() if entry and entry.get("once")]
    found = [
        entry["energy_joules"] * (entry.get("tasks", 0) if per_task(entry) else 1)
        for entry in [*run.cost.values(), *shared]
        if entry and entry.get("energy_joules") is not None
    ]
    return sum(found) if found else None


def _whole(value: float | None) -> str:
    return NONE if value is None else f"{value:,.0f}"


def totals(groups: Sequence[Group], compared: Json) -> str:
    """What all of it came to, and who is beaten by nobody."""
    found = by_label(compared, "total_cost")
    if not found:
        return ""
    tasks = next(iter(found.values()))["tasks"]
    up = groups[0].higher_better
    heads = [
        "method",
        "accuracy, %" if up else "squared error",
        "FLOPs in all",
        "on the front",
        "seconds in all",
        "on the front",
    ]
    rows = []
    for group in groups:
        cells = [score(group.value(), up)]
        for axis in AXES:
            cells += [
                cost(found[group.label][axis], axis),
                "yes" if found[group.label]["on_front"][axis] else "no",
            ]
        rows.append(row(method_name(group, groups), cells))
    note = (
        f'<p class="note">In all: tuning, training, search, and learning {tasks:,} new tasks '
        f"up to the headline step. "
        "On the front: no other method is at most as dear and at least as good.</p>"
    )
    return table(heads, rows) + note
