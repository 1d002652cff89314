"""`protocol` of comparison.json: how methods were trained, tuned and tested, from their configs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from metalearn.results.design.tuning import stage_trials
from metalearn.results.records import Group, Json, Run

MOST_NAMES = 20  # of classes or groups of a split
RATES = ("lr", "inner_lr", "arch_lr", "rate_range", "step_size")  # fields that one would tune


def protocol(groups: Sequence[Group], levels: Sequence[float]) -> list[Json]:
    """Return sentences by topic: {"topic", "text"}, without topics that do not apply to the
    rows."""
    topics = {
        "seeds": _describe_counts(groups, lambda group: len(group.runs), "seed"),
        "starts": _by_value(groups, _describe_start),
        "test tasks": _describe_counts(groups, lambda group: group.test_tasks, "task"),
        "split": _by_value(groups, _describe_split),
        "validation tasks": _by_value(groups, _describe_validation),
        "queries": _describe_queries(groups[0].first),
        "support": describe_support(groups[0].first),
        "support of training tasks": _by_value(groups, _describe_training_order),
        "levels": ", ".join(f"{level:.4g}" for level in levels),
        "normalisation": _describe_normalisation(groups),
        "steps on a new task": _describe_headline(groups),
        "budget of tuning": _describe_budget(groups),
        "tuned": _describe_tuned(groups),
        "not tuned": _describe_not_tuned(groups),
        "schedules": _by_value(groups, _describe_schedule),
        "shots of training tasks": _describe_shots(groups),
        "training classes": _by_value(groups, _describe_training_classes),
        "minibatches": _describe_minibatches(groups),
        "seconds of new tasks": _by_value(groups, _describe_timing),
    }
    return [{"topic": topic, "text": text} for topic, text in topics.items() if text]


def _by_value(groups: Sequence[Group], of: Callable[[Run], str]) -> str:
    """Return `value: labels; value: labels`, or the value alone if all rows have it.

    A row whose seeds have several values is named with the seeds of each."""
    owners_by_value: dict[str, list[str]] = {}
    for group in groups:
        seeds: dict[str, list[int]] = {}
        for run in group.runs:
            seeds.setdefault(of(run), []).append(run.seed)
        for value, own in seeds.items():
            if value:
                name = group.label if len(seeds) == 1 else _name_seeds(group.label, own)
                owners_by_value.setdefault(value, []).append(name)
    labels = [group.label for group in groups]
    if len(labels) > 1 and list(owners_by_value.values()) == [labels]:
        return f"all methods: {next(iter(owners_by_value))}"
    return "; ".join(f"{value}: {', '.join(names)}" for value, names in owners_by_value.items())


def _name_seeds(label: str, seeds: Sequence[int]) -> str:
    return f"{label} (seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))})"


def _describe_counts(groups: Sequence[Group], count: Callable[[Group], int], unit: str) -> str:
    most = max(map(count, groups))
    fewer = [f"{group.label} {count(group)}" for group in groups if count(group) < most]
    rest = f"; fewer: {', '.join(fewer)}" if fewer else ""
    return f"{most} {unit}{'s' if most != 1 else ''} per method{rest}"


def _section(run: Run, name: str) -> Json:
    section = run.config.get(name)
    return section if isinstance(section, dict) else {}


def _learning_method(run: Run) -> Json:
    """Return the config of the method that learns: that of a search is the one it contains."""
    method = _section(run, "method")
    inside = method.get("contains")
    return inside if isinstance(inside, dict) else method


def _describe_start(run: Run) -> str:
    """Return the method whose trained network a run starts from; empty if there is none."""
    start = _section(run, "method").get("start")
    return f"from the network of {start}, with its cost" if start else ""


def _describe_validation(run: Run) -> str:
    section = _section(run, "run").get("validate")
    count = section.get("episodes") if isinstance(section, dict) else None
    if not count:
        return ""
    validations = {line["step"] for line in run.valid("valid")}
    choice = run.result.get("checkpoint") if len(validations) > 1 else None
    chosen = {"best": "the checkpoint", "ensemble": "the checkpoints of the ensemble"}
    also = f", which also choose {chosen[choice]}" if choice in chosen else ""
    return f"{count} tasks{also}"


def _describe_split(run: Run) -> str:
    """Return which classes or groups are in the test and the validation split, if on record."""
    test = run.result.get("test_split")
    if not test:
        return ""
    kind = "classes" if run.metric == "accuracy" else "groups"
    parts = [f"{kind} are split {test['rule']}", f"test: {_list_names(test)}"]
    if valid := (run.result.get("validation") or {}).get("split"):
        parts.append(f"validation: {_list_names(valid)}")
    return "; ".join(parts)


def _list_names(split: Json) -> str:
    """Return the number of classes or groups of a split, and the names of the first ones."""
    names, count = split["names"][:MOST_NAMES], split["count"]
    more = f" and {count - len(names)} more" if count > len(names) else ""
    return f"{count} ({', '.join(names)}{more})"


def _describe_queries(run: Run) -> str:
    task = run.task
    ways, queries = int(task.get("ways") or 0), int(task.get("queries") or 0)
    if run.metric != "accuracy" or not ways * queries:
        return f"{queries} per task" if queries else ""
    return f"{queries} per class, so the accuracy of a task is a multiple of 1/{ways * queries}"


def describe_support(run: Run) -> str:
    """Return which rows are the support set of a test task; empty if they are drawn at random."""
    order, shots = run.task.get("order"), run.task.get("shots")
    if order is None:
        return ""
    low, high = (run.task.get("ranges") or {}).get("shots") or (shots, shots)
    count = f"{low}" if low == high else f"{low} to {high}"
    rows = f"{count} rows" if high != 1 else "row"
    kind = "class" if run.metric == "accuracy" else "group"
    after = "them" if low == high else f"the first {high}"
    text = f"the first {rows} of each {kind} by {order}; queries are drawn from the rows after"
    return f"{text} {after}"


def _describe_training_order(run: Run) -> str:
    """Describe the support rows of training tasks, if they are chosen otherwise than at test."""
    own, test = (run.result.get("facts") or {}).get("support_order"), run.task.get("order")
    learns = run.traits.get("consumes") == "episodes" and _section(run, "run").get("meta_steps")
    if own == test or not learns:
        return ""
    return "drawn at random" if own is None else f"the first rows by {own}"


def _describe_normalisation(groups: Sequence[Group]) -> str:
    def policy(run: Run) -> str:
        name = str(run.result.get("normalisation") or "")
        return f"{name} (transductive)" if name and run.result.get("transductive") else name

    return _by_value(groups, policy)


def _describe_headline(groups: Sequence[Group]) -> str:
    def choice(run: Run) -> str:
        if not run.traits.get("uses_steps", True):
            return ""
        tuned_step = (run.result.get("tuned") or {}).get("headline_step")
        if tuned_step is not None:
            return "the best of the curve on validation tasks"
        return f"{run.result['headline']['step']}, set before the run"

    return _by_value(groups, choice)


def _describe_budget(groups: Sequence[Group]) -> str:
    def words(run: Run) -> str:
        budget = _section(run, "budget")
        if not _section(run, "method").get("tune"):
            return ""
        if budget.get("flops"):
            return f"{float(budget['flops']):.3g} FLOPs"
        stages = stage_trials(run)
        counts = [f"{n} trials (all values)" if end else f"{n} trials" for n, _, end in stages]
        return " and ".join(dict.fromkeys(counts))

    tuned_groups = [group for group in groups if any(map(words, group.runs))]
    if not tuned_groups:
        return ""
    both = [
        group.label
        for group in tuned_groups
        if any(len(stage_trials(run)) > 1 for run in group.runs)
    ]
    text = _by_value(groups, words)
    if both:
        text += f"; for training options and for options on new tasks each: {', '.join(both)}"
    runs = [run for group in tuned_groups for run in group.runs]
    if any(_section(run, "budget").get("once") for run in runs):
        text += "; tuned with the first seed only: intervals are conditional on this tuning"
    elif any(len(group.runs) > 1 for group in tuned_groups):
        text += "; tuned separately for each seed"
    return text


def _describe_tuned(groups: Sequence[Group]) -> str:
    def fields(run: Run) -> str:
        tune = _section(run, "method").get("tune") or {}
        return ", ".join(f"{name} {_format_range(span)}" for name, span in tune.items())

    return _by_value(groups, fields)


def _format_range(span: Any) -> str:
    if not isinstance(span, dict):
        return ""
    if span.get("values") is not None:
        return f"of {len(span['values'])} values"
    scale = " (log)" if span.get("distribution") == "log_uniform" else ""
    return f"{span.get('min'):g} to {span.get('max'):g}{scale}"


def _describe_not_tuned(groups: Sequence[Group]) -> str:
    def rates(run: Run) -> str:
        tuned_fields = set(_section(run, "method").get("tune") or {})
        trains = bool(_section(run, "run").get("meta_steps"))
        fields = [
            f"{name} {value}"
            for name, value in _rates(_learning_method(run))
            if name not in tuned_fields and name.split(".")[0] not in tuned_fields
            if trains or not name.startswith("outer.")
        ]
        return ", ".join(fields)

    return _by_value(groups, rates)


def _rates(fields: Json, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in fields.items():
        if isinstance(value, dict) and not prefix and name in ("outer", "rule"):
            yield from _rates(value, f"{name}.")
        elif name in RATES:
            yield f"{prefix}{name}", value


def _describe_schedule(run: Run) -> str:
    options, consumes = _section(run, "run"), run.traits.get("consumes")
    steps = options.get("meta_steps")
    if consumes == "nothing" or not steps:
        return ""
    many, what = options.get("tasks_per_step"), "tasks"
    if consumes == "examples":
        many, what = options.get("examples_per_step"), "examples"
    return f"{steps} steps of {many} {what}"


def _describe_shots(groups: Sequence[Group]) -> str:
    def shots(run: Run) -> str:
        own, test = _section(run, "task").get("shots"), run.task.get("shots")
        learns = run.traits.get("consumes") == "episodes" and _section(run, "run").get("meta_steps")
        differ = learns and own not in (None, test)
        return f"{own} in training, {test} at test" if differ else ""

    return _by_value(groups, shots)


def _describe_training_classes(run: Run) -> str:
    facts = run.result.get("facts") or {}
    return "those of training and validation" if facts.get("train_on_valid") else ""


def _describe_timing(run: Run) -> str:
    timing = run.result.get("timing") or {}
    if not timing:
        return ""
    text = f"timed in {timing['rounds']} interleaved rounds over all methods, after training"
    return f"{text}, one seed per method in each round" if timing.get("of_seed") else text


def _describe_minibatches(groups: Sequence[Group]) -> str:
    def batch(run: Run) -> str:
        size = _learning_method(run).get("adapt_batch")
        return f"{size} support examples per step on a new task" if size else ""

    return _by_value(groups, batch)
