"""Every check of a list over one component, and one error with all that fails."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from metalearn.errors import ConfigError, did_you_mean

Case = TypeVar("Case")
Check = Callable[..., None]
HERE = str(Path(__file__).parent)


def run_checks(
    name: str,
    build: Callable[[], Case],
    checks: Sequence[Callable[[Case], None]],
    inapplicable: Callable[[Case, Callable[[Case], None]], str],
    skip: Mapping[str, str] | None = None,
) -> None:
    """Run the checks that apply; AssertionError names each that fails, with its sentence.

    Where several fail of one ConfigError, it stands once, with their names."""
    skip, names = dict(skip or {}), [check.__name__ for check in checks]
    for one in set(skip) - set(names):
        raise ValueError(f"skip: unknown check {one!r}; {did_you_mean(one, names)}")
    given, failed, first = build(), list[tuple[Check, Exception]](), None
    for check in checks:
        if check.__name__ in skip or inapplicable(given, check):
            continue
        try:
            check(given)
        except Exception as error:
            first = first or error
            failed.append((check, error))
    if failed:
        head = f"{name} fails {len(failed)} of {len(checks)} checks:"
        raise AssertionError("\n".join([head, *_described(failed)])) from first


def _described(failed: Sequence[tuple[Check, Exception]]) -> list[str]:
    """A paragraph for each failure, or for all that are of one ConfigError."""
    found = list[str]()
    by_text: dict[str, list[str]] = {}
    for check, error in failed:
        if isinstance(error, ConfigError):
            by_text.setdefault(str(error), []).append(check.__name__)
        else:
            found.append(_describe(check, error))
    return [*(f"* {', '.join(names)}:\n    {text}" for text, names in by_text.items()), *found]


def _describe(check: Check, error: Exception) -> str:
    """The check, what it asks for, and where it stopped."""
    frames = traceback.extract_tb(error.__traceback__)
    here = [frame for frame in frames if frame.filename.startswith(HERE)]
    frame = (here or list(frames))[-1]
    text = " ".join(str(error).split()) or str(frame.line)
    asks = " ".join((check.__doc__ or "").split())
    place = f"{frame.filename}:{frame.lineno}"
    return f"* {check.__name__}: {asks}\n    {type(error).__name__}: {text}\n    at {place}"
