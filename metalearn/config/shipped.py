"""Shipped YAML files that can be used by name: experiments and sweeps.

A wheel has them in `metalearn/experiments/`, a checkout in `experiments/` next to the package."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from pathlib import Path

from metalearn.errors import ConfigError

SOME = 12  # names that a message lists


def folders(sub: str = "") -> list[Path]:
    """Return where names are looked up: `experiments/` here, then the installed files."""
    package = Path(__file__).resolve().parents[1]
    shipped = package / "experiments"
    if not shipped.is_dir() and (package.parent / "pyproject.toml").is_file():
        shipped = package.parent / "experiments"
    return [Path("experiments") / sub, shipped / sub]


def files(sub: str = "") -> dict[str, Path]:
    """Return all files by name; those of the working directory override shipped ones."""
    paths = {path.stem: path for folder in reversed(folders(sub)) for path in folder.glob("*.yaml")}
    return dict(sorted(paths.items()))


def find(name: str, kind: str, sub: str = "") -> Path:
    """Return the file of a path or of a name; raises ConfigError with the valid names."""
    path = Path(name)
    if path.is_file():
        return path
    paths = files(sub)
    if name.removesuffix(".yaml") in paths:
        return paths[name.removesuffix(".yaml")]
    if path.is_dir():
        why = f"is a directory: pass the file of {_article(kind)}, or the name of a shipped one"
        raise ConfigError((name, why))
    if not paths:
        text = f"no such file, and this copy of metalearn contains no {kind}s: install its wheel"
        raise ConfigError((name, f"{text}, or run in a checkout"))
    raise ConfigError((name, f"no such {kind} file or name; {_nearest(name, kind, list(paths))}"))


def _nearest(name: str, kind: str, names: Sequence[str]) -> str:
    """Return some valid names, similar ones first, and the command that lists all."""
    matches = difflib.get_close_matches(name, names, n=3)
    hint = f"did you mean {' or '.join(map(repr, matches))}? " if matches else ""
    listed = [*matches, *(other for other in names if other not in matches)][:SOME]
    hidden_count = len(names) - len(listed)
    rest = f" and {hidden_count} more: metalearn list {kind}s" if hidden_count else ""
    return f"{hint}valid: {', '.join(listed)}{rest}"


def sentence(path: Path) -> str:
    """Return the first sentence of the comment at the beginning of a file."""
    lines = []
    for line in path.read_text("utf-8").splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.removeprefix("#").strip())
    return re.split(r"(?<=\.)(?<!et al\.) ", " ".join(lines), maxsplit=1)[0]


def _article(kind: str) -> str:
    return f"an {kind}" if kind[0] in "aeiou" else f"a {kind}"
