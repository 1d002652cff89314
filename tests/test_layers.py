"""The rules that source text can show: who imports whom, sizes, names, silent excepts.

Every rule is a function from (path, text) to offences; each has a planted offender, so that the
rule itself is tested."""

from __future__ import annotations

import ast
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from layer_rules import (
    FILE_LINES,
    FUNCTION_LINES,
    PACKAGE,
    PACKAGE_FILES,
    ROOT,
    TEST_LINES,
    Rule,
    banned_identifier,
    cycles,
    foreign_package,
    import_graph,
    imported,
    machine_path,
    named_component,
    optional_at_import,
    package_of,
    silent_except,
    too_long,
    unfinished,
    unlisted_package,
    upward_import,
)

from metalearn.config.registry import TABLES

PLANTED: list[tuple[Rule, str, str]] = [
    (upward_import, "metalearn/tasks/a.py", "from metalearn.models import Conv4"),
    (upward_import, "metalearn/tasks/a.py", "from metalearn import models"),
    (upward_import, "metalearn/tasks/a.py", "import metalearn"),
    (upward_import, "metalearn/evaluate/a.py", "def f():\n    import metalearn.inner.adapt"),
    (upward_import, "metalearn/algorithms/a.py", "from ..transfer import scratch"),
    (upward_import, "metalearn/algorithms/a.py", "importlib.import_module('metalearn.run.loop')"),
    (
        upward_import,
        "metalearn/inner/a.py",
        "if TYPE_CHECKING:\n    from metalearn.tasks.sinusoid import Sinusoid",
    ),
    (upward_import, "metalearn/rng.py", "from . import inner"),
    (unlisted_package, "metalearn/attic/a.py", "x = 1"),
    (upward_import, "metalearn/attic/a.py", "from metalearn.run import loop"),
    (upward_import, "metalearn/run/a.py", "def f():\n    from metalearn.cli import main"),
    (upward_import, "metalearn/executors/a.py", "from metalearn.config import experiment"),
    (upward_import, "metalearn/errors.py", "from metalearn.storage import files"),
    (foreign_package, "metalearn/run/a.py", "import wandb"),
    (foreign_package, "metalearn/algorithms/a.py", "def f():\n    import higher"),
    (foreign_package, "metalearn/tasks/a.py", "from learn2learn.data import MetaDataset"),
    (optional_at_import, "metalearn/tasks/a.py", "import matplotlib.font_manager"),
    (too_long, "metalearn/tasks/a.py", "\n" * (FILE_LINES + 1)),
    (too_long, "metalearn/tasks/a.py", "def f():\n" + "    x = 1\n" * FUNCTION_LINES),
    (too_long, "tests/a.py", "def f():\n" + "    x = 1\n" * TEST_LINES),
    (banned_identifier, "metalearn/run/a.py", "def f(told):\n    return told"),
    (banned_identifier, "metalearn/run/a.py", "class Diary:\n    pass"),
    (banned_identifier, "metalearn/run/a.py", "self._book = 1"),
    (silent_except, "metalearn/tasks/a.py", "try:\n    x\nexcept:\n    print('x')"),
    (
        silent_except,
        "metalearn/tasks/a.py",
        "try:\n    x\nexcept (ValueError, Exception):\n    pass",
    ),
    (unfinished, "metalearn/tasks/a.py", "# TO" + "DO: later"),
    (machine_path, "README.md", "cd /ho" + "me/someone/metalearn"),
]
FINE: list[tuple[Rule, str, str]] = [
    (
        upward_import,
        "metalearn/nas/a.py",
        "from metalearn.models.mlp import MLP\nfrom . import cells\nimport torch",
    ),
    (upward_import, "metalearn/tasks/__init__.py", "from .sinusoid import Sinusoid"),
    (
        upward_import,
        "metalearn/transfer/a.py",
        "from ..inner.adapt import adapt\nfrom ..types import Batch",
    ),
    (upward_import, "metalearn/run/a.py", "from metalearn import tasks"),
    (foreign_package, "metalearn/interop/a.py", "import higher"),
    (optional_at_import, "metalearn/tasks/a.py", "def f():\n    import matplotlib"),
    (
        silent_except,
        "metalearn/run/a.py",
        "try:\n    x\nexcept Exception as error:\n    print(error)",
    ),
    (machine_path, "README.md", "see ../shared/work/x and https://example.org/home/x"),
]
SOURCE_RULES: list[Rule] = [
    upward_import,
    unlisted_package,
    foreign_package,
    banned_identifier,
    optional_at_import,
    too_long,
    silent_except,
    unfinished,
]


def project_files() -> list[Path]:
    """Tracked files and new ones that git does not ignore; without git, all but environment and
    outputs."""
    ask = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        found = subprocess.run(
            ask, cwd=ROOT, capture_output=True, check=True, text=True
        ).stdout.split("\0")
    except (OSError, subprocess.CalledProcessError):
        found = [str(path.relative_to(ROOT)) for path in ROOT.rglob("*") if path.is_file()]
        left_out = {".venv", ".git", "runs", "__pycache__", "build", "dist", "wandb"}
        found = [
            name
            for name in found
            if not left_out & set(Path(name).parts) and ".egg-info" not in name
        ]
    return [ROOT / name for name in sorted(found) if name and (ROOT / name).is_file()]


SOURCES = [
    path
    for path in project_files()
    if path.suffix == ".py" and path.relative_to(ROOT).parts[0] == PACKAGE
]


def offences(rule: Rule, files: list[Path]) -> list[str]:
    """All that one rule finds in the files that hold text."""
    found = []
    for path in files:
        raw = path.read_bytes()
        if b"\0" not in raw:
            found += rule(path.relative_to(ROOT).as_posix(), raw.decode("utf-8"))
    return found


@pytest.mark.parametrize(("rule", "path", "text"), PLANTED)
def test_a_rule_finds_its_planted_offender(rule: Rule, path: str, text: str) -> None:
    assert list(rule(path, text))


@pytest.mark.parametrize(("rule", "path", "text"), FINE)
def test_a_rule_lets_good_code_pass(rule: Rule, path: str, text: str) -> None:
    assert not list(rule(path, text))


@pytest.mark.parametrize("rule", SOURCE_RULES, ids=lambda rule: rule.__name__)
def test_the_package_keeps_the_rule(rule: Rule) -> None:
    assert len(SOURCES) > 10
    assert offences(rule, SOURCES) == []


def test_cycles_are_found() -> None:
    texts = {
        "metalearn/run/a.py": "def f():\n    from metalearn.run import b",
        "metalearn/run/b.py": "from metalearn.run.c import f",
        "metalearn/run/c.py": "from metalearn.run import a",
        "metalearn/run/d.py": "from metalearn.run import a",
    }
    loop = [f"metalearn/run/{name}.py" for name in "abc"]
    assert cycles(import_graph(texts)) == [loop]
    assert cycles({"a": {"b"}, "b": {"c"}, "c": set()}) == []


def test_no_file_and_no_package_is_part_of_a_cycle() -> None:
    texts = {path.relative_to(ROOT).as_posix(): path.read_text("utf-8") for path in SOURCES}
    graph = import_graph(texts)
    assert sum(map(len, graph.values())) > 500
    assert cycles(graph) == []
    packages: dict[str, set[str]] = {}
    for path, others in graph.items():
        named = {package_of(other) for other in others} - {package_of(path), "__init__"}
        packages.setdefault(package_of(path), set()).update(named)
    assert cycles(packages) == []


def test_a_package_has_few_files() -> None:
    folders = [path.parent.relative_to(ROOT).as_posix() for path in SOURCES]
    counts = {name: folders.count(name) for name in set(folders)}
    assert {name: count for name, count in counts.items() if count > PACKAGE_FILES + 1} == {}


# Names that are common words too, and may stand in strings.
COMMON = {"scratch", "random", "own", "architecture", "pretrained"}
KINDS = [kinds for table, kinds in TABLES.items() if table not in ("trackers", "horizons")]
NAMES = {name for kinds in KINDS for name in kinds}
CLASSES = {kind.__name__ for kinds in KINDS for kind in kinds.values()}


def outside(path: str, text: str) -> Iterator[str]:
    """`named_component` with all that is registered."""
    return named_component(path, text, NAMES - COMMON, COMMON, CLASSES)


@pytest.mark.parametrize(
    "planted",
    [
        "if row.method == 'maml':\n    pass",
        "if searcher(run) == 'random':\n    pass",
        "STATES = {'omniglot': 1}",
        "from metalearn.nas.per_task import PerTaskNAS",
        "from metalearn.learned_optimizers import LSTM",
        "def f():\n    from metalearn.tasks.glyphs import Glyphs",
        "from metalearn.nas import Architecture",
        "model = MODELS['conv4']",
    ],
)
def test_a_component_named_outside_its_file_is_found(planted: str) -> None:
    assert list(outside("metalearn/report/a.py", planted))
    assert not list(outside("metalearn/nas/a.py", planted))


def test_no_file_outside_a_component_knows_it_by_name() -> None:
    assert offences(outside, SOURCES) == []


def test_tests_are_short_too_and_hide_nothing() -> None:
    tests = [path for path in project_files() if path.suffix == ".py" and path not in SOURCES]
    assert [line for rule in (too_long, silent_except) for line in offences(rule, tests)] == []


def test_no_file_names_a_folder_of_one_machine() -> None:
    assert offences(machine_path, project_files()) == []


def test_wandb_is_imported_in_one_file() -> None:
    users = {
        path.relative_to(ROOT).as_posix()
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if any(
            name.split(".")[0] == "wandb"
            for name in imported(path.relative_to(ROOT).as_posix(), node)
        )
    }
    assert len(users) <= 1, users


def test_importing_metalearn_imports_no_package() -> None:
    """`import metalearn` stays quick: packages and torch come on first use (PEP 562)."""
    tree = ast.parse((ROOT / PACKAGE / "__init__.py").read_text("utf-8"))
    names = [name for node in tree.body for name in imported(f"{PACKAGE}/__init__.py", node)]
    assert [
        name for name in names if name.split(".")[0] in {PACKAGE, "torch", "numpy", "pydantic"}
    ] == []
