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
HELPERS = ("sentences.py", "form.py")  # which raise the errors of others


def run_checks(
    name: str,
    build: Callable[[], Case],
    checks: Sequence[Callable[[Case], None]],
    inapplicable: Callable[[Case, Callable[[Case], None]], str],
    skip: Mapping[str, str] | None = None,
) -> None:
    """Run the checks that apply; raises AssertionError with each failure and its docstring.

    If several fail with the same error, it is listed once, with their names."""
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
    """Return one paragraph per failure, or per error that several checks have in common."""
    by_text: dict[str, list[tuple[Check, Exception]]] = {}
    for check, error in failures:
        by_text.setdefault(f"{type(error).__name__}: {error}", []).append((check, error))
    return [_describe(group) for group in by_text.values()]


def _describe(group: Sequence[tuple[Check, Exception]]) -> str:
    """Return the checks, their requirement if there is one check, the error, and its place."""
    check, error = group[0]
    head = f"* {', '.join(check.__name__ for check, _ in group)}:"
    if isinstance(error, ConfigError):
        return f"{head}\n    {error}"
    if len(group) == 1:
        head = f"{head} {' '.join((check.__doc__ or '').split())}"
    frames = list(traceback.extract_tb(error.__traceback__))
    own_frames = [
        frame
        for frame in frames
        if frame.filename.startswith(HERE) and not frame.filename.endswith(HELPERS)
    ]
    frame = (own_frames or frames)[-1]
    text = " ".join(str(error).split()) or str(frame.line)
    location = f"{frame.filename}:{frame.lineno}"
    if not isinstance(error, AssertionError) and frames[-1] is not frame:
        location = f"{frames[-1].filename}:{frames[-1].lineno}, called at {location}"
    return f"{head}\n    {type(error).__name__}: {text}\n    at {location}"
