"""How the figures of a report look: one size, with names and words that fit."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from run_folders import METHODS, cost_block, groups_of, write_rows, write_run

from metalearn import report
from metalearn.report.figures import FIGURES, cost
from metalearn.report.figures.axes import empty_figure, end_labels, text_width
from metalearn.report.figures.style import SIZE, Style, inline, svg
from metalearn.report.numbers import operations
from metalearn.report.render import _first_sentence, _squeeze
from metalearn.results.comparison import compare


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("comparison"), list(METHODS), seeds=3)


def test_every_figure_is_drawn_or_not_at_all(comparison: Path, tmp_path: Path) -> None:
    groups = groups_of(comparison)
    whole = groups, compare(groups)
    without_costs = groups_of(
        write_run(tmp_path / "bare", "maml", "maml", change=lambda result: result.update(cost={}))
    )
    bare = without_costs, compare(without_costs, target=whole[1]["target"])
    for name, draw in FIGURES.items():
        of_others = name in ("selection", "decision-free", "decision-seconds-free")
        assert (draw(whole) is None) == of_others, name
        assert (draw(bare) is None) == (name not in ("steps", "training")), name
        earlier = draw((groups, {"summary": []}))  # an earlier comparison.json
        assert (earlier is None) == (name != "training"), name


def test_one_svg_serves_every_width(comparison: Path) -> None:
    """It scales with the page, and its smallest type is at least 8 pixels on a phone of 390."""
    groups = groups_of(comparison)
    figure = FIGURES["steps"]((groups, compare(groups)))
    assert figure is not None
    text = inline(svg(figure, "steps"), "described")
    head = text[: text.index(">")]
    assert "viewBox" in head and " width=" not in head and 'aria-label="described"' in head
    across = float(head.split('viewBox="')[1].split()[2])
    sizes = [float(size) for size in re.findall(r"font-size: ([\d.]+)px", text)]
    assert sizes and min(sizes) * (390 - 28) / across >= 8


def test_names_fit_beside_the_lines_and_words_under_the_axis(tmp_path: Path) -> None:
    """No name leaves the picture, the axes make room, and no two ticks touch, over
    whatever span."""
    names = ["maml", "shared_nas_of_reptile_by_evolution", "shared_nas_of_reptile_by_tpe"]
    for number, name in enumerate(names):
        larger = cost_block("episodes", True, flops=3e6 * 100.0**number)
        folder = tmp_path / f"methods/{name}/seed-0"
        write_run(folder, name, "maml", change=lambda one, cost=larger: one.update(cost=cost))
    groups = groups_of(tmp_path)
    drawn = cost.cost_figure((groups, compare(groups)), "flops")
    assert drawn is not None
    (axes,), width = drawn.axes, 72 * SIZE[0]
    font, box = float(axes.xaxis.label.get_fontsize()), axes.get_position()
    shown = [text for text in axes.texts if text.get_text() != "chance"]
    ends = [width * (box.x0 + box.width * text.get_position()[0]) for text in shown]
    assert all(x + text_width(text.get_text(), font) <= width for x, text in zip(ends, shown))
    assert len({text.get_text() for text in shown}) == 3 and box.width > 0.35
    label = axes.xaxis.label
    middle = width * (box.x0 + box.width * label.get_position()[0])
    assert middle >= text_width(label.get_text(), font) / 2
    low, high = axes.get_xlim()
    span = width * box.width / np.log10(high / low)
    ticks = [tick for tick in axes.get_xticks() if low <= tick <= high]
    halves = [text_width(operations(tick), font) / 2 for tick in ticks]
    gaps = np.diff(np.log10(ticks)) * span
    assert len(ticks) > 1
    assert all(gap > one + two for gap, one, two in zip(gaps, halves, halves[1:]))


def test_the_figure_grows_with_the_number_of_names() -> None:
    """Twenty names stand beside the axes, none over another, none above or below them."""
    figure, axes = empty_figure()
    before = figure.get_size_inches()[1]
    axes.set_ylim(0, 1)
    axes.set_xlabel("steps")
    names = [f"row {number}" for number in range(20)]
    looks = {name: Style("#0072b2", "o", "solid") for name in names}
    end_labels(axes, [(name, 0.05) for name in names], looks)
    heights = sorted(text.get_position()[1] for text in axes.texts)
    high = 72 * figure.get_size_inches()[1] * axes.get_position().height
    assert figure.get_size_inches()[1] > before and len(heights) == 20
    assert heights[0] >= -1e-6 and heights[-1] <= 1 + 1e-6
    assert np.diff(heights).min() * high >= float(axes.xaxis.label.get_fontsize())


def test_no_caption_is_cut_at_an_abbreviation() -> None:
    folder = Path(report.__file__).parent / "templates"
    plots = re.compile(r"{% call plot\(.*?\) %}(.*?){% endcall %}", re.DOTALL)
    captions = [text for path in folder.rglob("*.j2") for text in plots.findall(path.read_text())]
    heads = [_first_sentence(_squeeze(text))[0] for text in captions]
    assert len(heads) > 5
    assert not [head for head in heads if head.endswith((" vs.", " e.g.", " i.e.", " al."))]
