"""The ten questions that a report answers, one a section; a question that the run cannot answer
says why.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from typing import Any

from metalearn.report import cost_tables, search_tables, shift_tables, tables
from metalearn.report.figures import cost
from metalearn.report.figures.axes import by_label
from metalearn.report.html import details
from metalearn.results.records import Group, Json
from metalearn.results.searches import searches

QUESTIONS = (
    "How fast is a new task learned, with the same labels?",
    "What share of tasks reaches the target within a budget?",
    "Is architecture search worth its compute?",
    "Which way is best at the same total compute?",
    "After how many new tasks is an up-front cost repaid?",
    "What adds how much: start, optimizer or architecture?",
    "Did a search find anything, or only select noise?",
    "How does the ranking change with shots and ways?",
    "Does it survive a shift to other tasks?",
    "What did all of it cost, and can the comparison be trusted?",
)
Draw = Callable[
    [Callable[[Any, Any], Any], Any, str, str], str
]  # (figure, its data, name, caption) -> HTML
Sections = Sequence[tuple[str, Sequence[Group]]]


def heading(number: int, mark: str = "") -> str:
    """The section's heading; questions count from 1."""
    name = f"{mark}-q{number}" if mark else f"q{number}"
    return f'<h2 id="{name}"><span class="number">{number}</span> {QUESTIONS[number - 1]}</h2>'


def unanswered(why: str) -> str:
    """A sentence (text) in the place of an answer."""
    return f'<p class="unanswered"><strong>This run cannot tell:</strong> {escape(why)}</p>'


def rest(
    groups: Sequence[Group], found: Json, draw: Draw, sections: Sections, mark: str = ""
) -> str:
    """Questions 2 to 10."""
    parts = [
        reached(groups, found, draw),
        search(groups, found, draw),
        same_compute(groups, found),
        repaid(groups, found, draw),
        parts_of(groups, found),
        luck(groups, found, draw),
        other_settings(sections),
        shift(groups),
        account(groups, found, mark),
    ]
    return "\n".join(f"{heading(number, mark)}\n{part}" for number, part in enumerate(parts, 2))


def target_line(target: Json) -> str:
    value = (
        f"{target['value'] * 100:.1f} %"
        if target["metric"] == "accuracy"
        else f"{target['value']:.3g}"
    )
    name = "accuracy" if target["metric"] == "accuracy" else "a loss of"
    why = escape(str(target.get("why") or "named in the experiment"))
    shown = f"{value} {name}" if target["metric"] == "accuracy" else f"{name} {value}"
    return (
        f"<p>The target: {shown} or better on a task’s queries ({why}; test tasks had no "
        f"say in it).</p>"
    )


NO_TARGET = (
    "there is no target. Name one in the experiment (evaluate.target), or let methods look at "
    "validation tasks "
    "(run.validate), from which it is chosen."
)


SECONDS = (
    "The same for a budget of seconds, per task inside a batch of tasks. Up and to the "
    "left is better."
)


def reached(groups: Sequence[Group], found: Json, draw: Draw) -> str:
    target = found["target"]
    if target is None:
        return unanswered(NO_TARGET)
    caption = (
        "Share of test tasks that reached the target, and stayed there, at a cost of at most "
        "so much (Kaplan-Meier, "
        "all seeds together). Tasks that never reach it are censored where their curve ends: "
        "where a line ends below "
        "100 %, the rest was not solved by any budget that was tried. Up and to the left is better."
    )
    return "\n".join(
        [
            target_line(target),
            draw(
                cost.reached_figure, (groups, found), "reached-flops", caption + " Budget in FLOPs."
            ),
            draw(cost.reached_seconds_figure, (groups, found), "reached-seconds", SECONDS),
            cost_tables.solved(groups, found),
        ]
    )


def search(groups: Sequence[Group], compared: Json, draw: Draw) -> str:
    better = "Up" if groups[0].higher_better else "Down"
    caption = (
        "Everything that was spent, in FLOPs: tuning, training, search, and learning the test "
        "tasks up to the headline "
        f"step, against what came of it. {better} and to the left is better; filled marks are "
        f"beaten by nobody in both."
    )
    picture = draw(cost.pareto_figure, (groups, compared), "pareto", caption)
    picture = picture or unanswered("FLOPs were not counted in every phase of any row.")
    if searches(groups):
        table = search_tables.controls(groups, compared)
    else:
        table = unanswered(
            "no row searched architectures. What stands here is the trade of cost and score anyway."
        )
    return "\n".join([table, picture, cost_tables.totals(groups, compared)])


def same_compute(groups: Sequence[Group], found: Json) -> str:
    table = cost_tables.budgets(groups, found)
    if not table:
        return unanswered(
            "it takes two methods whose FLOPs were counted, and looks at validation tasks on "
            "the way."
        )
    families = {"searched" if group in searches(groups) else _family(group) for group in groups}
    lacking = [name for name in ("transfer", "searched", "scratch") if name not in families]
    words = {
        "transfer": "plain transfer",
        "searched": "architecture search",
        "scratch": "training from scratch",
    }
    note = (
        f'<p class="note">Without a row of {", ".join(words[name] for name in lacking)}.</p>'
        if lacking
        else ""
    )
    return table + note


def _family(group: Group) -> str:
    start = (group.first.result.get("factors") or {}).get("start")
    consumes = group.first.traits.get("consumes", "nothing")
    if consumes == "nothing" and start == "pretrained":
        return "transfer"
    begun = consumes == "nothing" and start in (None, "random")
    return "scratch" if begun else {"examples": "transfer"}.get(str(consumes), "meta-learned")


def repaid(groups: Sequence[Group], found: Json, draw: Draw) -> str:
    if found["target"] is None:
        return unanswered(NO_TARGET)
    if not found["break_even"]:
        return unanswered("it takes at least two methods.")
    caption = (
        "FLOPs in all after so many new tasks: what was spent beforehand, and the price of a "
        "solved task for each. "
        "Beside each name, on a wide page, the share of tasks that reach the target; a faint "
        "line has fewer than half, "
        "and a cheap method that does not get there does not win. Where lines cross, the "
        "dearer start is repaid."
    )
    priced = by_label(found, "break_even_lines")
    absent = [group.label for group in groups if group.label not in priced]
    caption += (
        f" Not drawn, as no task reached it or a cost was not measured: {', '.join(absent)}."
        if absent
        else ""
    )
    note = (
        '<p class="note">pays: dearer beforehand, cheaper a task; always: no dearer from the '
        "first task on; never: "
        "dearer beforehand and no cheaper a task; the same: both costs within 10 %; not "
        "reached: a share of solved tasks below 50 %, or shares more than 10 points apart. "
        "Each of these is decided by a 95 % interval over training seeds and tasks, and needs "
        "3 seeds; what an interval leaves open is undecided, and so is a number of tasks whose "
        "interval (Fieller’s) spans a factor above 10, or a cost that was not measured. Set-up "
        "is in neither cost. Numbers are rounded up to whole tasks.</p>"
    )
    return "\n".join(
        [
            draw(cost.break_even_figure, (groups, found), "break-even", caption),
            "<h3>At the target</h3>",
            details(
                "In FLOPs of products and convolutions",
                cost_tables.break_even(found, "flops"),
                opened=True,
            ),
            details("In seconds", cost_tables.break_even(found, "seconds")),
            "<h3>At the highest level that both reach</h3>",
            f"<p>{COMMON}</p>",
            details(
                "In FLOPs of products and convolutions",
                cost_tables.break_even(found, "flops", True),
                opened=True,
            ),
            details("In seconds", cost_tables.break_even(found, "seconds", True)),
            note,
        ]
    )


COMMON = (
    "A target near the best method’s level is out of the others’ reach, so it compares few. "
    "Here each pair is held to "
    "the hardest level, in steps of 5 points (of a loss, a quarter), that at least half of "
    "both’s tasks reach, with "
    "shares at most 10 points apart. The level is chosen by these shares alone, not by cost. "
    "Who wins at a low level "
    "need not win at a high one. Not reached: at none of the levels down to 5 points above "
    "chance (of a loss, up to 28 "
    "times the target); the shares are those at the last one."
)


def parts_of(groups: Sequence[Group], found: Json) -> str:
    table = search_tables.factors(groups, found)
    if table:
        return table + (
            '<p class="note">Paired differences, as under question 1, between methods that '
            "differ in one part alone, "
            "by start (random, pretrained, meta-learned), optimizer of new tasks, and "
            "architecture.</p>"
        )
    return unanswered(
        "no two of its methods that take steps differ in the start, the optimizer or the "
        "architecture alone."
    )


def luck(groups: Sequence[Group], found: Json, draw: Draw) -> str:
    parts = []
    if found.get("selection"):
        caption = (
            "Every candidate of the first test tasks: the score that it was chosen by, against "
            "how good it was on "
            "queries once trained as the winner is. Circles: the picks; the nearer they lie to "
            "the top, the better."
        )
        parts = [
            draw(cost.selection_figure, (groups, found), "selection", caption),
            search_tables.noise_table(groups, found),
            '<p class="note">In minus the mean loss of a task’s queries, higher is better. At '
            "one shot a score is "
            "minus the mean training loss, no estimate of that on queries: no optimism is told "
            "there.</p>",
        ]
    elif searches(groups):
        parts = [
            unanswered(
                "the candidates that were not picked were never tried on queries, so regret "
                "and rank correlation are "
                "unknown. On a tabulated space they are known: metalearn nas tabulate."
            )
        ]
    else:
        parts = [unanswered("no row searched architectures.")]
    tuning = search_tables.tuning_table(groups, found)
    return "\n".join([*parts, *(["<h3>And tuning?</h3>", tuning] if tuning else [])])


def other_settings(sections: Sections) -> str:
    table = shift_tables.settings(sections)
    return table or unanswered(
        "it holds one number of ways and shots. Run the comparison again with other ones "
        "(task.shots=5), and put both "
        "on a page: metalearn report A B."
    )


def shift(groups: Sequence[Group]) -> str:
    found = shift_tables.across(groups)
    if found:
        return shift_tables.across_table(groups, found)
    return unanswered(
        "every row was tested on the source that it was trained on. Test a run on another one: "
        "metalearn evaluate "
        "RUN_DIR task.source=omniglot."
    )


def account(groups: Sequence[Group], found: Json, mark: str = "") -> str:
    return "\n".join(
        [
            f'<h3 id="{mark + "-" if mark else ""}checks">Checks</h3>',
            tables.check_table(found),
            "<h3>What it cost</h3>",
            tables.costs(groups),
            "<h3>The ledger by phase</h3>",
            cost_tables.ledger(groups),
        ]
    )


def checklist(found: Json, mark: str = "") -> str:
    """One line (HTML) near the top: how many checks hold, and the names of those that do not."""
    failed = [escape(check["name"]) for check in found["checks"] if not check["passed"]]
    count = len(found["checks"])
    link = f'<a href="#{mark + "-" if mark else ""}checks">checks</a>'
    if not failed:
        return f'<p class="checklist"><span class="pass">✓ all {count} {link} passed</span></p>'
    listed = "; ".join(failed)
    return (
        f'<p class="checklist"><span class="fail">✗ {len(failed)} of {count} {link} '
        f"failed</span>: {listed}</p>"
    )
