"""Finished rows -> `comparison.json`: all that a report says of several runs, computed once."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

from metalearn.errors import ConfigError
from metalearn.results import records as data
from metalearn.results.break_even.counts import break_even, break_even_common, break_even_lines
from metalearn.results.break_even.decision_map import decision_maps
from metalearn.results.break_even.sensitivity import sensitivity
from metalearn.results.break_even.solved import solved_rows
from metalearn.results.break_even.target import choose_target, target_levels
from metalearn.results.checks import checks
from metalearn.results.contrast_choice import contrast_choice
from metalearn.results.contrasts import mark_contrasts
from metalearn.results.costs import total_cost
from metalearn.results.curves import cost_curves, curves
from metalearn.results.design.inductive import inductive_rows
from metalearn.results.design.protocol import protocol
from metalearn.results.design.tuning import tuning_rows
from metalearn.results.factors import factors
from metalearn.results.iso_compute import equal_compute
from metalearn.results.records import Group, Json
from metalearn.results.schema import Comparison
from metalearn.results.searches import controls, selection_rows
from metalearn.results.summary import paired_difference, summary
from metalearn.storage.files import plain, read_json, write_json
from metalearn.storage.schema import Request, check_schema

FILE = "comparison.json"
# Of intervals and verdicts. 2: two-way random effects, Fieller, contrasts with Holm. 3: verdicts of
# break-even for contrasts alone, in seconds only from rows that were timed in turns. 4: limits
# of fractions of solved tasks by Wilson, and of counts computed from them. 5: break-even estimates
# with too few seeds at the hardest level by point estimates, none across a gap of fractions.
# 6: the noise of timing in intervals of seconds; costs without a failure by the number of tasks;
# `pays` only if the up-front costs are distinguished; a verdict only at the level of the file next
# to the target, and for no contrast that was chosen after rows had finished; intervals over seeds
# need 3; a cell of the map is settled only if its shares are, by intervals; no verdict in
# seconds of training that waited for cores. 7: a method is off or on the front by tested
# differences of scores; no verdict in seconds of a method with a slow round; a cell
# that no method reaches is settled if all surely miss it. 8: a row with seeds that have
# no result decides nothing; tasks of several sizes have no reliability. 9: maps and
# counts by queries without the cost of pretraining elsewhere; verdicts by queries. 10: in-context
# rows have contrasts with meta-learned and transfer rows, not with scratch alone.
RULES = 10


def compare(
    groups: Sequence[Group],
    unfinished: Sequence[str] = (),
    *,
    target: Json | None = None,
    request: Json | None = None,
) -> Json:
    """Return the contents of comparison.json (schema 1) for groups that learn the same new tasks.

    Args:
        target: what counts as solved; None: what the experiment names, else what validation tasks
            say.
        request: comparison-request.json: `contrasts` as the file names them, `labels` in its order.
    """
    target = {"why": "named in the experiment", **target} if target else choose_target(groups)
    request = request or {}
    levels = target_levels(groups, target)
    chosen = contrast_choice(groups, request)
    differences = [paired_difference(a, b) for a, b in combinations(groups, 2)]
    pairs = mark_contrasts(differences, chosen.tested, chosen.exploratory)
    contents = {
        "schema": 1,
        "rules": RULES,
        "rows": [run.result for group in groups for run in group.runs],
        "summary": [summary(group) for group in groups],
        "paired": pairs,
        "contrasts": [list(pair) for pair in chosen.pairs],
        "contrast_choice": chosen.note,
        "target": target,
        "levels": levels,
        "break_even": break_even(groups, target, levels, chosen.tested),
        "break_even_common": break_even_common(groups, target, chosen.tested),
        **decision_maps(groups, target, levels),
        "sensitivity": sensitivity(groups, target, levels, chosen.pairs),
        "checks": [check._asdict() for check in checks(groups, unfinished, target)],
        **_figure_data(groups, target, pairs, levels),
    }
    return dict(plain(contents))


def _figure_data(
    groups: Sequence[Group], target: Json | None, pairs: Sequence[Json], levels: Sequence[float]
) -> Json:
    """Return the parts of comparison.json from which figures and tables are made."""
    tasks = max((run.episodes for group in groups for run in group.runs), default=0)
    return {
        "curves": curves(groups),
        "cost_curves": cost_curves(groups),
        "solved": solved_rows(groups, target, levels),
        "break_even_lines": break_even_lines(groups, target),
        "total_cost": total_cost(groups, tasks, pairs),
        "equal_compute": equal_compute(groups, tasks),
        "factors": factors(groups, pairs),
        "controls": controls(groups),
        "selection": selection_rows(groups),
        "tuning": tuning_rows(groups),
        "inductive": inductive_rows(groups),
        "protocol": protocol(groups, levels),
    }


def collect(root: Path, *, target: Json | None = None) -> Json:
    """Return the contents of `comparison.json` for a comparison directory.

    Args:
        root: holds `methods/<label>/seed-<n>/`, each a run directory; a check names rows without a
            result.
        target: what counts as solved ({"metric", "value"}); None: as comparison-request.json, the
            experiment or validation tasks say.

    Raises:
        ConfigError: no row is finished, or a file is unreadable."""
    finished, unfinished = data.run_directories(root)
    if not finished:
        text = "contains no finished run (methods/<label>/seed-<n>/result.json)"
        raise ConfigError((str(root), text))
    groups = data.group(data.load(path) for path in finished)
    missing = [str(path.relative_to(root)) for path in unfinished]
    request = read_request(root)
    return compare(groups, missing, target=target or request.get("target"), request=request)


def read_request(root: Path) -> Json:
    """Return comparison-request.json of a directory; empty if there is none."""
    file = root / "comparison-request.json"
    return dict(check_schema(Request, read_json(file), file)) if file.exists() else {}


def write_comparison(root: Path) -> Path:
    """Write `comparison.json` into a comparison directory, atomically and without NaN."""
    write_json(root / FILE, collect(root))
    return root / FILE


def update_comparison(root: Path) -> None:
    """Write `comparison.json` unless it is there and fits the run directories."""
    finished, _ = data.run_directories(root)
    if not finished or read_comparison(root, data.group(map(data.load, finished))) is None:
        write_comparison(root)


def read_comparison(root: Path, groups: Sequence[Group]) -> Json | None:
    """Return comparison.json of a directory, or None if it is missing or out of date.

    Raises:
        ConfigError: it is unreadable or damaged."""
    file = root / FILE
    if not file.exists():
        return None
    try:
        contents = check_schema(Comparison, read_json(file), file)
    except ConfigError as error:
        advice = "delete it: `metalearn report` recomputes it from the run directories"
        raise ConfigError(*error.problems, (str(file), advice)) from error
    results = [run.result for group in groups for run in group.runs]
    same = sorted(map(_run_key, contents["rows"])) == sorted(map(_run_key, results))
    return contents if same and all(row in results for row in contents["rows"]) else None


def _run_key(result: Json) -> tuple[str, int, str]:
    return str(result.get("label")), int(result.get("seed") or 0), str(result.get("config_hash"))
