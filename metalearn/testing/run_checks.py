"""Every check of a list over one component, and one error with all that fails."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from metalearn.errors import did_you_mean

Case = TypeVar("Case")
HERE = str(Path(__file__).parent)


def run_checks(
    name: str,
    build: Callable[[], Case],
    checks: Sequence[Callable[[Case], None]],
    inapplicable: Callable[[Case, Callable[[Case], None]], str],
    skip: Mapping[str, str] | None = None,
) -> None:
    """Run the checks that apply; AssertionError names each that fails, with its sentence."""
    skip, names = dict(skip or {}), [check.__name__ for check in checks]
    for one in set(skip) - set(names):
        raise ValueError(f"skip: unknown check {one!r}; {did_you_mean(one, names)}")
    given, failures, first = build(), list[str](), None
    for check in checks:
        if check.__name__ in skip or inapplicable(given, check):
            continue
        try:
            check(given)
        except Exception as error:
            first = first or error
            failures.append(_describe(check, error))
    if failures:
        head = f"{name} fails {len(failures)} of {len(checks)} checks:"
        raise AssertionError("\n".join([head, *failures])) from first


def _describe(check: Callable[..., None], error: Exception) -> str:
    """The check, what it asks for, and where it stopped."""
    frames = traceback.extract_tb(error.__traceback__)
    here = [frame for frame in frames if frame.filename.startswith(HERE)]
    frame = (here or list(frames))[-1]
    text = " ".join(str(error).split()) or str(frame.line)
    asks = " ".join((check.__doc__ or "").split())
    place = f"{frame.filename}:{frame.lineno}"
    return f"* {check.__name__}: {asks}\n    {type(error).__name__}: {text}\n    at {place}"
