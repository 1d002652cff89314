"""The best checkpoint alone, where the test is that of an ensemble of several.

An ensemble answers at several times the price; papers that print one (MAML++, Antoniou et al. 2019)
leave open what a single model reaches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from metalearn.run.extra_tests.headline import headline_test
from metalearn.run.job import Job
from metalearn.types import Meta


def single_test(job: Job, metas: Sequence[Meta]) -> dict[str, Any] | None:
    """The field `single` of result.json: the first of `metas` tested alone; None where it is."""
    return None if len(metas) == 1 else headline_test(job, metas[:1])[0]
