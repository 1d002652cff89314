"""The example in the docstring of every component runs, as the site shows it."""

from __future__ import annotations

import dataclasses
import doctest
import importlib
import inspect
from pathlib import Path
from typing import Any, Protocol

import pytest
import torch
from test_docs import photos

import metalearn as ml
from metalearn.compare.python import compare
from metalearn.component import Component
from metalearn.config.registry import TABLES
from metalearn.errors import DataError
from metalearn.report.pages import write_pages
from metalearn.report.site_pages import COMPONENTS, examples, figures, pages, python_name
from metalearn.sweep.python import sweep

pytestmark = pytest.mark.usefixtures("tables")
ROOT = Path(__file__).resolve().parents[1]
EXPERIMENTS = ROOT / "experiments"
KINDS = [
    pytest.param(kind, id=f"{table}-{name}")
    for table, kinds in TABLES.items()
    for name, kind in kinds.items()
]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("examples")
    photos(folder / "photos")
    return folder


# Public functions and classes without an example, and where they are shown.
MIGRATE, CONTRACT = "docs/migrate.md", "docs/extend.md"
EPISODIC = "metalearn/cli/templates/method.py.j2"
WITHOUT = {
    "ml.FewShotClassifier": "ml.FewShotRegressor",
    "ml.LearnedOptimizer": "ARCHITECTURE.md",
    "ml.inner.adapt": "ml.inner.support_loss",
    "ml.inner.episodic": EPISODIC,
    "ml.inner.make_update": EPISODIC,
    "ml.inner.make_step_over_tasks": EPISODIC,
    "ml.inner.make_learn": EPISODIC,
    "ml.interop.SourceTaskset": MIGRATE,
    "ml.interop.TasksetSource": MIGRATE,
    "ml.interop.from_learn2learn": MIGRATE,
    "ml.interop.higher": MIGRATE,
    "ml.interop.learn2learn": MIGRATE,
    "ml.interop.with_engine": MIGRATE,
    "ml.models.from_module": "docs/networks.md",
    "ml.testing.Clusters": CONTRACT,
    "ml.testing.check_method": CONTRACT,
    "ml.testing.method_case": CONTRACT,
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_component_has_an_example_that_runs(
    kind: type[Component], workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(workplace)
    text = examples(kind)
    assert text, f"{kind.__name__} has none: end its docstring with a paragraph of `>>> ` lines"
    named = python_name(kind)
    assert named in text or not named.startswith("ml."), f"{named} is not in its example"
    run_example(text, kind.__name__)


def run_example(text: str, name: str) -> None:
    names = {"ml": ml, "torch": torch, "__name__": __name__}
    test = doctest.DocTestParser().get_doctest(f"{text}\n", names, name, None, None)
    try:
        doctest.DebugRunner(verbose=False, optionflags=doctest.ELLIPSIS).run(
            test, clear_globs=False
        )
    except doctest.UnexpectedException as error:
        why = error.exc_info[1]
        if not isinstance(why, DataError) and "pip install" not in str(why):
            raise why from None
        pytest.skip(f"needs data or a package: {why}")
    except doctest.DocTestFailure as error:
        pytest.fail(f"{error.example.source}gives {error.got}and not {error.example.want}")


def public() -> dict[str, Any]:
    """Functions and classes of the package by their names in Python, each once.

    Without components, which the tables have, and without records and errors, which are made by
    these functions."""
    found: dict[str, Any] = {f"ml.{name}": getattr(ml, name) for name in ml.NAMES}
    for place in ml.MODULES:
        module = importlib.import_module(f"metalearn.{place}")
        names = getattr(module, "__all__", None)
        if names is None:  # a file of the core: helpers of other files need none
            own = {name: one for name, one in vars(module).items() if one_of(one, module.__name__)}
            names = [name for name, one in own.items() if examples(one)]
        found |= {f"ml.{place}.{name}": getattr(module, name) for name in names}
    found |= {"ml.compare": compare, "ml.report": write_pages, "ml.sweep": sweep}
    kept = {name: one for name, one in found.items() if inspect.isroutine(one) or is_made(one)}
    return {names[0]: one for one, names in by_value(kept)}


def one_of(value: Any, module: str) -> bool:
    name = getattr(value, "__name__", "_")
    return getattr(value, "__module__", "") == module and not name.startswith("_")


def is_made(value: Any) -> bool:
    """Whether it is a class that users make: no component, record, protocol or error."""
    other = (Component, BaseException, tuple, torch.nn.Module)
    if not inspect.isclass(value) or issubclass(value, other) or Protocol in value.__mro__:
        return False
    return not dataclasses.is_dataclass(value)


def by_value(found: dict[str, Any]) -> list[tuple[Any, list[str]]]:
    groups: dict[int, tuple[Any, list[str]]] = {}
    for name, one in found.items():
        groups.setdefault(id(one), (one, []))[1].append(name)
    return list(groups.values())


PUBLIC = {name: one for name, one in public().items() if name not in WITHOUT}


def test_what_has_no_example_is_shown_elsewhere() -> None:
    found = public()
    assert not [name for name in WITHOUT if examples(found[name])]
    for place in WITHOUT.values():
        assert place in PUBLIC or (ROOT / place).is_file(), place


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_function_has_an_example_that_runs(
    name: str, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(workplace)
    text = examples(PUBLIC[name])
    assert text, f"{name} has none: end its docstring with a paragraph of `>>> ` lines"
    if '"runs/example"' in text and name != "ml.train":  # what the example of `train` makes
        run_example(examples(ml.train), "ml.train")
    run_example(text, name)


def test_the_site_lists_every_component_with_its_example() -> None:
    made = pages(EXPERIMENTS)
    assert {table for _, tables in COMPONENTS.values() for table in tables} == set(TABLES)
    for page, (_, tables) in COMPONENTS.items():
        text = made[f"components/{page}.md"]
        for table in tables:
            for name, kind in TABLES[table].items():
                assert f"## `{name}` {{: #" in text and f"[`{name}`](#" in text
                assert f"```python\n{examples(kind)}\n```" in text
    assert "| `cross_entropy` |" in made["components/tasks.md"]
    assert "| `omniglot` | " in made["components/tasks.md"].partition("## Data sets")[2]


def test_the_site_shows_the_tables_of_results_with_their_figures() -> None:
    made = pages(EXPERIMENTS)
    assert "maml_sinusoid" in made["reproduced.md"]
    assert all(path.is_file() for path in figures(EXPERIMENTS))
