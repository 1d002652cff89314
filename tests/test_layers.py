"""The rules of the house that a syntax tree or a line of text can show: who imports whom, sizes,
silent excepts.

Every rule is a function from (path, text) to offences; each has a planted offender, so that the
rule itself is tested."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "metalearn"

# Layers from the bottom up: a package imports only from layers below its own. Packages of one
# layer do not import each other.
CORE = {
    "types",
    "tree",
    "rng",
    "noise",
    "losses",
    "component",
    "errors",
    "machine",
    "clock",
    "logger",
    "__init__",
}
LAYERS = (
    {"kernels", "storage"},
    {"tracking"},
    {"tasks", "models", "inner", "evaluate"},
    {"algorithms", "learned_optimizers", "transfer", "nas"},
    {"interop"},
    {"executors"},
    {"config"},
    {"results"},
    {"report"},
    {"distributed"},
    {"run"},
    {"compare"},
    {"bench", "sweep", "l2o", "tabular"},
    {"cli"},
    {"__main__"},
)
# Packages that may import less than all that lies below them.
ONLY = {
    "tasks": {"storage", "kernels"},
    "models": {"kernels"},
    "inner": set(),
    "evaluate": set(),
    "algorithms": {"inner"},
    "learned_optimizers": {"inner"},
    "transfer": {"inner"},
    "nas": {"inner", "models", "kernels", "storage"},
    "interop": {"inner"},
}
PACKAGES = set().union(*LAYERS)
# Packages of others that one package alone may name.
ONLY_IN = {"learn2learn": "interop", "higher": "interop", "wandb": "tracking"}
# Packages of others that the core must run without (a function may import them), and the core.
NOT_AT_IMPORT = {"matplotlib", "optuna", "sklearn", "scipy", "wandb", "higher", "learn2learn"}
MEASURING = CORE | {"kernels", "tasks", "models", "inner", "evaluate"} | set(ONLY) - {"interop"}
FILE_LINES, FUNCTION_LINES, PACKAGE_FILES = 400, 60, 16


def package_of(path: str) -> str:
    """`metalearn/tasks/glyphs.py` -> tasks; `metalearn/rng.py` -> rng."""
    return Path(path).parts[1].removesuffix(".py")


def allowed(package: str) -> set[str]:
    """What a package or a core module may import of this project, itself included."""
    if package in CORE:
        return CORE
    below: set[str] = set()
    for layer in LAYERS:
        if package in layer:
            return CORE | {package} | ONLY.get(package, below)
        below |= layer
    return CORE


def imported(path: str, node: ast.AST) -> Iterator[str]:
    """Dotted names of the modules that one node imports, relative ones resolved."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        base = node.module or ""
        if node.level:
            package = Path(path).with_suffix("").parts[: -node.level]
            base = ".".join((*package, base)) if base else ".".join(package)
        yield from ([f"{base}.{alias.name}" for alias in node.names] if base == PACKAGE else [base])
    elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
        name = (
            node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        )
        if name in {"import_module", "__import__"} and isinstance(node.args[0].value, str):
            yield node.args[0].value


def upward_import(path: str, text: str) -> Iterator[str]:
    """Imports of a package that does not lie below."""
    package = package_of(path)
    for node in ast.walk(ast.parse(text)):
        for name in imported(path, node):
            parts = name.split(".")
            if parts[0] == PACKAGE and (len(parts) < 2 or parts[1] not in allowed(package)):
                yield f"{path}:{node.lineno}: {package} imports {name}"  # type: ignore[attr-defined]


def unlisted_package(path: str, text: str) -> Iterator[str]:
    """A package without a place in LAYERS."""
    if package_of(path) not in PACKAGES | CORE:
        yield f"{path}: {package_of(path)} has no place in LAYERS"


def foreign_package(path: str, text: str) -> Iterator[str]:
    """Packages of others named outside the one package that may."""
    for node in ast.walk(ast.parse(text)):
        for name in imported(path, node):
            home = ONLY_IN.get(name.split(".")[0])
            if home and package_of(path) != home:
                place = f"{path}:{node.lineno}"  # type: ignore[attr-defined]
                yield f"{place}: {name} belongs in {PACKAGE}/{home}/"


def optional_at_import(path: str, text: str) -> Iterator[str]:
    """Optional packages imported at the top of a module of the core."""
    if package_of(path) not in MEASURING:
        return
    for node in ast.parse(text).body:
        for name in imported(path, node):
            if name.split(".")[0] in NOT_AT_IMPORT:
                yield f"{path}:{node.lineno}: import {name} inside the function that uses it"


def too_long(path: str, text: str) -> Iterator[str]:
    """Files and functions that no longer fit a head."""
    if (count := text.count("\n")) > FILE_LINES:
        yield f"{path}: {count} lines, more than {FILE_LINES}"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if length > FUNCTION_LINES:
                sizes = f"has {length} lines, more than {FUNCTION_LINES}"
                yield f"{path}:{node.lineno}: {node.name} {sizes}"


def silent_except(path: str, text: str) -> Iterator[str]:
    """Handlers that take everything, by having no type or by doing nothing with a broad one."""
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.ExceptHandler):
            continue
        types = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
        broad = any(
            isinstance(kind, ast.Name) and kind.id in {"Exception", "BaseException"}
            for kind in types
        )
        nothing = all(
            isinstance(line, ast.Pass | ast.Continue)
            or (isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant))
            for line in node.body
        )
        if node.type is None or (broad and nothing):
            yield f"{path}:{node.lineno}: names what it catches, or does something with it"


def unfinished(path: str, text: str) -> Iterator[str]:
    """Marks of work left undone."""
    pattern = re.compile(
        "|".join(("TO" + "DO", "FIX" + "ME", "XX" + "X", "NotImplemented" + "Error"))
    )
    for number, line in enumerate(text.splitlines(), 1):
        if found := pattern.search(line):
            yield f"{path}:{number}: {found[0]}"


def machine_path(path: str, text: str) -> Iterator[str]:
    """Folders of one machine (the pattern is put together here, so that this file does not meet
    it).
    """
    roots = "|".join(("work", "root", "home", "Users"))
    pattern = re.compile(rf"(?:^|[^\w.\-])/(?:{roots})/\w")
    for number, line in enumerate(text.splitlines(), 1):
        if found := pattern.search(line):
            yield f"{path}:{number}: {found[0].strip()}..."


def cycles(imports: dict[str, set[str]]) -> list[list[str]]:
    """Groups of nodes that import each other, by Tarjan 1972 (SIAM J. Comput. 1, algorithm 2)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in sorted(imports.get(node, ())):
            if other not in index:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], index[other])
        if low[node] == index[node]:
            place = stack.index(node)
            group = stack[place:]
            del stack[place:]
            if len(group) > 1:
                found.append(sorted(group))

    for node in sorted(imports):
        if node not in index:
            visit(node)
    return found


def import_graph(texts: dict[str, str]) -> dict[str, set[str]]:
    """Which file of {path: text} imports which, lazy imports included."""
    names = {}
    for path in texts:
        dotted = path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        names[dotted] = path
    graph: dict[str, set[str]] = {path: set() for path in texts}
    for path, text in texts.items():
        for node in ast.walk(ast.parse(text)):
            for name in imported(path, node):
                aliases = node.names if isinstance(node, ast.ImportFrom) else []
                inner = {f"{name}.{alias.name}" for alias in aliases} & set(names)
                graph[path] |= {names[found] for found in inner or {name} & set(names)} - {path}
    return graph


Rule = Callable[[str, str], Iterator[str]]
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
    foreign_package,
    optional_at_import,
    too_long,
    silent_except,
    unfinished,
]


def project_files() -> list[Path]:
    """Tracked files and new ones that git does not ignore; without git, all but environment and
    outputs.
    """
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


def test_tests_fit_a_head_too_and_hide_nothing() -> None:
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


def test_the_front_door_opens_no_room() -> None:
    """`import metalearn` stays quick: rooms and torch come on first use (PEP 562)."""
    tree = ast.parse((ROOT / PACKAGE / "__init__.py").read_text("utf-8"))
    names = [name for node in tree.body for name in imported(f"{PACKAGE}/__init__.py", node)]
    assert [
        name for name in names if name.split(".")[0] in {PACKAGE, "torch", "numpy", "pydantic"}
    ] == []
