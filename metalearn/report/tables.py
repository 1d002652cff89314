"""The tables and sentences of a report, made from the numbers."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from metalearn.report.figures import curves
from metalearn.report.figures.axes import by_label
from metalearn.report.figures.curves import duration
from metalearn.report.html import details, left, row, table
from metalearn.results.records import Group, Json, Run, at, mean

NONE = "–"  # not measured, or undefined; zero is a zero
BEFORE = ("tune", "search", "pretrain", "meta_train")  # phases that are paid for all tasks together


def score(value: float | None, percent: bool, like: float | None = None) -> str:
    """A percentage with one decimal, or an error with as many digits as `like`
    (itself) deserves.
    """
    if value is None:
        return NONE
    if percent:
        return f"{value * 100:.1f}"
    size = abs(value if like is None else like)
    return (
        f"{value:.3g}"
        if size >= 1000 or 0 < size < 0.01
        else f"{value:.3f}"
        if size < 1
        else f"{value:.2f}"
    )


def with_ci(value: float | None, ci95: float | None, percent: bool) -> str:
    shown = score(value, percent)
    return shown if value is None or ci95 is None else f"{shown} ± {score(ci95, percent, value)}"


def answer(groups: Sequence[Group], found: Json) -> str:
    """One sentence (HTML): which method is best, how far above scratch, and what it cost."""
    known = [group for group in groups if group.value() is not None]
    if not known:
        return (
            "No method has a defined headline value: see the share of tasks that diverged "
            "in the table."
        )
    best, up = known[0], known[0].higher_better
    line = next(entry for entry in found["summary"] if entry["label"] == best.label)
    text = f"<strong>{escape(best.label)}</strong> "
    text += "has the best mean: " if len(known) > 1 else "reaches "
    text += (
        f"{with_ci(line['value'], line['ci95_tasks'], up)} "
        f"{'% accuracy' if up else 'squared error'} "
    )
    text += (
        _after(best)
        + _against_scratch(best, known)
        + ". "
        + _against_second(known, found)
        + _price(best)
    )
    return text.strip()


def _after(group: Group) -> str:
    if not group.uses_steps:
        return "without a gradient step on the new task"
    steps = sorted({run.headline_step for run in group.runs})
    return (
        f"after {' or '.join(map(str, steps))} gradient step{'' if steps == [1] else 's'} "
        f"on each new task"
    )


def _against_scratch(best: Group, known: Sequence[Group]) -> str:
    scratch = next((group for group in known if group.method == "scratch"), None)
    mine, other = best.value(), scratch.value() if scratch else None
    if scratch is None or scratch is best or mine is None or other is None:
        return ""
    if best.higher_better:
        amount = f"{(mine - other) * 100:.1f} points above"
    else:
        amount = f"{other / mine:.1f} times less than" if mine > 0 else "less than"
    return (
        f", {amount} training from scratch "
        f"({score(other, best.higher_better)}{' %' if best.higher_better else ''})"
    )


def _against_second(known: Sequence[Group], found: Json) -> str:
    if len(known) < 2:
        return ""
    best, second = known[0].label, known[1].label
    pair = next(
        (entry for entry in found["paired"] if {entry["a"], entry["b"]} == {best, second}), None
    )
    if pair is None or pair["ci95"] is None:
        return ""
    low, high = pair["ci95"]
    if low <= 0 <= high:
        return f"Its lead over {escape(second)} is within the noise. "
    return ""


def _price(group: Group) -> str:
    names = (
        ("tune", "tuning"),
        ("search", "search"),
        ("pretrain", "pretraining"),
        ("meta_train", "meta-training"),
    )
    spent = [(word, group.once(phase, "seconds")) for phase, word in names]
    parts = [f"{duration(seconds)} of {word}" for word, seconds in spent if seconds]
    learning, _ = group.per_task_seconds()
    each = f"{duration(learning)} of learning per new task" if learning is not None else ""
    before = f"{' and '.join(parts)} beforehand" if parts else "nothing measured beforehand"
    return f"It cost {before}" + (f", and {each}." if each else ".")


def headline(groups: Sequence[Group], found: Json) -> str:
    """The main table: one row a method, best first."""
    up = groups[0].higher_better
    name = "accuracy, %" if up else "squared error"
    published = any(
        run.result["headline"].get("published") is not None
        for group in groups
        for run in group.runs
    )
    heads = [
        "method",
        f"{name}<small>± 95 % over tasks</small>",
        "95 % interval<small>new seeds and tasks</small>",
        "each seed",
        *(["published"] if published else []),
        "normalisation",
        "after steps",
        "diverged<small>share of tasks</small>",
        "AUC<small>log steps</small>",
        "IQM",
    ]
    rows = []
    for place, (group, line) in enumerate(zip(groups, found["summary"])):
        cells = [
            with_ci(line["value"], line["ci95_tasks"], up),
            _interval(group, line),
            _per_seed(line, up),
            *([left(_published(group))] if published else []),
            left(_normalisation(group)),
            _steps(group),
            share(line["diverged"]),
            score(line["auc"], up),
            score(line["iqm"], up),
        ]
        name = method_name(group, groups) + _fewer(group, groups)
        rows.append(row(name, cells, "best" if place == 0 and len(groups) > 1 else ""))
    note = (
        f'<p class="note">{NONE} means not measured; a measured zero is a zero. AUC: area '
        f"under the mean curve over "
        f"log2(1 + steps), divided by its width; IQM: mean of the middle half of the tasks.</p>"
    )
    return table(heads, rows, left=(4, 5) if published else (4,)) + note


def costs(groups: Sequence[Group]) -> str:
    """What each method cost before any new task, and on each one."""
    each = "<small>per new task</small>"
    heads = [
        "method",
        "tuning",
        "search<small>for all tasks</small>",
        "pretraining",
        "meta-training",
        "gradient steps<small>of these four</small>",
        f"learning{each}",
        f"answering{each}",
        "learning<small>one task alone</small>",
    ]
    rows = []
    for group in groups:
        cells = [
            *(_time(group.once(phase, "seconds")) for phase in BEFORE),
            _count(_gradient_steps(group)),
            *(_time(seconds) for seconds in group.per_task_seconds()),
            _time(group.learning_seconds("seconds_alone")),
        ]
        rows.append(row(method_name(group, groups), cells))
    devices = sorted({str(group.first.environment.get("device") or "") for group in groups} - {""})
    where = f" on {escape(', '.join(devices))}" if devices else ""
    note = (
        f'<p class="note">Wall-clock time{where}, mean over seeds. Learning: search and '
        f"retraining for the task where "
        "a method does so, and all steps of the longest curve; inside a batch of tasks where "
        "one was timed.</p>"
    )
    return table(heads, rows) + note


def method_name(group: Group, groups: Sequence[Group]) -> str:
    """A label (HTML) behind the dot of its colour."""
    color = curves.styles(groups)[group.label].color
    return f'<span class="dot" style="background:{color}"></span>{escape(group.label)}'


def _fewer(group: Group, groups: Sequence[Group]) -> str:
    """A mark (HTML) on a row that was tested on fewer tasks than others."""
    own = _tested_on(group)
    return f" <small>first {own} tasks</small>" if own < max(map(_tested_on, groups)) else ""


def _tested_on(group: Group) -> int:
    return min(int((run.result.get("episodes") or {}).get("count") or 0) for run in group.runs)


def _interval(group: Group, line: Json) -> str:
    """The interval over seeds and tasks; with one seed there is none."""
    ends, count = line.get("interval"), len(group.runs)
    if ends is None or count == 1:
        return f"<small>{count} seed{'s' * (count > 1)}</small>"
    return " to ".join(score(end, group.higher_better) for end in ends)


def _per_seed(line: Json, up: bool) -> str:
    values = line.get("per_seed") or []
    return ", ".join(score(value, up) for value in values) or NONE


def _steps(group: Group) -> str:
    if not group.uses_steps:
        return "no steps"
    return ", ".join(str(step) for step in sorted({run.headline_step for run in group.runs}))


def _normalisation(group: Group) -> str:
    policies = ", ".join(sorted({str(run.result.get("normalisation")) for run in group.runs}))
    transductive = any(run.result.get("transductive") for run in group.runs)
    return escape(policies) + (" <small>transductive</small>" if transductive else "")


def _published(group: Group) -> str:
    line = group.first.result["headline"]
    shown = with_ci(line.get("published"), line.get("published_ci95"), group.higher_better)
    source = line.get("source")
    return shown + (
        f"<br><small>{escape(str(source))}</small>"
        if source and line.get("published") is not None
        else ""
    )


def _time(seconds: float | None) -> str:
    return NONE if seconds is None else duration(seconds) if seconds else "0"


def _count(count: float | None) -> str:
    return NONE if count is None else f"{count:,.0f}"


def _gradient_steps(group: Group) -> float | None:
    """Gradient steps before any new task: tuning, search, pretraining and
    meta-training together.
    """
    counts = [group.once(phase, "gradient_steps") for phase in BEFORE]
    known = [count for count in counts if count is not None]
    return sum(known) if known else None


def share(value: float | None) -> str:
    return NONE if value is None else "0" if value == 0 else f"{value * 100:.2g} %"


def points(groups: Sequence[Group], found: Json) -> str:
    """Every point of every curve, mean and seed by seed."""
    up = groups[0].higher_better
    metric = groups[0].metric
    kinds = [(metric, "accuracy, %" if up else "squared error, all tasks", up)]
    kinds += (
        [("loss", "cross-entropy", False)]
        if up
        else [
            ("loss_median", "squared error, median task", False),
            ("loss_converged", "squared error, tasks that did not diverge", False),
        ]
    )
    drawn = by_label(found, "curves")
    opened = {metric} | {"loss_converged" for line in drawn.values() if line["converged_only"]}
    parts = [
        _points_of(groups, drawn, name, title, percent, name in opened)
        for name, title, percent in kinds
    ]
    if any(group.first.test.get("diverged") for group in groups):
        parts.append(
            _points_of(groups, drawn, "diverged", "share of tasks that diverged, %", True, False)
        )
    return "\n".join(part for part in parts if part)


def _points_of(
    groups: Sequence[Group],
    drawn: dict[str, Json],
    name: str,
    title: str,
    percent: bool,
    opened: bool,
) -> str:
    if not any(name in run.test for group in groups for run in group.runs):
        return ""
    steps = sorted({step for group in groups for run in group.runs for step in run.steps})
    rows = []
    for group in groups:
        if len(group.runs) > 1:
            rows.append(_mean_row(group, drawn.get(group.label), name, steps, percent))
        rows += [_point_row(group.label, run, name, steps, percent) for run in group.runs]
        published = _published_curve(group) if name == group.metric else {}
        if published:
            cells = [score(published.get(step), percent) for step in steps]
            rows.append(row(escape(group.label), [left("published"), *cells], "paper"))
    heads = ["method", "seed", *(f"step {step}" for step in steps)]
    return details(
        f"{title[0].upper()}{title[1:]}, ± 95 % over tasks"
        if name != "diverged"
        else title.capitalize(),
        table(heads, rows, left=(1,)),
        opened=opened,
    )


def _mean_row(
    group: Group, drawn: Json | None, name: str, steps: Sequence[int], percent: bool
) -> str:
    found = drawn if name == group.metric else None
    cells = []
    for step in steps:
        values = [
            at(run.test.get(name), run.steps.index(step)) if step in run.steps else None
            for run in group.runs
        ]
        width = None
        if found is not None and step in found["steps"] and not found["converged_only"]:
            width = found["ci95"][found["steps"].index(step)]
        cells.append(f"<strong>{with_ci(mean(values), width, percent)}</strong>")
    return row(escape(group.label), [left("mean"), *cells])


def _point_row(label: str, run: Run, name: str, steps: Sequence[int], percent: bool) -> str:
    cells = []
    for step in steps:
        place = run.steps.index(step) if step in run.steps else None
        if place is None:
            cells.append("")
            continue
        cells.append(
            with_ci(at(run.test.get(name), place), at(run.test.get(f"{name}_ci95"), place), percent)
        )
    return row(escape(label), [left(str(run.seed)), *cells])


def _published_curve(group: Group) -> dict[int, float]:
    values = group.first.result["headline"].get("published_curve") or {}
    return {int(step): float(value) for step, value in values.items() if value is not None}


def differences(found: Json, up: bool) -> str:
    """Paired differences: contrasts with their test, then all other pairs as estimates."""
    unit = "points" if up else "squared error"
    side = f"<small>a is better {'above' if up else 'below'} 0</small>"
    heads = ["a", "b", f"a − b, {unit}{side}", "95 % interval", "p<small>Holm</small>", "reading"]
    rows = []
    for entry in sorted(found["paired"], key=lambda entry: not entry.get("contrast")):
        cells = [left(escape(entry["b"]))]
        if entry["difference"] is None:
            cells += [NONE, NONE, NONE, left(escape(str(entry.get("why") or "undefined")))]
        else:
            low, high = entry["ci95"]
            p = entry.get("p_holm")
            interval = f"{signed(low, up)} to {signed(high, up)}"
            shown = NONE if p is None else f"{p:.3f}"
            cells += [signed(entry["difference"], up), interval, shown, left(_reading(entry, up))]
        rows.append(row(escape(entry["a"]), cells))
    return table(heads, rows, left=(1, 5))


def _reading(entry: Json, up: bool) -> str:
    """What a paired difference says (HTML): a verdict for a contrast with enough seeds alone."""
    if entry["p"] is None:
        return "too few seeds for a test"
    if not entry.get("contrast"):
        return "estimate, not tested"
    if entry["p_holm"] > 0.05:
        return "not told apart"
    better = entry["a"] if (entry["difference"] > 0) == up else entry["b"]
    return f"{escape(better)} is better"


def signed(value: float, up: bool) -> str:
    text = f"{value * 100:+.2f}" if up else f"{value:+.3g}"
    return text.replace("-", "−")


def check_table(found: Json) -> str:
    rows = []
    for entry in sorted(found["checks"], key=lambda check: check["passed"]):
        verdict = (
            '<span class="pass">✓ passed</span>'
            if entry["passed"]
            else '<span class="fail">✗ failed</span>'
        )
        rows.append(
            row(
                f'<span class="long">{escape(entry["name"])}</span>',
                [left(verdict), f'<td class="wrap">{escape(entry["why"])}</td>'],
            )
        )
    return table(["check", "verdict", "why"], rows, left=(1, 2))


def run_table(groups: Sequence[Group]) -> str:
    """Every run by itself: the numbers trace back to these."""
    up = groups[0].higher_better
    heads = [
        "run",
        "seed",
        "accuracy, %" if up else "squared error",
        "step",
        "diverged",
        "checkpoint",
        "tuned to",
        "config",
        "git",
    ]
    rows = []
    for group in groups:
        for run in group.runs:
            line = run.result["headline"]
            cells = [
                left(str(run.seed)),
                with_ci(at([line.get("value")], 0), at([line.get("ci95")], 0), up),
                _steps(Group(group.label, [run])),
                share(at(run.test.get("diverged"), run.headline_point)),
                *(
                    left(escape(text))
                    for text in (
                        str(run.result.get("checkpoint")),
                        _tuned(run),
                        str(run.result.get("config_hash"))[:10],
                        str(run.result.get("git"))[:12],
                    )
                ),
            ]
            rows.append(row(escape(group.label), cells))
    return table(heads, rows, left=(1, 5, 6, 7, 8))


def _tuned(run: Run) -> str:
    """The chosen fields; the headline step has its own column, and what lies on an edge its
    check.
    """
    tuned = run.result.get("tuned")
    if not isinstance(tuned, dict):
        return NONE
    kept = {key: value for key, value in tuned.items() if key not in ("headline_step", "on_edge")}
    pairs = [
        f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
        for key, value in kept.items()
    ]
    return ", ".join(pairs) or NONE
