"""The search that comes before training, where a method has one: made once, kept in the run
directory, and paid for.
"""

from __future__ import annotations

import time
from pathlib import Path

from metalearn.config.build import Parts, build
from metalearn.config.experiment import Experiment
from metalearn.evaluate.ledger import CostLedger
from metalearn.logger import log
from metalearn.machine import cores, set_threads
from metalearn.nas.shared import CHOICE
from metalearn.rng import fold_in
from metalearn.storage.files import read_json, write_json, write_yaml

SPENT = "spent.json"


def home_of(folder: Path) -> Path:
    """Where the search of a run directory keeps its record."""
    return folder / "search"


def searched(
    experiment: Experiment, parts: Parts, folder: Path, ledger: CostLedger
) -> tuple[Experiment, Parts, float]:
    """(experiment with what was found, parts built of it, seconds on the bill that this process did
    not spend).

    A search that was interrupted goes on from its record; one that was finished is read, and
    charged again."""
    home = home_of(folder)
    if parts.method.prepare is None:
        spent = read_json(home / SPENT) if (home / SPENT).exists() else {}
        if spent:
            ledger.add("search", **{"seconds": 0.0, **spent})
        return experiment, parts, float(spent.get("seconds") or 0.0)
    (home / CHOICE).unlink(
        missing_ok=True
    )  # without its bill it is told again from the record, which has one
    set_threads(experiment.run.threads or cores())
    begin, seed = time.perf_counter(), experiment.run.seeds[0]
    log.info(f"{experiment.label} seed {seed}: searching {experiment.method.candidates} candidates")
    with ledger.span("setup"):
        parts.method.prepare(parts.train, fold_in(seed, "search"), ledger, home)
    billed = ledger.seconds("search") + ledger.seconds("setup")  # counting is set-up
    carried = max(0.0, billed - (time.perf_counter() - begin))
    choice = read_json(home / CHOICE)
    write_json(home / SPENT, ledger.totals()["search"])
    log.info(
        f"{experiment.label} seed {seed}: found {choice['words']}, after {choice['trials']} "
        f"candidates"
    )
    experiment = experiment.replace(found=tuple(choice["genotype"]))
    write_yaml(folder / "config.yaml", experiment.resolved())
    return experiment, build(experiment, to_train=True), carried
