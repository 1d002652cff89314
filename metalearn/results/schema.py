"""The schema of comparison.json: the format of each of its lists."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from metalearn.evaluate.breakeven import Verdict
from metalearn.evaluate.decision.packed import CELLS
from metalearn.storage.schema import Count, Open, Result, Target, Text

Axis = Literal["flops", "seconds"]
Number = float  # finite; what is derived from the numbers of runs may be larger than these
Maybe = Number | None
Ends = Annotated[list[Maybe], Field(min_length=2, max_length=2)] | None
OfAxis = dict[Axis, Maybe]


class _Labelled(Open):
    label: Text


class _Summary(_Labelled):
    value: Maybe = None
    ci95_tasks: Maybe = None
    ci95_seeds: Maybe = None
    diverged: Maybe = None
    nll: Maybe = None
    nll_ci95: Maybe = None
    nll_left_out: Maybe = None
    calibration_error: Maybe = None
    calibration_floor: Maybe = None
    auc: Maybe = None
    iqm: Maybe = None
    interval: Ends = None
    median: Maybe = None
    freedom: Maybe = None
    covers: Text | None = None
    reliability: Maybe = None
    agreement: Maybe = None
    per_seed: list[Maybe] | None = None


class _Pair(Open):
    a: Text
    b: Text


class _Difference(_Pair):
    difference: Maybe
    ci95: Ends
    p: Maybe
    why: Text | None = None
    contrast: bool = False
    exploratory: bool = False
    p_holm: Maybe = None
    per_seed: list[Maybe] | None = None


class _Without(Open):
    seed: int
    tasks: Maybe


class _Variant(_Pair):
    verdict: Verdict
    tasks: Maybe
    ci95: Ends
    with_tuning: bool
    with_answering: bool
    with_given: bool = True
    queries: Count | None = None  # None: those of the test, if with_answering
    why: Text = ""


class _BreakEven(_Pair):
    axis: Axis
    verdict: Verdict
    tasks: Maybe
    ci95: Ends
    leave_one_out: list[_Without] = Field(default_factory=list)
    why: Text = ""
    contrast: bool = True  # before version 0.2.0 every pair had a verdict
    primary: bool = True  # verdicts of contrasts are at this level; before rules 6 at all of them
    level: Maybe = None
    with_tuning: bool = True
    with_answering: bool = False
    variants: list[_Variant] = Field(default_factory=list)
    by_queries: list[_Variant] = Field(default_factory=list)


class _DecisionMap(Open):
    axis: Axis
    tasks: list[Count]
    targets: list[Number]
    queries: list[Count]
    winner: list[list[list[Text | None]]]
    share: list[list[list[Maybe]]]
    settled: list[list[list[bool]]]
    as_tested: Count
    metric: Literal["accuracy", "loss"]
    left_out: dict[str, Text] = Field(default_factory=dict)
    unsettled: Text = ""
    pretraining: Literal["free"] | None = None
    along: dict[str, list[Count]] | None = None
    stops_after: list[list[list[Count | None]]] | None = None


class PackedMap(Open):
    """A decision map as in `experiments/results/`: one word per cell."""

    axis: Axis
    metric: Literal["accuracy", "loss"]
    tasks: list[Count]
    targets: list[Number]
    queries: list[Count]
    as_tested: Count
    methods: list[Text]
    cells: list[list[Annotated[str, Field(pattern=CELLS)]]]
    left_out: dict[str, Text] = Field(default_factory=dict)
    unsettled: Text = ""
    pretraining: Literal["free"] | None = None
    along: dict[str, list[Count]] | None = None


class _Choice(_Pair):
    choice: Literal["base", "level", "stop", "curve", "tuning", "answering", "axis"]
    value: Text
    reached: bool
    tasks: Maybe
    ci95: Ends


class _Sensitivity(_Pair):
    level: Number
    choices: list[_Choice]


class _Check(Open):
    name: Text
    passed: bool
    why: Text


class _Curve(_Labelled):
    steps: list[Count]
    mean: list[Maybe]
    ci95: list[Maybe]
    seeds: list[list[Maybe]]
    converged_only: bool


class _CostCurve(_Labelled):
    axis: Axis
    cost: list[Number]
    mean: list[Maybe]
    low: list[Maybe]
    high: list[Maybe]


class _Within(Open):
    cost: list[Number]
    share: list[Number]


class _ShareAt(Open):
    level: Number
    share: Number
    ci95: Ends


class _Solved(_Labelled):
    share: Number
    per_solved: OfAxis
    median: OfAxis
    restricted: OfAxis
    cap: Count
    within: dict[Axis, _Within | None]
    shares: list[_ShareAt] = Field(default_factory=list)


class _LineOfQueries(Open):
    queries: Count
    per_solved: Number


class _Line(_Labelled):
    up_front: Number
    per_solved: Number
    share: Number
    by_queries: list[_LineOfQueries] = Field(default_factory=list)
    pretraining: Literal["free"] | None = None


class _Total(_Labelled):
    tasks: Count
    flops: Maybe
    seconds: Maybe
    on_front: dict[Axis, bool]
    ci95: dict[Axis, Ends] | None = None
    front: dict[Axis, Literal["on", "off", "open"] | None] | None = None


class _Values(_Labelled):
    values: list[Maybe]
    ci95: list[Maybe] | None = None
    seeds: list[Count] | None = None
    untuned: list[bool] | None = None
    tuned_after_training: list[Text] | None = None


class _EqualCompute(Open):
    tasks: Count
    budgets: list[Number]
    rows: list[_Values]


class _Factor(_Pair):
    part: Text
    to: Text
    same: list[Text]
    difference: Number
    ci95: Ends


class _Control(_Labelled):
    relative: Number
    ci95: Ends
    seeds: Count | None = None


class _Noise(_Labelled):
    tau: Maybe
    spearman: Maybe
    # In units of a loss that may have diverged, so of any finite size; shown in a table alone.
    regret: float | None
    regret_of_chance: float | None
    optimism: float | None
    gain: float | None
    searches: Count
    candidates: Count


class _Tuning(_Labelled):
    trials: Count
    best: Maybe
    tested: Maybe
    best_so_far: list[Maybe] | None = None
    flops: Maybe = None
    seeds: list[int] | None = None
    tested_same_seeds: Maybe = None


class _Inductive(_Labelled):
    normalisation: Text | None
    value: Maybe
    interval: Ends
    difference: Maybe
    ci95: Ends
    why: Text | None


class _Fact(Open):
    topic: Text
    text: Text


# Fields of comparison.json that are there only if rows start from weights that others trained.
OF_PRETRAINED = frozenset({"decision_map_free", "decision_map_seconds_free"})


class Comparison(Open):
    """comparison.json, schema 1; fields with the default None are absent in earlier files."""

    rows: list[Result]
    summary: list[_Summary]
    paired: list[_Difference]
    target: Target | None
    rules: Count | None = None
    contrasts: list[list[Text]] | None = None
    contrast_choice: Text | None = None
    levels: list[Number] | None = None
    break_even: list[_BreakEven]
    checks: list[_Check]
    break_even_common: list[_BreakEven] | None = None
    sensitivity: list[_Sensitivity] | None = None
    decision_map: _DecisionMap | None = None
    decision_map_seconds: _DecisionMap | None = None
    decision_map_free: _DecisionMap | None = None
    decision_map_seconds_free: _DecisionMap | None = None
    curves: list[_Curve] | None = None
    cost_curves: list[_CostCurve] | None = None
    solved: list[_Solved] | None = None
    break_even_lines: list[_Line] | None = None
    total_cost: list[_Total] | None = None
    equal_compute: _EqualCompute | None = None
    factors: list[_Factor] | None = None
    controls: list[_Control] | None = None
    selection: list[_Noise] | None = None
    tuning: list[_Tuning] | None = None
    inductive: list[_Inductive] | None = None
    protocol: list[_Fact] | None = None
