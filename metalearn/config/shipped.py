"""The YAML files that a name on the command line may stand for: experiments and sweeps.

A wheel holds them in `metalearn/experiments/`, a checkout in `experiments/` beside the package."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path

from metalearn.errors import ConfigError

SOME = 12  # names that a message lists


def folders(sub: str = "") -> list[Path]:
    """Where a name is looked up: `experiments/` of the working directory, then installed files."""
    package = Path(__file__).resolve().parents[1]
    shipped = package / "experiments"
    if not shipped.is_dir() and (package.parent / "pyproject.toml").is_file():
        shipped = package.parent / "experiments"
    return [Path("experiments") / sub, shipped / sub]


def files(sub: str = "") -> dict[str, Path]:
    """Every file by its name; the working directory's wins over the shipped one."""
    found = {path.stem: path for home in reversed(folders(sub)) for path in home.glob("*.yaml")}
    return dict(sorted(found.items()))


def find(name: str, kind: str, sub: str = "") -> Path:
    """The file of a path or of a name; ConfigError with the names there are."""
    path = Path(name)
    if path.is_file():
        return path
    known = files(sub)
    if name.removesuffix(".yaml") in known:
        return known[name.removesuffix(".yaml")]
    if path.is_dir():
        why = f"is a directory: pass the file of {_article(kind)}, or the name of a shipped one"
        raise ConfigError((name, why))
    if not known:
        text = f"no such file, and this copy of metalearn contains no {kind}s: install its wheel"
        raise ConfigError((name, f"{text}, or run in a checkout"))
    raise ConfigError((name, f"no such {kind} file or name; {_nearest(name, kind, list(known))}"))


def _nearest(name: str, kind: str, known: Sequence[str]) -> str:
    """Valid names, those that are like `name` first; a few, and the command that lists all."""
    near = difflib.get_close_matches(name, known, n=3)
    hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
    some = [*near, *(one for one in known if one not in near)][:SOME]
    more = len(known) - len(some)
    rest = f" and {more} more: metalearn list {kind}s" if more else ""
    return f"{hint}valid: {', '.join(some)}{rest}"


def sentence(path: Path) -> str:
    """The first sentence of the comment that a file begins with."""
    lines = []
    for line in path.read_text("utf-8").splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.removeprefix("#").strip())
    first, point, _ = " ".join(lines).partition(". ")
    return first + point.strip()


def _article(kind: str) -> str:
    return f"an {kind}" if kind[0] in "aeiou" else f"a {kind}"
