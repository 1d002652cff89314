"""The command nas race."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from commandline import Commands, files_of, refused
from test_nas_race import images, stored
from test_nas_race import wave_table as wave_table  # a fixture

from metalearn.errors import ConfigError
from metalearn.nas.tabular import Table
from metalearn.tabular import figures
from metalearn.tabular import race as race_program
from metalearn.tabular.race_options import RaceOptions, check

# the command


def test_the_command_prints_and_writes(metalearn: Commands, wave_table: Table) -> None:
    """Everything in one run; a second one, with a remedy, replaces its section of the Markdown
    file."""
    path = stored(metalearn.folder, wave_table)
    names = ("random", "evolution", "tpe", "halving", "params", "darts")
    chosen = [word for name in names for word in ("--searcher", name)]
    files = ["--out", "r.json", "--markdown", "r.md", "--plot", "r.svg"]
    short = ["--budget", 9, "--seeds", 2, "--set", "darts.steps=2"]
    ended = metalearn("nas", "race", path, *chosen, *short, *files)
    assert ended.code == 0, ended
    found = json.loads((metalearn.folder / "r.json").read_text())
    keys = {
        "schema",
        "table",
        "header",
        "curves",
        "paired",
        "picks",
        "noise",
        "chance",
        "rule",
        "diverged",
    }
    assert keys <= set(found) and found["schema"] == 1
    expected = [name for name in names[:-1] for _ in range(2)]
    assert [row["searcher"] for row in found["curves"]] == expected
    assert {row["searcher"] for row in found["paired"]} == set(names[1:-1])
    assert found["header"] == wave_table.header and found["picks"][0]["options"]["steps"] == 2
    assert {row["verdict"] for row in found["paired"]} <= {"better", "worse", "not worse"}
    text, picture = ((metalearn.folder / name).read_text() for name in ("r.md", "r.svg"))
    for word in (
        "random, exact",
        "evolution",
        "Picks of searchers that train",
        "Kendall's tau",
        "![t](r.svg)",
    ):
        assert word in text, word
    assert "lower is better" in picture and "evaluations" in picture and "Verdicts:" in ended.out
    (metalearn.folder / "r.md").write_text(text + "\nMine.\n")
    changed = ["--searcher", "evolution", "--set", "evolution.population=3"]
    again = metalearn("nas", "race", path, *changed, *short[:4], *files)
    assert again.code == 0, again
    found = json.loads((metalearn.folder / "r.json").read_text())
    assert [row["options"].get("population") for row in found["curves"]] == [None, None, 3, 3]
    assert not found["picks"]
    new = (metalearn.folder / "r.md").read_text()
    assert new.count("<!-- race: t -->") == 1 and new.endswith("\nMine.\n") and "tpe" not in new


def test_bad_input_is_told_at_once_and_nothing_is_written(
    metalearn: Commands, wave_table: Table
) -> None:
    path = stored(metalearn.folder, wave_table)
    (metalearn.folder / "torn.npz").write_bytes(path.read_bytes()[:5000])
    done = np.arange(len(wave_table.done)) > 3
    part = metalearn.folder / "part.npz"
    part.write_bytes(dataclasses.replace(wave_table, done=done).save())
    before = files_of(metalearn.folder)
    words = "--searcher evolutoin --seeds 1 --budget 561 --set tpe.startup --set darts.steps=0"
    bad = words.split()
    words = "--searcher darts --set darts.first_order=true --set darts.stepz=2 --set snip.pool=2"
    bad += words.split()
    bad += ["--out", path, "--plot", "p.png", "--markdown", path / "in", "--device", "gpu"]
    refused(
        metalearn("nas", "race", part, *bad),
        "did you mean 'evolution'",
        "--seeds: must be >= 2 (got 1)",
        "561 is above the table's 560",
        "'tpe.startup' must be",
        "darts.stepz: unknown key",
        "darts.steps: ",
        "is fixed by the name darts",
        "snip is not among the search algorithms",
        "p.png must end with .svg",
        "is not a directory",
        "part.npz: contains 556 of 560",
        "'gpu' must be auto",
    )
    ended = metalearn("nas", "race", path, "--out", path, "--budget", 0)
    refused(ended, "is the table itself", "must be >= 1 (got 0)")
    refused(metalearn("nas", "race", path, "--out", "a.svg", "--plot", "a.svg"), "choose two names")
    refusal = metalearn("nas", "race", "absent.npz", "--seeds", 0)
    refused(refusal, "absent.npz: is not a table", "must be >= 2 (got 0)")
    refused(metalearn("nas", "race", "torn.npz"), "torn.npz: is not a table")
    refused(metalearn("nas", "race", path, "--budget", "many"), "--budget", "integer")
    assert files_of(metalearn.folder) == before


def test_a_table_without_a_header_or_where_all_diverge_is_refused(
    tmp_path: Path, wave_table: Table
) -> None:
    lacking = {name: value for name, value in wave_table.header.items() if name != "training"}
    with pytest.raises(ConfigError, match="header lacks training"):
        check(RaceOptions(stored(tmp_path, dataclasses.replace(wave_table, header=lacking))))
    no_losses = wave_table.rows._replace(loss=np.full_like(wave_table.rows.loss, np.nan))
    with pytest.raises(ConfigError, match="smaller inner_lr"):
        check(
            RaceOptions(
                stored(tmp_path, dataclasses.replace(wave_table, rows=no_losses)), ("random",)
            )
        )


def test_a_picture_shows_regrets_of_nothing(tmp_path: Path) -> None:
    """Regret 0 has a place on the axis, and every searcher of a curve has a look."""
    table, _ = images(noise=0.0)
    options = RaceOptions(stored(tmp_path, table), ("random", "halving"), budget=70, seeds=2)
    found = race_program.race(options)
    assert found["curves"][0]["regret"][-1] == 0
    assert figures.drawing(found).startswith("<?xml")
    assert set(figures.STYLES) == set(race_program.BY_TABLE)
    assert all(name in figures.markdown(found) for name in ("halving", "random, exact"))
