"""`metalearn predict`: adapt to one task from labelled files, predict unlabelled ones."""

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
    """Write a CSV with one row per query: name, prediction, and probability of each class."""
    if out is not None and out.exists():
        raise ConfigError(("--out", f"{out} already exists: choose another name"))
    run = load_run(run_dir)
    spec = run.method.spec
    task = run.config.test_task
    input_names, target = task.input_names, getattr(task, "target", None)
    group = getattr(task, "group", None)
    read = partial(read_examples, spec=spec, invert=invert, target=target, group=group)
    examples, queries = _read_both(read, support, query, input_names)
    learned = run.adapt(examples.x, examples.y, steps)
    predictions = learned.predict(queries.x)
    columns: list[str] = []
    values: list[list[Any]] = [[] for _ in queries.names]
    if learned.classes is None:
        rows = np.asarray(predictions).reshape(len(predictions), -1)
        numbered = [f"prediction_{n}" for n in range(rows.shape[1])]
        columns = ["prediction"] if rows.shape[1] == 1 else numbered
        values = [[f"{value:.9g}" for value in row] for row in rows]
    else:
        columns = ["prediction", *(f"p({name})" for name in learned.classes)]
        probabilities = learned.predict_proba(queries.x)
        values = [
            [a, *(f"{p:.6f}" for p in row)]
            for a, row in zip(predictions, probabilities, strict=True)
        ]
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


def _read_both(
    reader: Callable[..., Examples], support: Path, query: Path, input_names: Sequence[str] | None
) -> tuple[Examples, Examples]:
    """Return (support, queries); raises ConfigError with the problems of both files."""
    problems: list[tuple[str, str]] = []
    examples = queries = None
    try:
        examples = reader(support, field="--support", labelled=True, inputs=input_names)
    except ConfigError as error:
        problems += error.problems
    try:
        names = input_names if examples is None else examples.columns or input_names
        queries = reader(query, field="--query", labelled=False, inputs=names)
    except ConfigError as error:
        problems += error.problems
    if examples is None or queries is None:
        raise ConfigError(*problems)
    if None not in (examples.group, queries.group) and examples.group != queries.group:
        text = f"is of task {queries.group!r}, but the support set is of task {examples.group!r}"
        raise ConfigError(("--query", f"{text}: both must be of the same task"))
    return examples, queries
