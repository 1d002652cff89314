"""The tree-structured Parzen estimator (Bergstra et al. 2011, section 4) of Optuna."""

from __future__ import annotations

import math
from typing import Any, Literal

from metalearn.component import option
from metalearn.nas.searchers.search import Ask, Data, Search, Searcher, SearcherComponent
from metalearn.nas.spaces.space import Genotype, Space, shuffled
from metalearn.rng import fold_in
from metalearn.types import Key

REPEATS = 20
WORST = -1e30  # value passed to Optuna for a candidate that diverged


class TPE(SearcherComponent):
    """TPE of Optuna over the places of a genotype; the scores of repeated proposals are reused.

    >>> space = ml.nas.MLPReg().build(ml.tasks.Sinusoid().build().spec, "none")
    >>> search = ml.nas.TPE().build(space)
    """

    name: Literal["tpe"] = option("tpe", "The searcher.")
    startup: int | None = option(
        None,
        "Number of random candidates before the model is used; null: a quarter of the budget.",
        ge=1,
    )
    multivariate: bool = option(
        True, "Model the joint distribution of the places instead of independent ones."
    )

    def build(self, space: Space) -> Searcher:
        """The searcher of a space."""
        optuna = _optuna()
        categorical = optuna.distributions.CategoricalDistribution
        distributions = {
            place.name: categorical(list(range(len(place.choices)))) for place in space.places
        }

        def search(key: Key, budget: int, data: Data | None = None) -> Search:
            sampler = optuna.samplers.TPESampler(
                seed=int(fold_in(key, "optuna")) % 2**32,
                n_startup_trials=self.startup or max(1, budget // 4),
                multivariate=self.multivariate,
            )
            study = optuna.create_study(direction="maximize", sampler=sampler)
            fresh = shuffled(space, fold_in(key, "fresh"))
            values: dict[Genotype, float] = {}
            repeats = 0
            while len(values) < budget:
                if repeats >= REPEATS:  # only known candidates: enqueue a random one instead
                    candidate = next(
                        (genotype for genotype in fresh if genotype not in values), None
                    )
                    if candidate is None:
                        return
                    names = (place.name for place in space.places)
                    study.enqueue_trial(dict(zip(names, candidate)))
                trial = study.ask(distributions)
                genotype = space.canonical(
                    tuple(int(trial.params[place.name]) for place in space.places)
                )
                repeats = repeats + 1 if genotype in values else 0
                if genotype not in values:
                    (value,) = yield Ask((genotype,))
                    values[genotype] = value if math.isfinite(value) else WORST
                study.tell(trial, values[genotype])

        return search


def _optuna() -> Any:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna
