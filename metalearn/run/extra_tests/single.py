"""A test of the best checkpoint alone, if the main test is that of an ensemble.

An ensemble predicts at several times the cost; papers that report one (MAML++, Antoniou et al.
2019) do not report the score of a single model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from metalearn.run.extra_tests.headline import headline_test
from metalearn.run.job import Job
from metalearn.types import Meta


def single_test(job: Job, metas: Sequence[Meta]) -> dict[str, Any] | None:
    """Return the field `single` of result.json: the test of the first of `metas`; None if it is
    the only one."""
    return None if len(metas) == 1 else headline_test(job, metas[:1])[0]
