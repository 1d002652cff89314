"""`metalearn new`: the file of a new component and its test, which passes unchanged."""

from __future__ import annotations

import keyword
import re
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Annotated

import typer

from metalearn.errors import ConfigError, did_you_mean, exit_codes

KINDS = {  # and the kinds of `metalearn.register`
    "method": "methods",
    "task": "tasks",
    "model": "models",
    "loss": "losses",
    "rule": "rules",
    "learned_rule": "learned_rules",
    "estimator": "estimators",
    "horizon": "horizons",
    "space": "spaces",
    "searcher": "searchers",
    "tracker": "trackers",
    "report": "report",
}
OTHER_NAMES = {"section": "report"}  # a section of the report


def new(
    kind: Annotated[str, typer.Argument(help=f"One of {', '.join(KINDS)}, section.")],
    name: Annotated[str, typer.Argument(help="Its name, such as SignMAML or sign_maml.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for the two files.")] = Path(),
) -> None:
    """Write the file of a template component and its test."""
    with exit_codes():
        file, test = write_new(kind, name, out)
        print(f"{kind}: {file}\ntest: {test}\nrun: pytest {test}")
        print(f"list: metalearn list {KINDS[OTHER_NAMES.get(kind, kind)]} --plugin {file}")


def write_new(kind: str, name: str, folder: Path) -> list[Path]:
    """Write NAME.py and test_NAME.py into `folder`.

    Raises ConfigError if one of them exists, or if the name cannot be used.
    """
    kind, module = OTHER_NAMES.get(kind, kind), snake_case(name)
    targets = [folder / f"{module}.py", folder / f"test_{module}.py"]
    unknown = f"unknown kind {kind!r}; {did_you_mean(kind, [*KINDS, *OTHER_NAMES])}"
    problems = [] if kind in KINDS else [("KIND", unknown)]
    if problems := [*problems, *_name_problems(kind, name, module), *_existing_files(targets)]:
        raise ConfigError(*problems)
    from jinja2 import Environment, PackageLoader

    templates = Environment(
        loader=PackageLoader("metalearn.cli"), keep_trailing_newline=True, autoescape=False
    )
    words = {"name": module, "cls": camel_case(name), "title": camel_case(name)}
    folder.mkdir(parents=True, exist_ok=True)
    for path, template in zip(targets, (f"{kind}.py.j2", f"test_{kind}.py.j2"), strict=True):
        path.write_text(templates.get_template(template).render(words), "utf-8")
    return targets


def snake_case(name: str) -> str:
    """MyMAML -> my_maml; sign-maml -> sign_maml."""
    parts = re.sub(r"([a-z0-9])([A-Z])|([A-Z])([A-Z][a-z])", r"\1\3_\2\4", name)
    return parts.replace("-", "_").lower()


def camel_case(name: str) -> str:
    """sign_maml -> SignMaml; existing capitals are kept."""
    parts = re.split(r"[_-]+", name)
    return "".join(part[:1].upper() + part[1:] for part in parts)


def _name_problems(kind: str, name: str, module: str) -> list[tuple[str, str]]:
    """Return why a name cannot be that of a file and a component."""
    from metalearn.config.registry import TABLES
    from metalearn.losses import FUNCTIONS, LOSSES

    if not module.isascii() or not module.isidentifier() or keyword.iskeyword(module):
        text = (
            "is not a valid name of a class and a file: use letters, digits and _, a letter first"
        )
        return [(name, text)]
    if module in sys.stdlib_module_names or module == "metalearn":
        return [(name, f"{module}.py would shadow the module {module}: choose another name")]
    existing_names: dict[str, Collection[str]] = {**TABLES, "losses": [*FUNCTIONS, *LOSSES]}
    if module in existing_names.get(KINDS.get(kind, ""), ()):
        phrase = ("an " if kind[0] in "aeiou" else "a ") + kind.replace("_", " ")
        return [(name, f"{module} is the name of {phrase} that exists: choose another name")]
    return []


def _existing_files(targets: list[Path]) -> list[tuple[str, str]]:
    text = "already exists: choose another name, or another folder with --out"
    return [(str(path), text) for path in targets if path.exists()]
