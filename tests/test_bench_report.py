"""What the bench writes: tables, pictures, ratios."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from rich.console import Console
from test_bench import one_thread as one_thread  # fixtures
from test_bench import run as run

from metalearn.bench import markdown as notes
from metalearn.bench.page import page
from metalearn.bench.plot import scaling_figure, workloads_figure
from metalearn.bench.table import groups, share_of_limit, show, speedup
from metalearn.report.markdown import image
from metalearn.storage.files import read_json, write_json

MEASURED = Path(__file__).resolve().parents[1] / "experiments" / "benchmarks"


def row(
    workload: str, engine: str, seconds: float | None, tasks: int = 4, **more: Any
) -> dict[str, Any]:
    made = {
        "workload": workload,
        "engine": engine,
        "tasks": tasks,
        "median_seconds": seconds,
        "iqr_seconds": 0.1,
    }
    made |= {
        "quartiles_seconds": [seconds, seconds],
        "rounds": 3,
        "compile_seconds": 1.0,
        "peak_bytes": 2**20,
    }
    return {**made, "gradient_error": 1e-6, **more}


def example(device: str = "cpu", ours_: float = 0.5) -> dict[str, Any]:
    rows = [
        row("w", "native", 2 * ours_, executor="chunk", chunk=4, run_seconds=100.0),
        row("w", "native", ours_, executor="auto", chose="compiled:8", run_seconds=110.0),
        row("w", "learn2learn", 3.0),
        row("w", "jax", 1.5),
        row("v", "native", 1.0, executor="vmap"),
        row("v", "higher", None, error="out of memory"),
    ]
    return {
        "environment": {"cpu": "A CPU", "cores": 2, "torch": "2", "argv": ["metalearn"]}
        | {"device": device},
        "rows": rows,
        "workloads": {"w": {"flops": 1e9, "conv_flops_per_second": 4e9}},
        "skipped": [{"workload": "w", "engine": "higher", "why": "not installed"}],
        "scaling": [row("w", "native", 0.25 * tasks, tasks, executor="vmap") for tasks in (1, 4)],
        "memory": [
            {"workload": "w", "chunk": 2, "tasks": [2, 8], "peak_bytes": [2**20, 2**21]}
            | {"ratio": 2.0, "live_bytes": [2**20, 2**20], "live_ratio": 1.0}
        ],
    }


def test_the_markdown_has_ratios_and_keeps_what_others_wrote(tmp_path: Path) -> None:
    path = tmp_path / "RESULTS.md"
    notes.write(path, example(), [tmp_path / "b.svg"])
    text = path.read_text()
    line = next(
        line
        for line in text.splitlines()
        if line.startswith("| `w` | 4 | **500 ms** auto compiled:8")
    )
    assert line.split(" | ")[3:] == ["3 s (6.00x)", "1.5 s (3.00x)", "**3.00x**", "50%", "1.10 |"]
    assert "not timed: out of memory" in text
    assert "- higher, `w`: not installed" in text
    assert "![b](b.svg)" in text
    assert "2.00 times" in text and "| `w` | native (vmap) | 250 | 250 |" in text
    path.write_text(text + "\nA profile by hand.\n")
    notes.write(path, example("A card"), [])
    notes.write(path, example(ours_=0.75), [])
    text = path.read_text()
    assert (
        "**750 ms**" in text
        and text.count("## A CPU, 2 cores") == 1
        and text.count("## A card") == 1
    )
    assert "A profile by hand." in text and text.count("**500 ms**") == 1  # the card's


def test_the_terminal_shows_every_row_within_its_width() -> None:
    file = io.StringIO()
    show(example()["rows"], Console(file=file, width=80))
    lines = file.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    text = "\n".join(lines)
    for word in ("native (auto compiled:8)", "learn2learn", "6.00x", "error", "w, 4", "1e-06"):
        assert word in text, text


def test_the_pictures_show_every_engine_that_was_timed(
    run: tuple[dict[str, Any], Path, list[str]],
) -> None:
    data, folder, _ = run
    drawn = ElementTree.fromstring((folder / "b.svg").read_text())
    words = {
        "".join(text.itertext()).strip() for text in drawn.iter("{http://www.w3.org/2000/svg}text")
    }
    names = {"ours" if one["engine"] == "native" else one["engine"] for one in data["rows"]}
    assert names <= words and any(word.startswith("sinusoid_1step, 3:") for word in words)
    ElementTree.fromstring(workloads_figure(example()["rows"]))
    ElementTree.fromstring(scaling_figure(example()["scaling"]))


def test_ratios_and_the_share_of_the_limit() -> None:
    rows = example()["rows"]
    assert speedup(groups(rows)["w", 4]) == 3.0 and speedup(groups(rows)["v", 4]) is None
    assert share_of_limit(
        row("w", "native", 0.5), {"flops": 2e9, "conv_flops_per_second": 1e10}
    ) == pytest.approx(0.4)
    assert share_of_limit(row("w", "native", 0.5), {"flops": 2e9}) is None


def test_the_sites_page_has_every_row_and_figure_of_every_file(tmp_path: Path) -> None:
    facts = {"w": {"sentence": "a workload", "flops": 1e9, "conv_flops_per_second": 4e9}}
    data = example() | {"workloads": facts}
    data["environment"]["started"] = "2026-11-29T05:19:32+00:00"
    for name in ("one", "two"):
        write_json(tmp_path / f"{name}.json", data)
    text, drawn = page(tmp_path)
    assert text.count("## A CPU, 2 cores, 2026-11-29") == 2
    assert text.count('??? note "All 6 rows"') == 2 and "    - `w`: a workload" in text
    for path, figure in drawn.items():
        assert f"]({path})" in text and "w, 4:" in figure
    assert list(drawn) == ["figures/one.svg", "figures/two.svg"]


def test_the_tables_of_the_project_are_those_of_its_files() -> None:
    """Nothing in them was written by hand; the site draws the same files."""
    path = MEASURED / "RESULTS.md"
    data = read_json(MEASURED / "bench_cpu.json")
    picture = image(MEASURED.parent / "figures" / "bench_cpu.svg", path)
    assert notes.render(data, [picture]) in path.read_text("utf-8")
    text, _ = page(MEASURED)
    for file in MEASURED.glob("*.json"):
        for name in read_json(file)["workloads"]:
            assert f"| `{name}` |" in text
