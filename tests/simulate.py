"""The long versions of test_simulations.py: `make simulate` writes docs/simulations.md."""

from __future__ import annotations

import math
import sys
import textwrap
from pathlib import Path

from simulated import (
    SEED_SDS,
    SEEDS,
    bootstrapped_crossing,
    family_by_bootstrap,
    pigeonhole_bootstrap,
    study_crossings,
    study_family,
    study_hard_tasks,
    study_means,
    study_no_start,
    study_shares,
    study_timing,
    study_varying_cost,
)
from test_simulations import NEVER, PAYS

SIMULATED = 7  # version of the rules that last changed an interval or a verdict of this page
HEAD = f"""# Simulations of intervals, tests and verdicts

`make simulate` writes this page; fast versions are in `tests/test_simulations.py`. The data are
synthetic, with a known answer: 200 tasks, whose standard deviation (SD) is 5 points of accuracy
between tasks, 9 points for a seed on one task, and between seeds as in the second column (about 1
on Omniglot). "Before" is the percentile bootstrap over seeds and tasks that was used until version
0.2.0. Some columns of power, of true verdicts and of "before" have fewer repeats than stated, down
to a twentieth.

The rules are in `random_effects.py`, `breakeven.py`, `statistics/fieller.py` and
`statistics/holm.py` of `metalearn/evaluate/`; all sections are by version {SIMULATED} of the rules
(`rules` of comparison.json). Later versions change none of what is simulated here.
"""


def wrapped(text: str) -> list[str]:
    """Lines of at most 100 columns."""
    return textwrap.wrap(text, 100, break_on_hyphens=False)


def means(repeats: int) -> list[str]:
    lines = [
        "## Interval of a mean, or of a paired difference",
        "",
        *wrapped(
            f"Nominal 95 %; {repeats:,} repeats. Power: how often the interval excludes 0 for a "
            "true difference of 3 points."
        ),
        "",
        "| seeds | SD of seeds, points | coverage | power | coverage before |",
        "|---|---|---|---|---|",
    ]
    for seeds in SEEDS:
        for seed_sd in SEED_SDS:
            found = study_means(seeds, seed_sd, repeats)
            power = study_means(seeds, seed_sd, repeats // 4, mean=3.0).excludes
            older = study_means(seeds, seed_sd, repeats // 8, pigeonhole_bootstrap).coverage
            cells = f"{found.coverage:.3f} | {power:.0%} | {older:.3f}"
            lines.append(f"| {seeds} | {seed_sd:g} | {cells} |")
    return lines


def families(repeats: int) -> list[str]:
    lines = [
        "## False positives among equal methods",
        "",
        *wrapped(
            f"24 equally good methods, 10 contrasts, Holm at 5 %; {repeats:,} repeats. Power: how "
            "often a method that is better by 3 points is found to be better in one of the 10 "
            "contrasts."
        ),
        "",
        "| seeds | any false contrast | power | any false contrast before |",
        "|---|---|---|---|",
    ]
    for seeds in SEEDS:
        false, _ = study_family(seeds, repeats)
        _, power = study_family(seeds, repeats // 4, gain=3.0)
        older = family_by_bootstrap(seeds, repeats // 20)
        lines.append(f"| {seeds} | {false:.3f} | {power:.0%} | {older:.2f} |")
    return lines


def shares(repeats: int) -> list[str]:
    lines = [
        "## Fraction of solved tasks, and the break-even count computed from it",
        "",
        *wrapped(
            f"{repeats:,} repeats: a standard error of {math.sqrt(0.95 * 0.05 / repeats):.4f}. The "
            "two methods of the next table solve 90 % and 87 % of their tasks. The interval of a "
            "fraction is Wilson's with an effective number of tasks; the interval of the cost of "
            "a solved task follows from it (`metalearn/evaluate/targets.py`). Before: symmetric "
            "intervals, as for a mean. A fraction near 1 varies more downwards than upwards, so "
            "these were too short on one side if seeds differ much. The difference of two "
            "fractions keeps the symmetric interval. With few seeds that do not differ, both "
            "intervals are wider than necessary: that gives fewer verdicts, and none that are "
            "false."
        ),
        "",
        "| seeds | SD of seeds, points | fraction | fraction before | difference | count "
        "| count before |",
        "|---|---|---|---|---|---|---|",
    ]
    for seeds in SEEDS:
        for seed_sd in SEED_SDS:
            found = study_shares(PAYS, seeds, seed_sd, repeats)
            cells = (found.share, found.symmetric, found.gap, found.number, found.symmetric_number)
            numbers = " | ".join(f"{value:.3f}" for value in cells)
            lines.append(f"| {seeds} | {seed_sd:g} | {numbers} |")
    return lines


def varying_costs(repeats: int) -> list[str]:
    lines = [
        "## Costs that differ between seeds",
        "",
        *wrapped(
            f"{repeats:,} repeats with 3 seeds, whose costs differ by 10 %, and 100 tasks: how "
            "often the cost of a solved task is below or above its interval, each nominally "
            "0.025. If all tasks are solved, failures do not widen the interval of a cost: equal "
            "costs then count as equal."
        ),
        "",
        "| fraction solved | SD of seeds, points | below | above |",
        "|---|---|---|---|",
    ]
    for share in (0.9, 0.97, 0.995):
        for seed_sd in (0.0, 1.3, 7.0):
            below, above = study_varying_cost(share, seed_sd, repeats)
            lines.append(f"| {share} | {seed_sd:g} | {below:.3f} | {above:.3f} |")
    return lines


def crossings(repeats: int) -> list[str]:
    lines = [
        "## Break-even counts",
        "",
        *wrapped(
            f"{repeats:,} repeats. Pays: 1,000 in advance and 2 per task with 90 % solved, against "
            "0 and 12 per task with 87 %, so the exact answer is 86.4 tasks. Never: the same with "
            "equal costs of a solved task."
        ),
        "",
        "| seeds | SD of seeds, points | coverage of the count | verdict pays, true "
        "| verdict pays, false | coverage before | false before |",
        "|---|---|---|---|---|---|---|",
    ]
    for seeds in SEEDS:
        for seed_sd in SEED_SDS:
            pays = study_crossings(PAYS, seeds, seed_sd, repeats)
            never = study_crossings(NEVER, seeds, seed_sd, repeats)
            older = [
                study_crossings(costs, seeds, seed_sd, repeats // 8, bootstrapped_crossing)
                for costs in (PAYS, NEVER)
            ]
            cells = [
                f"{pays.coverage:.3f}",
                f"{pays.verdicts.get('pays', 0):.0%}",
                f"{never.verdicts.get('pays', 0) + never.verdicts.get('always', 0):.3f}",
                f"{older[0].coverage:.3f}",
                f"{older[1].verdicts.get('pays', 0):.3f}",
            ]
            lines.append(f"| {seeds} | {seed_sd:g} | {' | '.join(cells)} |")
    return lines


def timings(repeats: int) -> list[str]:
    lines = [
        "## Seconds, timed in five rounds",
        "",
        *wrapped(
            f"{repeats:,} repeats, 5 seeds. Two methods with 1,000 and 0 seconds in advance. "
            "False: with equal seconds per task the first never pays. True: with half of the "
            "seconds per task it pays from 1,000 divided by the difference. Rounds differ by the "
            "standard deviation in the second column. Before: without the variance between the "
            "rounds."
        ),
        "",
        "| fraction solved | SD of a round | verdict pays, false | false before "
        "| verdict pays, true | coverage of the count |",
        "|---|---|---|---|---|---|",
    ]
    for share in (0.9, 1.0):
        for variation in (0.01, 0.03, 0.07):
            equal = ((1000.0, 1.0, share), (0.0, 1.0, share))
            half = ((1000.0, 0.5, share), (0.0, 1.0, share))
            false = study_timing(equal, variation, repeats).verdicts
            older = study_timing(equal, variation, repeats // 4, with_variance=False).verdicts
            true = study_timing(half, variation, repeats // 4)
            cells = (
                f"{false.get('pays', 0) + false.get('always', 0):.3f}",
                f"{older.get('pays', 0):.2f}",
                f"{true.verdicts.get('pays', 0):.0%}",
                f"{true.coverage:.3f}",
            )
            lines.append(f"| {share:g} | {variation:.0%} | {' | '.join(cells)} |")
    return lines


HARD = ((5, 0.7), (20, 0.9), (50, 0.96), (150, 0.99), (200, 0.995))  # tasks, share solved


def hard_tasks(repeats: int) -> list[str]:
    lines = [
        "## Tasks on which every seed fails",
        "",
        *wrapped(
            f"{repeats:,} repeats with 3 seeds, which all fail on the same tasks. The first method "
            "costs 1,000 in advance, the second nothing; its tasks are all solved, and cost a bit "
            "less than a solved task of the first (false), or twice as much (true). Before version "
            "6 of the rules the cost of a method without a failure was taken as known."
        ),
        "",
        "| tasks | fraction solved | no failure seen | pays or always, false | pays, true |",
        "|---|---|---|---|---|",
    ]
    for tasks, share in HARD:
        false = study_hard_tasks(share, tasks, 0.99 if share < 0.99 else 0.999, repeats)
        true = study_hard_tasks(share, tasks, 2.0, repeats // 4)
        wrong = false.get("pays", 0) + false.get("always", 0)
        cells = f"{share} | {share**tasks:.2f} | {wrong:.3f} | {true.get('pays', 0):.0%}"
        lines.append(f"| {tasks} | {cells} |")
    return lines


def no_start(repeats: int) -> list[str]:
    lines = [
        "## No costs in advance",
        "",
        *wrapped(
            f"{repeats:,} repeats with 200 tasks. False: both methods are equal. True: a task "
            "of the second one costs 1.3 times as much."
        ),
        "",
        "| seeds | SD of seeds, points | fraction solved | the same | always, false "
        "| always, true |",
        "|---|---|---|---|---|---|",
    ]
    for seeds in SEEDS:
        for seed_sd in (1.3, 3.0, 7.0):
            for share in (0.9, 0.99):
                equal = study_no_start(share, seeds, seed_sd, repeats)
                true = study_no_start(share, seeds, seed_sd, repeats // 4, 1.3)
                rates = f"{equal.get('same', 0):.0%} | {equal.get('always', 0):.3f}"
                cells = f"{seed_sd:g} | {share} | {rates} | {true.get('always', 0):.0%}"
                lines.append(f"| {seeds} | {cells} |")
    return lines


STUDIES = (
    (means, 4000),
    (families, 2000),
    (shares, 4000),
    (varying_costs, 2000),
    (crossings, 1000),
    (timings, 1000),
    (hard_tasks, 1000),
    (no_start, 1000),
)


def main(out: Path, scale: float) -> None:
    parts = [HEAD.strip(), ""]
    for study, repeats in STUDIES:
        parts += [*study(int(repeats * scale)), ""]
        print(f"simulations: {study.__name__} done", file=sys.stderr)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text("\n".join(parts).strip() + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]) if len(sys.argv) > 2 else 1.0)
