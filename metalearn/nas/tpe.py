"""The tree-structured Parzen estimator (Bergstra et al. 2011, section 4), as Optuna has it."""

from __future__ import annotations

import math
from typing import Any, Literal

from metalearn.component import Component, option
from metalearn.errors import ConfigError
from metalearn.nas.search import Ask, Data, Search, Searcher
from metalearn.nas.space import Genotype, Space, walk
from metalearn.rng import fold_in
from metalearn.types import Key

REPEATS = 20
WORST = -1e30  # what Optuna is told of a candidate that diverged


class TPE(Component):
    """Optuna's TPE over the places of a genotype; what it proposes again is
    answered from memory.
    """

    name: Literal["tpe"] = option("tpe", "the searcher")
    startup: int | None = option(
        None, "random candidates before the model; null: a quarter of the budget", ge=1
    )
    multivariate: bool = option(True, "model the places together, not one by one")

    def build(self, space: Space) -> Searcher:
        """The searcher of a space; ConfigError where Optuna is not installed."""
        optuna = _optuna()
        spread = {
            place.name: optuna.distributions.CategoricalDistribution(list(range(len(place.words))))
            for place in space.places
        }

        def search(key: Key, budget: int, data: Data | None = None) -> Search:
            sampler = optuna.samplers.TPESampler(
                seed=int(fold_in(key, "optuna")) % 2**32,
                n_startup_trials=self.startup or max(1, budget // 4),
                multivariate=self.multivariate,
            )
            study = optuna.create_study(direction="maximize", sampler=sampler)
            fresh = walk(space, fold_in(key, "fresh"))
            known: dict[Genotype, float] = {}
            repeats = 0
            while len(known) < budget:
                if repeats >= REPEATS:  # it insists on what is known: a random candidate instead
                    other = next((genotype for genotype in fresh if genotype not in known), None)
                    if other is None:
                        return
                    study.enqueue_trial(
                        {place.name: word for place, word in zip(space.places, other)}
                    )
                trial = study.ask(spread)
                genotype = space.canonical(
                    tuple(int(trial.params[place.name]) for place in space.places)
                )
                repeats = repeats + 1 if genotype in known else 0
                if genotype not in known:
                    (value,) = yield Ask((genotype,))
                    known[genotype] = value if math.isfinite(value) else WORST
                study.tell(trial, known[genotype])

        return search


def _optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise ConfigError(
            ("method.searcher.name", "tpe needs the package optuna: pip install optuna")
        ) from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna
