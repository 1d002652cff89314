"""Rules on the source text: functions from (path, text) to offences, and the import graph."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "metalearn"

# Layers from the bottom up: a package imports only from layers below its own. Packages of one
# layer do not import each other.
CORE = {
    "types",
    "tree",
    "rng",
    "noise",
    "padding",
    "labels",
    "augment",
    "scopes",
    "variable_tasks",
    "losses",
    "component",
    "errors",
    "in_memory",
    "callable_module",
    "machine",
    "clock",
    "logger",
    "__init__",
}
LAYERS = (
    {"kernels", "storage"},
    {"tracking"},
    {"tasks", "models", "inner", "evaluate"},
    {"algorithms", "in_context", "learned_optimizers", "transfer", "nas"},
    {"interop"},
    {"executors"},
    {"config", "testing"},
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
    "in_context": {"inner"},
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
FILE_LINES, FUNCTION_LINES, TEST_LINES, PACKAGE_FILES = 400, 40, 60, 16
# Identifiers of a private dialect; the standard terms stand in CONTRIBUTING.md.
BANNED = {"said", "told", "noted", "dressed", "handed", "desk", "diary", "bill", "book"}
# Packages of components, and programs that measure certain components, may name them; so may the
# registry and the defaults of a file.
COMPONENTS = {"tasks", "models", "inner", "algorithms", "in_context", "transfer", "nas"} | {
    "learned_optimizers"
}
NAMES_COMPONENTS = COMPONENTS | {"bench", "l2o", "tabular", "testing"}
DEFAULTS = {"metalearn/config/file.py", "metalearn/config/registry.py"}
# Words of others that are names of components too: W&B's schema of sweeps, the families of reports.
OTHER_WORDS = {"sweep": {"random", "own"}, "report": {"scratch"}, "results": {"scratch"}}


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
    """Files and functions that are too long to read at once; tests may be longer."""
    if (count := text.count("\n")) > FILE_LINES:
        yield f"{path}: {count} lines, more than {FILE_LINES}"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            most = TEST_LINES if path.startswith("tests/") else FUNCTION_LINES
            if length > most:
                sizes = f"has {length} lines, more than {most}"
                yield f"{path}:{node.lineno}: {node.name} {sizes}"


def banned_identifier(path: str, text: str) -> Iterator[str]:
    """Names of variables, arguments, functions and attributes that are not standard terms."""
    for node in ast.walk(ast.parse(text)):
        names = {
            ast.Name: lambda n: n.id,
            ast.arg: lambda n: n.arg,
            ast.Attribute: lambda n: n.attr,
            ast.FunctionDef: lambda n: n.name,
            ast.ClassDef: lambda n: n.name.lower(),
        }
        read = names.get(type(node))
        if read is not None and read(node).strip("_") in BANNED:
            yield f"{path}:{node.lineno}: {read(node)}"  # type: ignore[attr-defined]


def named_component(
    path: str, text: str, names: set[str], common: set[str], classes: set[str]
) -> Iterator[str]:
    """Components known outside their packages: their class imported, or their name in a string.

    `names` may stand in no string but a sentence; `common` words may be compared with nothing."""
    if package_of(path) in NAMES_COMPONENTS or path in DEFAULTS:
        return
    common = common - OTHER_WORDS.get(package_of(path), set())
    for node in ast.walk(ast.parse(text)):
        found: set[str] = set()
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            found = {node.value} & names
        elif isinstance(node, ast.Compare):
            inner = [part for side in (node.left, *node.comparators) for part in ast.walk(side)]
            found = {part.value for part in inner if isinstance(part, ast.Constant)} & common
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith(PACKAGE):
            home = (node.module or "").split(".")[1:2]
            if set(home) & COMPONENTS:
                found = {alias.name for alias in node.names} & classes
        for name in sorted(found):
            yield f"{path}:{node.lineno}: {name!r} is a fact of its component"  # type: ignore[attr-defined]


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
    it)."""
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
