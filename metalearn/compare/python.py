"""Training and comparing from Python: components instead of an experiment file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from metalearn.compare.compare import compare as compare_plan
from metalearn.compare.comparison import Comparison
from metalearn.compare.controls import with_controls
from metalearn.compare.files import is_file, read_plan, reject_sections
from metalearn.compare.reproduce import reproduce as run_published
from metalearn.component import Component, MethodComponent
from metalearn.config.build import hold_loss
from metalearn.config.experiment import Experiment, Plan, parse
from metalearn.config.plugins import KINDS, register
from metalearn.config.registry import TABLES
from metalearn.errors import ConfigError, did_you_mean
from metalearn.in_memory import Held
from metalearn.logger import log
from metalearn.models.module import as_model
from metalearn.report.run_figures import Runs
from metalearn.results.shown import Rows
from metalearn.run.directory import UNFINISHED, resumable, run_folders, status, why_other
from metalearn.run.run import run_one
from metalearn.run.trained.load import LoadedRun, load_run
from metalearn.tasks.given import as_tasks

Loss = str | Callable[..., Any] | None
IN_RUN = ("meta_steps", "tasks_per_step", "examples_per_step", "seeds", "device", "executor")
IN_EVALUATE = ("episodes", "steps", "headline_step", "target", "targets")


def compare(
    methods: Any,
    *,
    task: Any = None,
    model: Any = None,
    out: str | Path | None = None,
    name: str = "comparison",
    loss: Loss = None,
    contrasts: Sequence[Sequence[str]] | None = None,
    overrides: Sequence[str] = (),
    **options: Any,
) -> Comparison:
    """Run several labelled methods on the same tasks. Finished runs in `out` are reused.

    methods: {label: component}; or an experiment file with `methods:`, as a path, the name of a
        shipped one, or a mapping, with `overrides` as on the command line.
    task: a component, or your own task sources: a mapping by split, a function of the split, or a
        single source.
    model: a component, a torch module, a class or function that builds one, or what from_module
        returns; None: the default model of the task.
    loss: the loss of the tasks: a name, or a function (predictions, y) -> per-example losses.
    options: meta_steps, tasks_per_step, examples_per_step, seeds, device, executor (training);
        episodes, steps, headline_step, target, targets (test; a validation has as many episodes,
        at most 200); or the sections run, evaluate, budget as mappings.

    Call it again to resume an interrupted comparison. Raises ConfigError with all problems before
    anything is written.

    >>> methods = {"MAML": ml.algorithms.MAML(), "scratch": ml.transfer.Scratch()}
    >>> task, model = ml.tasks.Sinusoid(shots=4), ml.models.MLP(sizes=(8,))
    >>> quick = {"meta_steps": 2, "episodes": 4, "steps": (0, 1), "executor": "vmap"}
    >>> ml.compare(methods, task=task, model=model, out="runs/compared", **quick).labels
    ['MAML', 'scratch']
    """
    plan, objects = _plan(methods, task, model, name, loss, contrasts, overrides, options)
    folder = Path(out or Path("runs") / plan.name)
    compare_plan(plan, folder)
    return Comparison(folder, plan, objects)


def _plan(
    methods: Any,
    task: Any,
    model: Any,
    name: str,
    loss: Loss,
    contrasts: Sequence[Sequence[str]] | None,
    overrides: Sequence[str],
    options: Mapping[str, Any],
) -> tuple[Plan, list[Any]]:
    """Return (the plan with its controls, objects that have to live as long as it is used)."""
    data, objects = methods, list[Any]()
    if is_file(methods):
        reject_sections(methods, task, model, loss, contrasts, *options)
    else:
        data, objects = _sections(name, task, model, loss, options)
        data |= _rows(methods, contrasts)
    plan = read_plan(data, overrides, comparison=True)
    plan, notes = with_controls(plan)
    for note in (*plan.notes, *notes):
        log.info(note)
    return plan, objects


def _rows(methods: Mapping[str, Any], contrasts: Any) -> dict[str, Any]:
    """Return the sections `methods` and `contrasts` of a file."""
    rows = [{**_fields(one, "methods"), "label": label} for label, one in methods.items()]
    return {"methods": rows} | ({"contrasts": list(map(list, contrasts))} if contrasts else {})


def experiment(
    method: MethodComponent | Mapping[str, Any] | str | Path,
    *,
    task: Any = None,
    model: Any = None,
    name: str | None = None,
    loss: Loss = None,
    overrides: Sequence[str] = (),
    **options: Any,
) -> Experiment:
    """Build and validate the experiment of `train`; its `to_yaml("mine.yaml")` writes the file.

    Arguments as in `train`. Raises ConfigError with all problems.

    >>> made = ml.experiment(ml.algorithms.MAML(), task=ml.tasks.Sinusoid(), meta_steps=100)
    >>> made.run.meta_steps, made.method.name
    (100, 'maml')
    """
    return _experiment(method, task, model, name, loss, overrides, options)[0]


def _experiment(
    method: Any,
    task: Any,
    model: Any,
    name: str | None,
    loss: Loss,
    overrides: Sequence[str],
    options: Mapping[str, Any],
) -> tuple[Experiment, list[Any]]:
    """Return (the experiment, objects that have to live as long as it is used)."""
    objects: list[Any] = []
    if is_file(method):
        reject_sections(method, task, model, loss, name, *options)
        plan = read_plan(method, overrides, comparison=False)
    else:
        fields = _fields(method, "methods")
        sections, objects = _sections(name or str(fields["name"]), task, model, loss, options)
        plan = read_plan({**sections, "method": fields}, overrides, comparison=False)
    for note in plan.notes:
        log.info(note)
    (experiment,) = plan.experiments
    return experiment, objects


def train(
    method: MethodComponent | Mapping[str, Any] | str | Path,
    *,
    task: Any = None,
    model: Any = None,
    out: str | Path | None = None,
    name: str | None = None,
    loss: Loss = None,
    overrides: Sequence[str] = (),
    **options: Any,
) -> Any:
    """Train and test one method. Returns a LoadedRun, or a list of them for several seeds.

    method: a component; or an experiment file with one `method:`, as a path, the name of a shipped
        one, or a mapping, with `overrides` as on the command line.

    Other arguments as in `compare`; `out` defaults to runs/NAME, with the name of the method. A
    finished run of the same config is loaded. Raises ConfigError for an interrupted run: use
    `resume`.

    >>> task, model = ml.tasks.Sinusoid(shots=4), ml.models.MLP(sizes=(8,))
    >>> quick = {"meta_steps": 2, "episodes": 4, "steps": (0, 1), "executor": "vmap"}
    >>> run = ml.train(ml.algorithms.MAML(), task=task, model=model, out="runs/example", **quick)
    >>> run.method.spec.kind
    'regression'
    """
    experiment, objects = _experiment(method, task, model, name, loss, overrides, options)
    folder = Path("runs") / experiment.name if out is None else Path(out)
    todo = [(experiment.with_seed(seed), where) for seed, where in run_folders(experiment, folder)]
    _check_folders(todo)
    runs: list[LoadedRun] = []
    for one, where in todo:
        if status(where, one) != "finished":
            run_one(one, where)
        runs.append(load_run(where))
    del objects
    return runs[0] if len(runs) == 1 else Runs(runs)


def _check_folders(todo: Sequence[tuple[Experiment, Path]]) -> None:
    """Raise ConfigError for folders that hold an unfinished run or something else."""
    problems = []
    for one, where in todo:
        state = status(where, one)
        if state == "other":
            problems.append((str(where), why_other(where)))
        elif state == "unfinished":
            problems.append((str(where), f"{UNFINISHED} metalearn.resume({str(where)!r})"))
    if problems:
        raise ConfigError(*problems)


def resume(
    folder: str | Path,
    *,
    task: Any = None,
    model: Any = None,
    loss: Any = None,
    allow_change: bool = False,
) -> LoadedRun:
    """Continue an interrupted run, or load a finished one.

    `task`, `model` and `loss` are the objects that were passed in Python when the run was started,
    if this process does not have them. Raises ConfigError if the folder is not a run directory, or
    if its config.yaml was edited, unless `allow_change`.

    >>> ml.resume("runs/example").state.step  # the run of `train`, which is finished
    tensor(2.)
    """
    folder = Path(folder)
    objects = (
        None if task is None else as_tasks(task),
        None if model is None else as_model(model),
        None if loss is None else _loss(loss),
    )
    config = resumable(folder, allow_change)
    if config is not None:
        run_one(parse(config).experiments[0], folder, allow_change=allow_change)
    run = load_run(folder)
    del objects  # the experiment holds it now
    return run


def reproduce(*names: str, out: str | Path = "runs") -> Rows:
    """Run experiments with a published number, and compare with it; default: all of them.

    Returns a list with `table` and `to_pandas`: one mapping per published number, in the format of
    experiments/results/, and one more if the best checkpoint of an ensemble was also tested alone.
    The record is written to out/reproduced.md. Finished runs are reused. Raises ConfigError with
    every name that is unknown or has no published number.

    >>> ml.reproduce("maml_sinusoids")
    Traceback (most recent call last):
    metalearn.errors.ConfigError: ...did you mean 'maml_sinusoid'...
    """
    if wrong := [name for name in names if not isinstance(name, str)]:
        raise ConfigError(("names", f"must be strings, one per argument (got {wrong[0]!r})"))
    return Rows(run_published(names, Path(out)), PUBLISHED)


def _sections(
    name: str, task: Any, model: Any, loss: Loss, options: Mapping[str, Any]
) -> tuple[dict[str, Any], list[Any]]:
    """Return the sections of a file without methods, and objects that have to live as long."""
    if task is None:
        raise ConfigError(("task", "is missing: pass a component of metalearn.tasks, or sources"))
    task = as_tasks(task)
    data: dict[str, Any] = {"experiment": name, "task": _fields(task, "tasks")}
    objects: list[Any] = [task]
    if model is not None:
        component = as_model(model)
        data["model"], objects = _fields(component, "models"), [*objects, component]
    if loss is not None:
        data["loss"], function = _loss(loss)
        objects.append(function)
    rest = dict(options)
    for section, names in (("run", IN_RUN), ("evaluate", IN_EVALUATE)):
        values = dict(rest.pop(section, None) or {})
        values |= {key: _plain(rest.pop(key)) for key in names if key in rest}
        data[section] = values
    if "episodes" in options and "validate" not in data["run"]:
        data["run"]["validate"] = {"episodes": max(2, min(200, int(options["episodes"])))}
    data["budget"] = rest.pop("budget", None) or {}
    if rest:
        known_options = (*IN_RUN, *IN_EVALUATE, "run", "evaluate", "budget")
        problems = [(key, f"unknown option; {did_you_mean(key, known_options)}") for key in rest]
        raise ConfigError(*problems)
    return data, objects


def _loss(loss: Any) -> tuple[str, Held | None]:
    """Return (the value in a config, the object that keeps a function alive)."""
    if isinstance(loss, str):
        return loss, None
    if not callable(loss):
        raise ConfigError(("loss", f"must be a name or a function (got {loss!r})"))
    return hold_loss(loss)


def _fields(component: Any, table: str) -> dict[str, Any]:
    """Return a component as a section of a file; one that no table has is registered."""
    base = KINDS[table]
    if isinstance(component, type) and issubclass(component, base):
        component = component()
    if not isinstance(component, Component) or not isinstance(component, base):
        text = (
            f"{component!r} is not a {base.__name__}, such as those of metalearn.{_PLACES[table]}"
        )
        raise ConfigError((table.removesuffix("s"), text))
    fields = component.model_dump(mode="json")
    tag = fields["source" if table == "tasks" else "name"]
    if TABLES[table].get(tag) is not type(component):
        register(table, type(component))
    _register_contained(component)
    return fields


def _register_contained(component: Component) -> None:
    """Register custom rules, spaces, searchers, ... that a component holds."""
    for _, value in component:
        if isinstance(value, Component):
            for kind, base in KINDS.items():
                if isinstance(value, base) and type(value) not in TABLES[kind].values():
                    register(kind, type(value))
            _register_contained(value)


PUBLISHED = ("experiment", "label", "step", "published", "value", "ci95_tasks", "verdict")
_PLACES = {"tasks": "tasks", "models": "models", "methods": "algorithms and metalearn.transfer"}


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, (tuple, range)) else value
