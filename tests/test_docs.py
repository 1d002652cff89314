"""Every command and every block of Python in the Markdown files of the project is run."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commandline import Ended, commands_in, console
from PIL import Image

import metalearn as ml
from metalearn.report.site_pages import COMPONENTS, RESULTS
from metalearn.tree import take

pytestmark = pytest.mark.usefixtures("tables")
ROOT = Path(__file__).resolve().parents[1]
DOCS = [ROOT / name for name in ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md")]
PAGES = (
    "index",
    "concepts",
    "choose",
    "data",
    "networks",
    "predict",
    "scale",
    "physics",
    "extend",
    "migrate",
)
DOCS += [ROOT / "docs" / f"{name}.md" for name in (*PAGES, "faq")]
# when the site is built
GENERATED = {*(f"components/{page}.md" for page in COMPONENTS), *RESULTS, "benchmarks.md"}
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))
# Long work is cut short: the same command with these words behind it.
SHORTER = {
    "own_images": ["run.meta_steps=2", "evaluate.episodes=4", "run.validate.every=null"],
    "maml_sinusoid": ["evaluate.episodes=50"],
    "learned_optimizer": ["evaluate.episodes=20"],
}


def blocks(language: str) -> list[str]:
    found = []
    for path in DOCS:
        found += re.findall(
            rf"```{language}\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL
        )
    return found


def commands() -> list[list[str]]:
    lines = [line for block in blocks("sh") for line in block.splitlines() if line.strip()]
    return [shlex.split(line, comments=True) for line in lines]


def photos(folder: Path) -> None:
    """30 classes of 8 noisy images: enough for three splits of 5 ways."""
    draw = np.random.default_rng(0)
    for name in range(30):
        (folder / f"class{name:02d}").mkdir(parents=True)
        for number in range(8):
            pixels = draw.integers(0, 256, (40, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"class{name:02d}" / f"{number}.png")


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("docs")
    photos(folder / "photos")
    return folder


def test_there_is_something_to_run() -> None:
    words = [" ".join(command[:2]) for command in commands()]
    assert {
        "make demo",
        "make test",
        "metalearn train",
        "metalearn evaluate",
        "metalearn report",
    } <= set(words)
    assert len(blocks("python")) >= 2


@pytest.mark.slow
def test_the_commands_run_in_order(workplace: Path) -> None:
    """The first by the installed script, the others by processes that have imported torch."""
    environment = {"XDG_CACHE_HOME": str(workplace / "cache"), "METALEARN_DATA": ""}
    with commands_in(workplace, environment) as metalearn:
        run: Callable[..., Ended] = partial(console, workplace, env=environment)
        for words in commands():
            if words[0] == "make":
                made = ["make", "-n", *words[1:]]
                subprocess.run(made, cwd=ROOT, capture_output=True, check=True)
                continue
            assert words[0] == "metalearn", words
            done = run(*words[1:], *(SHORTER.get(words[2], []) if len(words) > 2 else []))
            assert done.code == 0, f"{' '.join(words)}\n{done.out}\n{done.err}"
            run = metalearn
    assert (workplace / "runs" / "first.html").stat().st_size > 10_000
    assert (workplace / "runs" / "first" / "evaluations" / "1.json").exists()


@pytest.mark.parametrize("block", blocks("python"))
def test_the_python_runs(block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for words in commands():  # what a block reads, its command makes
        if words[-2:-1] == ["--out"] and f'"{words[-1]}"' in block:
            assert console(tmp_path, *words[1:], *SHORTER.get(words[2], [])).code == 0
    names: dict[str, object] = {}
    exec(compile(block, "README.md", "exec", dont_inherit=True), names)
    if "curve" in names:
        mean = names["curve"].mean  # type: ignore[attr-defined]
        assert mean[-1] < mean[0]  # it learned something
    if "optimizer" in names:
        assert names["loss"].item() < 0.2 and (tmp_path / "optimizer.pt").is_file()  # type: ignore[attr-defined]
    if "SignMAML" in names:
        check_own_method(names["SignMAML"])


def check_own_method(kind: Any) -> None:
    """One step by the sign of the gradient, on a new task and in the meta-gradient alike."""
    source = ml.tasks.Sinusoid(shots=5, queries=5).build()
    learner = ml.models.MLP(sizes=(8,)).build(source.spec)
    method = kind(inner_steps=1, inner_lr=0.01).build(learner, source.spec)
    meta = method.init(ml.fold_in(0, "init")).meta
    tasks = source.sample(ml.fold_in(0, "train"), 1)
    (x, y), (query_x, query_y) = ((part.x[0], part.y[0]) for part in (tasks.support, tasks.query))

    def loss(params: Any, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return (learner.apply(params, x) - y).square().mean()

    grads = torch.func.grad(loss)(meta, x, y)
    stepped = {name: meta[name] - 0.01 * grads[name].sign() for name in meta}
    predictions = method.learn(meta, tasks.support, tasks.query.x, (1,)).predictions
    torch.testing.assert_close(predictions[0, 0], learner.apply(stepped, query_x))
    # A sign has no derivative, so the meta-gradient is the gradient at the end of the step.
    episode = take(tasks, 0)
    expected = torch.func.grad(loss)(stepped, query_x, query_y)
    torch.testing.assert_close(method.task_grad(meta, episode)[0], expected)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_notebooks_run(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their cells in order, in one namespace; what a cell ends with shows itself."""
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "__main__"}
    for cell in json.loads(path.read_text("utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), path.name, "exec", dont_inherit=True), names)
    assert len(NOTEBOOKS) == 4 and {"found", "curve"} & set(names)


def test_pictures_and_links_exist() -> None:
    for path in DOCS:
        for target in re.findall(r"\]\(([^)#]+)\)", path.read_text(encoding="utf-8")):
            there = target.startswith("http") or (path.parent / target).exists()
            assert there or target in GENERATED, f"{path.name}: {target}"


def test_files_that_are_named_exist() -> None:
    for path in [*DOCS, *sorted((ROOT / "experiments").rglob("*.md"))]:
        for name in re.findall(r"`([\w/]+\.(?:py|cpp|yaml|md))`", path.read_text("utf-8")):
            found = [home / name for home in (ROOT, ROOT / "metalearn", path.parent)]
            assert any(file.exists() for file in found) or "/" not in name, f"{path.name}: {name}"


def test_prose_fits_a_screen() -> None:
    """At most 100 columns outside tables, code and the sections that a command writes."""
    written = re.compile(r"<!-- (bench|race|gpu):.*?<!-- end of [^\n]*", re.DOTALL)
    for path in [*DOCS, *sorted((ROOT / "experiments").rglob("*.md"))]:
        text = re.sub(r"```.*?```", "", written.sub("", path.read_text("utf-8")), flags=re.DOTALL)
        lines = [line for line in text.splitlines() if not line.startswith(("|", "!["))]
        assert [line for line in lines if len(line) > 100] == [], path.name
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= 130
