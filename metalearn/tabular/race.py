"""`metalearn nas race`: searchers on a table of known truth, against random search.

Two evaluation protocols. `truth`: a searcher gets the mean query value over all tasks, so it
searches the truth itself. `scores`: each task alone; a searcher gets the scores of its support set,
and the value of the pick is that on the task's queries. After n evaluations the pick is the best of
the candidates that n full trainings allow. Searchers that train networks themselves are given each
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
from metalearn.tabular.race_options import BY_TABLE, BY_TRAINING, RaceOptions, Ready, check
from metalearn.tree import take
from metalearn.types import NullLedger

Json = dict[str, Any]


def race(options: RaceOptions) -> Json:
    """Run every searcher, then print and write the results, all or nothing."""
    ready = check(options)
    fields = results.landscapes(ready.table)
    curves = [
        row
        for name in ready.racers
        if name in BY_TABLE
        for row in _curves(ready, name, fields, options)
    ]
    found = plain(
        {
            "schema": 1,
            "table": str(options.table),
            "header": ready.table.header,
            "budget": options.budget,
            "seeds": options.seeds,
            "networks": len(ready.table.genotypes),
            "diverged": ready.table.diverged,
            "chance": {reckoning: results.chance(lands) for reckoning, lands in fields.items()},
            "curves": curves,
            "paired": _paired(curves, fields),
            "rule": results.RULE,
            "picks": [_picks(ready, name, options) for name in ready.racers if name in BY_TRAINING],
            "noise": results.noise(ready.table),
        }
    )
    _store(options, dict(found))
    return dict(found)


def _curves(
    ready: Ready, name: str, fields: dict[str, list[results.Landscape]], options: RaceOptions
) -> list[Json]:
    """The two rows of a searcher that the table answers."""
    evaluations, rows = results.counts(options.budget), []
    for reckoning, lands in fields.items():
        log.info(f"{name}, {reckoning}: {options.seeds * len(lands)} searches")
        picks = results.raced(
            ready.table, ready.space, ready.searchers[name], lands, options.seeds, evaluations
        )
        row = {
            "searcher": name,
            "reckoning": reckoning,
            "options": ready.racers[name].model_dump(mode="json"),
        }
        row |= results.curve(picks, lands, evaluations)
        rows.append(row | (results.theory(picks, lands, evaluations) if name == "random" else {}))
    return rows


def _paired(curves: Sequence[Json], fields: dict[str, list[results.Landscape]]) -> list[Json]:
    """Every other searcher against random search at the whole budget, on the same seeds."""
    random = {row["reckoning"]: row for row in curves if row["searcher"] == "random"}
    found = []
    for row in curves:
        if row["searcher"] != "random":
            which = row["reckoning"]
            other, of_chance = random[which], results.chance(fields[which])
            difference = results.paired(
                row["at_budget"], other["at_budget"], other["exact"][-1], of_chance
            )
            found.append(
                {"searcher": row["searcher"], "against": "random", "reckoning": which, **difference}
            )
    return found


def _picks(ready: Ready, name: str, options: RaceOptions) -> Json:
    """The places of the picks of a searcher that trains: it is given one task after the other, and
    no query."""
    assert ready.tasks is not None
    folds, keys = ready.tasks
    rows, lands = results.row_numbers(ready.table), results.landscapes(ready.table)["scores"]
    genotypes: list[Genotype] = []
    for task, land in enumerate(lands):
        log.info(f"{name}: task {task + 1} of {len(lands)}")
        data = Data(take(folds, task), NullLedger())
        search = ready.searchers[name](fold_in(keys[task], "searcher"), options.budget, data)
        trials = run_search(search, results.lookup(rows, land), options.budget)
        genotypes.append(choose(ready.space, trials, 0.0).genotype)
    found = results.placed(genotypes, ready.table, options.budget)
    for place, genotype in zip(found["tasks"], genotypes):
        place["words"] = describe(ready.space, genotype)
    return {"searcher": name, "options": ready.racers[name].model_dump(mode="json"), **found}


def _store(options: RaceOptions, found: Json) -> None:
    from metalearn.tabular import figures

    figures.show(found)
    for row in found["curves"]:
        if not row.get("agrees", True):
            log.warning(
                f"random search, {row['reckoning']}: its mean regret is not what theory says"
            )
    if options.out is not None:
        write_json(options.out, found)
    drawn = options.plot if found["curves"] else None
    if drawn is not None:
        write_atomic(drawn, figures.drawing(found).encode())
    if options.markdown is not None:
        figures.write_markdown(options.markdown, found, drawn)
    written = [str(path) for path in (options.out, drawn, options.markdown) if path is not None]
    if written:
        log.info(f"written: {', '.join(written)}")
