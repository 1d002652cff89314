"""Run a list of checks on one component and raise one error with all failures."""

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
    """Run the checks that apply; raises AssertionError with each failure and its docstring.

    If several fail with the same ConfigError, it is listed once, with their names."""
    skip, names = dict(skip or {}), [check.__name__ for check in checks]
    for unknown in set(skip) - set(names):
        raise ValueError(f"skip: unknown check {unknown!r}; {did_you_mean(unknown, names)}")
    case, failures, cause = build(), list[tuple[Check, Exception]](), None
    for check in checks:
        if check.__name__ in skip or inapplicable(case, check):
            continue
        try:
            check(case)
        except Exception as error:
            cause = cause or error
            failures.append((check, error))
    if failures:
        head = f"{name} fails {len(failures)} of {len(checks)} checks:"
        raise AssertionError("\n".join([head, *_describe_failures(failures)])) from cause


def _describe_failures(failures: Sequence[tuple[Check, Exception]]) -> list[str]:
    """Return one paragraph per failure, or per ConfigError that several checks have in common."""
    paragraphs = list[str]()
    by_text: dict[str, list[str]] = {}
    for check, error in failures:
        if isinstance(error, ConfigError):
            by_text.setdefault(str(error), []).append(check.__name__)
        else:
            paragraphs.append(_describe(check, error))
    return [*(f"* {', '.join(names)}:\n    {text}" for text, names in by_text.items()), *paragraphs]


def _describe(check: Check, error: Exception) -> str:
    """Return the check, its requirement, and where it failed."""
    frames = traceback.extract_tb(error.__traceback__)
    own_frames = [frame for frame in frames if frame.filename.startswith(HERE)]
    frame = (own_frames or list(frames))[-1]
    text = " ".join(str(error).split()) or str(frame.line)
    requirement = " ".join((check.__doc__ or "").split())
    location = f"{frame.filename}:{frame.lineno}"
    name = type(error).__name__
    return f"* {check.__name__}: {requirement}\n    {name}: {text}\n    at {location}"
