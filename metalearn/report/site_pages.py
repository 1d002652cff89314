"""Pages of the documentation site that are generated from data: components and results.

`docs/hooks.py` adds them when the site is built, and that of benchmarks (bench/page.py)."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from metalearn.component import Component, MethodComponent
from metalearn.config.registry import TABLES
from metalearn.losses import LOSSES
from metalearn.report import markdown
from metalearn.tasks import DATA_SETS

# Page -> (heading, its tables)
COMPONENTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "methods": ("Methods", ("methods",)),
    "tasks": ("Task sources", ("tasks",)),
    "models": ("Models", ("models",)),
    "rules": ("Update rules", ("rules", "learned_rules", "estimators", "horizons")),
    "search": ("Architecture search", ("spaces", "searchers")),
    "trackers": ("Loggers", ("trackers",)),
}
TITLES = {
    "rules": "Hand-made rules",
    "learned_rules": "Learned rules",
    "estimators": "Estimators of outer gradients",
    "horizons": "Lengths of inner runs",
    "spaces": "Spaces",
    "searchers": "Searchers",
}
PACKAGES = (
    *("tasks", "models", "algorithms", "in_context", "transfer", "learned_optimizers", "nas"),
    "inner",
)
RESULTS = {"reproduced.md": "RESULTS.md"}
FIGURE = re.compile(r"\]\((?:\.\./)?(figures/[\w.-]+)\)")


def pages(experiments: Path) -> dict[str, str]:
    """Return Markdown by the path of a page; `experiments` is the folder of that name."""
    component_pages = {f"components/{name}.md": _page(*what) for name, what in COMPONENTS.items()}
    return component_pages | {
        page: FIGURE.sub(r"](\1)", (experiments / file).read_text("utf-8"))
        for page, file in RESULTS.items()
    }


def figures(experiments: Path) -> list[Path]:
    """Return the figures that these pages show."""
    texts = [(experiments / file).read_text("utf-8") for file in RESULTS.values()]
    return [experiments / name for text in texts for name in FIGURE.findall(text)]


def examples(component: type[Component]) -> str:
    """Return the doctest of a component, the last paragraph of its docstring, or ""."""
    last = inspect.cleandoc(component.__doc__ or "").split("\n\n")[-1]
    return last if last.startswith(">>> ") else ""


def python_name(component: type[Component]) -> str:
    """Return the name of a component in Python, such as ml.algorithms.MAML."""
    for package in PACKAGES:
        module = importlib.import_module(f"metalearn.{package}")
        if getattr(module, component.__name__, None) is component:
            return f"ml.{package}.{component.__name__}"
    return f"{component.__module__}.{component.__name__}"


def _page(heading: str, tables: tuple[str, ...]) -> str:
    parts = [f"# {heading}", "Examples begin with `import torch` and `import metalearn as ml`."]
    for table in tables:
        parts += [f"## {TITLES[table]}"] if table in TITLES else []
        parts += [_list(TABLES[table])]
        parts += [_losses(), _data_sets()] if table == "tasks" else []
        mark = "###" if table in TITLES or table == "tasks" else "##"
        for name, kind in TABLES[table].items():
            parts += [f"{mark} `{name}` {{: #{_anchor(name)} }}", *_component(kind)]
    return "\n\n".join(parts) + "\n"


def _list(table: Mapping[str, type[Component]]) -> str:
    """Return one line per component; for methods with their family."""
    methods = all(issubclass(kind, MethodComponent) for kind in table.values())
    rows = []
    for name, kind in table.items():
        family = [_family(kind)] if methods else []
        rows.append([f"[`{name}`](#{_anchor(name)})", *family, kind.sentence()])
    return _table(["name", *(["family"] if methods else []), "what it is"], rows)


def _family(kind: type[Component]) -> str:
    return str(getattr(kind, "family", "")).replace("_", " ")


def _component(kind: type[Component]) -> Iterator[str]:
    """Yield Python name, docstring, example and fields."""
    yield f"`{python_name(kind)}`: {kind.sentence()}"
    example = examples(kind)
    text = inspect.cleandoc(kind.__doc__ or "").removesuffix(example)
    if more := text.partition("\n\n")[2].strip():
        yield f"```text\n{more}\n```"
    if example:
        yield f"```python\n{example}\n```"
    rows = [
        [f"`{key}`", f"`{_default(kind, key)}`", kind.acts_of(key), info.description or ""]
        for key, info in kind.model_fields.items()
        if key not in ("name", "source")
    ]
    if rows:
        yield _table(["field", "default", "acts", "meaning"], rows)


def _default(kind: type[Component], key: str) -> str:
    value: Any = kind.model_fields[key].default
    if isinstance(value, Component):
        return str(getattr(value, "name", type(value).__name__))
    return str(value).replace("|", "/")


def _losses() -> str:
    rows = [[f"`{name}`", _first(one.__doc__)] for name, one in LOSSES.items()]
    return "## Losses\n\nThe section `loss:` of an experiment file.\n\n" + _table(
        ["name", "what it is"], rows
    )


def _data_sets() -> str:
    rows = [[f"`{name}`", one.sentence, f"`{one.files}`"] for name, one in DATA_SETS.items()]
    text = "## Data sets\n\n`metalearn data prepare NAME` makes the files, in `METALEARN_DATA`.\n\n"
    return text + _table(["name", "what it is", "files"], rows) + "\n\n## Sources"


def _first(text: str | None) -> str:
    return " ".join((text or "").strip().split("\n\n")[0].split())


def _table(heads: list[str], rows: list[list[str]]) -> str:
    return markdown.table(heads, [[_cell(cell) for cell in row] for row in rows])


def _cell(text: str) -> str:
    """Escape text so that it neither ends its cell nor begins HTML."""
    whole = " ".join(text.split()).replace("|", "\\|")
    return whole if whole.startswith("`") else whole.replace("<", "&lt;")


def _anchor(name: str) -> str:
    return re.sub(r"\W+", "-", name)
