"""The command nas tabulate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_nas_tabular import EXPERIMENT
from test_nas_tabular import few as few  # a fixture

from metalearn.errors import ConfigError
from metalearn.nas.spaces.space import Genotype, Space
from metalearn.nas.tabular import Row, load
from metalearn.tabular import tabulate as tabulation


def tabulated(tmp_path: Path, *overrides: str, **changes: Any) -> Path:
    experiment = tmp_path / "tiny.yaml"
    experiment.write_text(EXPERIMENT)
    out = tmp_path / "table.npz"
    options = {"tasks": 2, "seeds": 1, "points": (1, 2), **changes}
    tabulation.tabulate("mlp-reg", str(experiment), overrides, out, **options)  # type: ignore[arg-type]
    return out


def test_tabulate_goes_on_row_by_row(
    tmp_path: Path, few: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Stopped after five rows it keeps them; then only the rest is trained; then nothing."""
    calls: list[Genotype] = []

    def row(
        space: Space,
        options: Any,
        points: Any,
        seeds: int,
        episodes: Any,
        keys: Any,
        genotype: Genotype,
    ) -> Row:
        if len(calls) == 5 and stop:
            raise KeyboardInterrupt
        calls.append(genotype)
        value = np.full((2, 1, 2), sum(genotype), np.float32)
        return Row(np.full_like(value, np.nan), value, -value[:, 0], value[:, 0])

    monkeypatch.setattr(tabulation, "measure", row)
    stop = True
    with pytest.raises(KeyboardInterrupt):
        tabulated(tmp_path)
    part = load(tmp_path / "table.npz")
    assert part.done.sum() == 5 and not part.complete
    stop = False
    table = load(tabulated(tmp_path))
    assert table.complete and len(calls) == few == len(set(calls))
    assert np.array_equal(table.rows.loss[:, 0, 0, 0], table.genotypes.sum(1))
    tabulated(tmp_path)
    assert len(calls) == few
    shown = capsys.readouterr().out
    assert "random search, 16 candidates: regret" in shown and "table.npz" in shown
    assert table.header["task"]["source"] == "sinusoid" and table.header["fingerprint"]
    assert [path.name for path in tmp_path.iterdir() if path.suffix not in (".npz", ".yaml")] == []


def test_tabulate_refuses_what_it_cannot_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tabulation, "measure", lambda *args: pytest.fail("trained"))
    for overrides, text in (
        (["inner_lrr=1"], "inner_lrr"),
        (["inner_lr=-1"], "inner_lr"),
        (["task.shots=0"], "shots"),
    ):
        with pytest.raises(ConfigError, match=text):
            tabulated(tmp_path, *overrides)
    with pytest.raises(ConfigError, match="did you mean 'mlp-reg'"):
        tabulation.tabulate("mlp-rag", str(tmp_path / "tiny.yaml"), [], None, 2, 1, (1,))
    with pytest.raises(ConfigError, match="mlp-reg"):
        tabulation.tabulate("conv4-micro", str(tmp_path / "tiny.yaml"), [], None, 2, 1, (1,))
    for wrong in ("", "0,1", "2,1", "1,1", "1;2", "a"):
        with pytest.raises(ConfigError, match="ascending"):
            tabulation.parse_points(wrong)
    assert tabulation.parse_points("1, 2,20") == (1, 2, 20)


def test_tabulate_refuses_a_table_of_something_else(
    tmp_path: Path, few: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    value = np.zeros((2, 1, 2), np.float32)
    monkeypatch.setattr(
        tabulation, "measure", lambda *args: Row(value, value, value[:, 0], value[:, 0])
    )
    tabulated(tmp_path)
    with pytest.raises(ConfigError, match="training differ"):
        tabulated(tmp_path, "inner_lr=0.7")
    with pytest.raises(ConfigError, match="task"):
        tabulated(tmp_path, "task.noise=0.1")


def test_tabulate_trains_and_scores(
    tmp_path: Path, few: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real thing, on some of the networks."""
    table = load(tabulated(tmp_path, "inner_lr=0.05", "run.dtype=float64"))
    assert table.complete
    assert np.isfinite(table.rows.loss).all()
    assert np.isfinite(table.rows.score).all()
    assert table.header["training"]["inner_lr"] == 0.05 and table.header["dtype"] == "float64"
    assert (table.rows.loss[:, :, :, 1] != table.rows.loss[:, :, :, 0]).all()
