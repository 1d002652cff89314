"""The example in the docstring of every component runs, as the site shows it."""

from __future__ import annotations

import doctest
from pathlib import Path

import pytest
import torch
from test_docs import photos

import metalearn as ml
from metalearn.component import Component
from metalearn.config.registry import TABLES
from metalearn.errors import DataError
from metalearn.report.site_pages import COMPONENTS, examples, figures, pages, python_name

EXPERIMENTS = Path(__file__).resolve().parents[1] / "experiments"
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


@pytest.mark.parametrize("kind", KINDS)
def test_every_component_has_an_example_that_runs(
    kind: type[Component], workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(workplace)
    text = examples(kind)
    assert text, f"{kind.__name__} has none: end its docstring with a paragraph of `>>> ` lines"
    named = python_name(kind)
    assert named in text or not named.startswith("ml."), f"{named} is not in its example"
    names = {"ml": ml, "torch": torch}
    test = doctest.DocTestParser().get_doctest(f"{text}\n", names, kind.__name__, None, None)
    try:
        doctest.DebugRunner(verbose=False).run(test, clear_globs=False)
    except doctest.UnexpectedException as error:
        why = error.exc_info[1]
        if not isinstance(why, DataError) and "pip install" not in str(why):
            raise why from None
        pytest.skip(f"needs data or a package: {why}")
    except doctest.DocTestFailure as error:
        pytest.fail(f"{error.example.source}gives {error.got}and not {error.example.want}")


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
