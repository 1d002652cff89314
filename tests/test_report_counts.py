"""Numbers that a page does not print, with the reason: too few tasks, candidates or seeds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from run_folders import groups_of, write_run

from metalearn.results.checks import _check_edges
from metalearn.results.cost_checks import _check_equal_tuning

SHARES = [("maml", 0.9), ("scratch", 0.85), ("reptile", 0.7)]


def made(root: Path, method: str, change: Any = id, seed: int = 0) -> Any:
    write_run(
        root / f"methods/{method}/seed-{seed}", method, method, seed, episodes=20, change=change
    )
    return groups_of(root)


def test_a_headline_step_at_the_end_of_the_curve_is_on_an_edge(tmp_path: Path) -> None:
    def last(result: dict[str, Any]) -> None:
        result["tuned"] = {"headline_step": 20, "on_edge": []}
        result["headline"]["step"] = 20

    assert _check_edges(made(tmp_path, "scratch")).passed
    for seed in (0, 1):
        groups = made(tmp_path, "maml", last, seed)
    found = _check_edges(groups)
    assert not found.passed
    assert found.why.endswith("better: headline step 20, the last of the curve: maml")


def test_equal_trials_state_their_unequal_flops(tmp_path: Path) -> None:
    def cheap(result: dict[str, Any]) -> None:
        result["tuning"]["stages"][0]["flops"] = 1e9

    made(tmp_path, "scratch")
    found = _check_equal_tuning(made(tmp_path, "fine_tune", cheap))
    assert found.name == "equal tuning trials in each stage" and found.passed
    assert found.why.endswith("; FLOPs of all trials: 1e+09 (fine_tune) to 4e+09 (scratch)")
