"""`metalearn predict`: learn one task from labelled files, answer unlabelled ones."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from metalearn.errors import ConfigError
from metalearn.run.trained.examples import Examples, read_examples
from metalearn.run.trained.load import load_run
from metalearn.storage.files import write_atomic


def predict(
    run_dir: Path, support: Path, query: Path, steps: int | None, out: Path | None, invert: bool
) -> None:
    """Write a CSV with one row a query: its name, the answer, and each class's probability."""
    if out is not None and out.exists():
        raise ConfigError(("--out", f"{out} exists already: give another name"))
    run = load_run(run_dir)
    spec = run.method.spec
    task = run.config.test_task
    known, target = getattr(task, "inputs", None), getattr(task, "target", None)
    group = getattr(task, "group", None)
    read = partial(read_examples, spec=spec, invert=invert, target=target, group=group)
    examples, queries = _examples(read, support, query, known)
    learned = run.adapt(examples.x, examples.y, steps)
    answers = learned.predict(queries.x)
    columns: list[str] = []
    values: list[list[Any]] = [[] for _ in queries.names]
    if learned.classes is None:
        rows = np.asarray(answers).reshape(len(answers), -1)
        numbered = [f"prediction_{n}" for n in range(rows.shape[1])]
        columns = ["prediction"] if rows.shape[1] == 1 else numbered
        values = [[f"{value:.9g}" for value in row] for row in rows]
    else:
        columns = ["prediction", *(f"p({name})" for name in learned.classes)]
        shares = learned.predict_proba(queries.x)
        values = [[a, *(f"{p:.6f}" for p in row)] for a, row in zip(answers, shares, strict=True)]
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["query", *columns])
    writer.writerows([name, *row] for name, row in zip(queries.names, values, strict=True))
    if out is None:
        sys.stdout.write(text.getvalue())
    else:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(out, text.getvalue().encode())
        print(f"predictions: {out}")


def _examples(
    read: Callable[..., Examples], support: Path, query: Path, known: Sequence[str] | None
) -> tuple[Examples, Examples]:
    """(support, queries); ConfigError with what is wrong with either file."""
    problems: list[tuple[str, str]] = []
    examples = queries = None
    try:
        examples = read(support, place="--support", labelled=True, inputs=known)
    except ConfigError as error:
        problems += error.problems
    try:
        names = known if examples is None else examples.columns or known
        queries = read(query, place="--query", labelled=False, inputs=names)
    except ConfigError as error:
        problems += error.problems
    if examples is None or queries is None:
        raise ConfigError(*problems)
    if None not in (examples.group, queries.group) and examples.group != queries.group:
        text = f"is of the task {queries.group!r}, and the support set of {examples.group!r}"
        raise ConfigError(("--query", f"{text}: the two must be of one task"))
    return examples, queries
