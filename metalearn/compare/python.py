"""Training and comparing from Python: components in the place of an experiment file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from metalearn.compare.compare import OTHER
from metalearn.compare.compare import compare as compare_plan
from metalearn.compare.comparison import Comparison
from metalearn.compare.controls import with_controls
from metalearn.component import Component, MethodComponent
from metalearn.config.build import hold_loss
from metalearn.config.experiment import Plan, parse
from metalearn.config.plugins import KINDS, register
from metalearn.config.registry import TABLES
from metalearn.errors import ConfigError
from metalearn.in_memory import Held
from metalearn.logger import log
from metalearn.models.module import as_model
from metalearn.run.directory import run_folders, status
from metalearn.run.run import run_one
from metalearn.run.trained.load import LoadedRun, load_run
from metalearn.tasks.given import as_tasks

Loss = str | Callable[..., Any] | None
IN_RUN = ("meta_steps", "tasks_per_step", "examples_per_step", "seeds", "device", "executor")
IN_EVALUATE = ("episodes", "steps", "headline_step", "target", "targets")


def compare(
    methods: Mapping[str, MethodComponent],
    *,
    task: Any,
    model: Any = None,
    out: str | Path | None = None,
    name: str = "comparison",
    loss: Loss = None,
    contrasts: Sequence[Sequence[str]] | None = None,
    **options: Any,
) -> Comparison:
    """Run several methods, by label, on the same tasks; what is finished in `out` is left alone.

    task: a component, or task sources of one's own: one by split, a function of the split, or one.
    model: a component, a torch module, a class or function that makes one, or what from_module
        gives; None: that of the task.
    loss: of the tasks: a name, or a function (predictions, y) -> the loss of each example.
    options: meta_steps, tasks_per_step, examples_per_step, seeds, device, executor; of the test
        episodes, steps, headline_step, target, targets; or whole sections run, evaluate, budget as
        mappings.

    A validation has as many tasks as the test where `episodes` is given, at most 200.

    An interrupted comparison goes on where it ended when it is called again. Raises ConfigError
    with all problems before anything is written."""
    rows = [{**_fields(method, "methods"), "label": label} for label, method in methods.items()]
    sections, given = _sections(name, task, model, loss, options)
    if contrasts is not None:
        sections["contrasts"] = [list(pair) for pair in contrasts]
    plan, notes = with_controls(parse({**sections, "methods": rows}))
    for note in notes:
        log.info(note)
    folder = Path("runs") / name if out is None else Path(out)
    compare_plan(plan, folder)
    return Comparison(folder, plan, given)


def train(
    method: MethodComponent,
    *,
    task: Any,
    model: Any = None,
    out: str | Path | None = None,
    name: str | None = None,
    loss: Loss = None,
    **options: Any,
) -> Any:
    """Train and test one method: a LoadedRun, or a list of them for several seeds.

    Arguments as of `compare`; `out` is by default runs/<name of the method>. A finished run of the
    same config is loaded, an interrupted one goes on.
    """
    fields = _fields(method, "methods")
    title = name or str(fields["name"])
    sections, given = _sections(title, task, model, loss, options)
    plan: Plan = parse({**sections, "method": fields})
    experiment, folder = plan.experiments[0], Path("runs") / title if out is None else Path(out)
    todo = [(experiment.with_seed(seed), where) for seed, where in run_folders(experiment, folder)]
    other = [where for one, where in todo if status(where, one) == "other"]
    if other:
        raise ConfigError(*((str(where), OTHER) for where in other))
    runs: list[LoadedRun] = []
    for one, where in todo:
        if status(where, one) != "finished":
            run_one(one, where)
        runs.append(load_run(where))
    del given
    return runs[0] if len(runs) == 1 else runs


def _sections(
    name: str, task: Any, model: Any, loss: Loss, options: Mapping[str, Any]
) -> tuple[dict[str, Any], list[Any]]:
    """The sections of a file but for its methods, and what has to live as long as they are used."""
    task = as_tasks(task)
    data: dict[str, Any] = {"experiment": name, "task": _fields(task, "tasks")}
    given: list[Any] = [task]
    if model is not None:
        component = as_model(model)
        data["model"], given = _fields(component, "models"), [*given, component]
    if loss is not None:
        data["loss"], function = _loss(loss)
        given.append(function)
    rest = dict(options)
    for section, names in (("run", IN_RUN), ("evaluate", IN_EVALUATE)):
        values = dict(rest.pop(section, None) or {})
        values |= {key: _plain(rest.pop(key)) for key in names if key in rest}
        data[section] = values
    if "episodes" in options and "validate" not in data["run"]:
        data["run"]["validate"] = {"episodes": max(2, min(200, int(options["episodes"])))}
    data["budget"] = rest.pop("budget", None) or {}
    if rest:
        known = ", ".join((*IN_RUN, *IN_EVALUATE, "run", "evaluate", "budget"))
        raise ConfigError(*((key, f"is no option; they are: {known}") for key in rest))
    return data, given


def _loss(loss: Any) -> tuple[str, Held | None]:
    """(what a config holds, what keeps a function alive)."""
    if isinstance(loss, str):
        return loss, None
    if not callable(loss):
        raise ConfigError(("loss", f"is a name or a function, not {loss!r}"))
    return hold_loss(loss)


def _fields(component: Any, table: str) -> dict[str, Any]:
    """A component as a section of a file; one that no table knows is registered."""
    wanted = KINDS[table]
    if isinstance(component, type) and issubclass(component, wanted):
        component = component()
    if not isinstance(component, Component) or not isinstance(component, wanted):
        text = f"{component!r} is no {wanted.__name__}, such as those of metalearn.{_PLACES[table]}"
        raise ConfigError((table.removesuffix("s"), text))
    fields = component.model_dump(mode="json")
    tag = fields["source" if table == "tasks" else "name"]
    if TABLES[table].get(tag) is not type(component):
        register(table, type(component))
    return fields


_PLACES = {"tasks": "tasks", "models": "models", "methods": "algorithms and metalearn.transfer"}


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, (tuple, range)) else value
