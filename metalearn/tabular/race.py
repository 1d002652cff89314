"""`metalearn nas race`: searchers on a table of known truth, against random search.

Two evaluation protocols. `truth`: a searcher gets the mean query value over all tasks, so it
searches the truth itself. `scores`: each task alone; a searcher gets the scores of its support set,
and the value of the pick is that on the task's queries. After n evaluations the pick is the best of
the candidates that n full trainings allow. Searchers that train networks themselves get each
task's support set, as in per-task search, and their pick is ranked among all networks.

A verdict is "worse" if the 95 % t interval (over seeds) of the paired difference of regret to
random search is above 0 and the difference above 1 % of the regret of a random network, "better" if
the interval is below 0, and "not worse" otherwise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from metalearn.logger import log
from metalearn.nas.searchers.search import Data, choose, run_search
from metalearn.nas.spaces.space import Genotype, describe
from metalearn.rng import fold_in
from metalearn.storage.files import plain, write_atomic, write_json
from metalearn.tabular import race_results as results
from metalearn.tabular.race_options import BY_TABLE, BY_TRAINING, RaceOptions, RaceSetup, check
from metalearn.tree import take
from metalearn.types import NullLedger

Json = dict[str, Any]


def race(options: RaceOptions) -> Json:
    """Run every searcher, then print and write the results, all or nothing."""
    setup = check(options)
    fields = results.landscapes(setup.table)
    curves = [
        row
        for name in setup.racers
        if name in BY_TABLE
        for row in _curves(setup, name, fields, options)
    ]
    outcome = plain(
        {
            "schema": 1,
            "table": str(options.table),
            "header": setup.table.header,
            "budget": options.budget,
            "seeds": options.seeds,
            "networks": len(setup.table.genotypes),
            "diverged": setup.table.diverged,
            "chance": {reckoning: results.chance(lands) for reckoning, lands in fields.items()},
            "curves": curves,
            "paired": _paired(curves, fields),
            "rule": results.RULE,
            "picks": [_picks(setup, name, options) for name in setup.racers if name in BY_TRAINING],
            "noise": results.noise(setup.table),
        }
    )
    _store(options, dict(outcome))
    return dict(outcome)


def _curves(
    setup: RaceSetup, name: str, fields: dict[str, list[results.Landscape]], options: RaceOptions
) -> list[Json]:
    """Return the two rows of a searcher that uses the table alone."""
    evaluations, rows = results.counts(options.budget), []
    for reckoning, lands in fields.items():
        log.info(f"{name}, {reckoning}: {options.seeds * len(lands)} searches")
        picks = results.raced(
            setup.table, setup.space, setup.searchers[name], lands, options.seeds, evaluations
        )
        row = {
            "searcher": name,
            "reckoning": reckoning,
            "options": setup.racers[name].model_dump(mode="json"),
        }
        row |= results.curve(picks, lands, evaluations)
        rows.append(row | (results.theory(picks, lands, evaluations) if name == "random" else {}))
    return rows


def _paired(curves: Sequence[Json], fields: dict[str, list[results.Landscape]]) -> list[Json]:
    """Compare every other searcher with random search at the whole budget, on the same seeds."""
    random = {row["reckoning"]: row for row in curves if row["searcher"] == "random"}
    differences = []
    for row in curves:
        if row["searcher"] != "random":
            which = row["reckoning"]
            baseline, chance = random[which], results.chance(fields[which])
            difference = results.paired(
                row["at_budget"], baseline["at_budget"], baseline["exact"][-1], chance
            )
            differences.append(
                {"searcher": row["searcher"], "against": "random", "reckoning": which, **difference}
            )
    return differences


def _picks(setup: RaceSetup, name: str, options: RaceOptions) -> Json:
    """Return the ranks of the picks of a searcher that trains.

    It gets one task after the other, without queries."""
    assert setup.tasks is not None
    folds, keys = setup.tasks
    rows, lands = results.row_numbers(setup.table), results.landscapes(setup.table)["scores"]
    genotypes: list[Genotype] = []
    for task, land in enumerate(lands):
        log.info(f"{name}: task {task + 1} of {len(lands)}")
        data = Data(take(folds, task), NullLedger())
        search = setup.searchers[name](fold_in(keys[task], "searcher"), options.budget, data)
        trials = run_search(search, results.lookup(rows, land), options.budget)
        genotypes.append(choose(setup.space, trials, 0.0).genotype)
    picks = results.placed(genotypes, setup.table, options.budget)
    for pick, genotype in zip(picks["tasks"], genotypes):
        pick["words"] = describe(setup.space, genotype)
    return {"searcher": name, "options": setup.racers[name].model_dump(mode="json"), **picks}


def _store(options: RaceOptions, outcome: Json) -> None:
    from metalearn.tabular import figures

    figures.show(outcome)
    for row in outcome["curves"]:
        if not row.get("agrees", True):
            log.warning(
                f"random search, {row['reckoning']}: its mean regret is not what theory says"
            )
    if options.out is not None:
        write_json(options.out, outcome)
    plot = options.plot if outcome["curves"] else None
    if plot is not None:
        write_atomic(plot, figures.drawing(outcome).encode())
    if options.markdown is not None:
        figures.write_markdown(options.markdown, outcome, plot)
    written = [str(path) for path in (options.out, plot, options.markdown) if path is not None]
    if written:
        log.info(f"written: {', '.join(written)}")
