"""The command line in processes of its own, started fast: one process imports everything once and
forks each command.

A forked command is a real process with its own signals and files, so it can be killed like any
other; what it does not pay is the seconds that importing torch takes. `console` starts the
installed console script, as a user does."""

from __future__ import annotations

import atexit
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import yaml

IMPORTS = """
import scipy.special, scipy.stats, torch._inductor.compile_fx
from metalearn.cli import commands, doctor  # what a command needs, imported once
from metalearn.cli.main import main
from metalearn.report import page
from metalearn.run.trained import load
"""
SERVER = """
import gc, json, os, sys, traceback
{imports}
gc.collect()
gc.freeze()  # else each command's collections read, and so copy, all that is imported
for line in sys.stdin:
    order = json.loads(line)
    if "wait" in order:
        print(os.waitstatus_to_exitcode(os.waitpid(order["wait"], 0)[1]), flush=True)
        continue
    child = os.fork()
    if child:
        print(child, flush=True)
        continue
    code = 1
    try:
        for number, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(order[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        os.chdir(order["cwd"])
        os.environ.clear()
        os.environ.update(order["env"])
        sys.argv = ["metalearn", *order["args"]]
        exec(order["before"], {})
        main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush(), sys.stderr.flush()
    os._exit(code)
"""


class Ended(NamedTuple):
    """What a command left: exit code (-9: killed), and its output."""

    code: int
    out: str
    err: str


@dataclass
class Running:
    """A command that has been started."""

    server: Server
    pid: int
    out: Path
    err: Path

    def kill(self, number: int = signal.SIGKILL) -> None:
        os.kill(self.pid, number)

    def wait(self) -> Ended:
        self.server.send({"wait": self.pid})
        code = int(self.server.answer())
        # A process that was killed at birth has not opened them yet.
        texts = [path.read_text() if path.exists() else "" for path in (self.out, self.err)]
        return Ended(code, *texts)

    def wait_for(self, ready: Callable[[], bool]) -> bool:
        """Wait until `ready`; False when the command ended first."""
        while not ready():
            if Path(f"/proc/{self.pid}/stat").exists() and _zombie(self.pid):
                return ready()
            time.sleep(0.001)
        return True


@dataclass
class Server:
    """The process that forks commands; one serves all tests of a pytest process."""

    imports: str = IMPORTS  # Python that it runs once; `main` is what a command calls
    env: dict[str, str] = field(default_factory=dict)
    _process: subprocess.Popen[str] | None = None

    def start(self, args: Sequence[str], folder: Path, name: str, **order: Any) -> Running:
        """Start a command whose output lies in `folder`."""
        out, err = (folder / f"{name}.{stream}" for stream in ("out", "err"))
        self.send({"args": args, "out": str(out), "err": str(err), **order})
        return Running(self, int(self.answer()), out, err)

    def send(self, order: dict[str, Any]) -> None:
        if self._process is None or self._process.poll() is not None:
            self._process = subprocess.Popen(
                [sys.executable, "-c", SERVER.replace("{imports}", self.imports)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env={**os.environ, "OMP_NUM_THREADS": "1", **self.env},
            )
            atexit.register(self._process.communicate)  # no more orders: it ends
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()

    def answer(self) -> str:
        assert self._process is not None and self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            raise RuntimeError(
                f"the process that forks commands ended with {code}; its error is above"
            )
        return line


_SERVER = Server()


def _zombie(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


@dataclass
class Commands:
    """`metalearn` in `folder`, its data and caches in a folder of their own."""

    folder: Path
    env: dict[str, str] = field(default_factory=dict)
    _count: int = 0

    def start(self, *args: object, env: dict[str, str] | None = None, before: str = "") -> Running:
        """Start a command; `before` is Python that its process runs first: a fault
        planted in it."""
        self._count += 1
        words, name = [str(arg) for arg in args], f".output-{self._count}"
        env = {**os.environ, "OMP_NUM_THREADS": "1", **self.env, **(env or {})}
        return _SERVER.start(words, self.folder, name, cwd=str(self.folder), env=env, before=before)

    def __call__(self, *args: object, env: dict[str, str] | None = None, before: str = "") -> Ended:
        return self.start(*args, env=env, before=before).wait()


@contextmanager
def commands_in(folder: Path, env: dict[str, str] | None = None) -> Iterator[Commands]:
    """Commands that run in `folder`."""
    yield Commands(folder, env or {})


def console(folder: Path, *args: object, env: dict[str, str] | None = None) -> Ended:
    """The console script beside this Python, in a fresh process."""
    script = Path(sys.executable).with_name("metalearn")
    command: Sequence[str] = (
        [str(script)] if script.exists() else [sys.executable, "-m", "metalearn"]
    )
    done = subprocess.run(
        [*command, *map(str, args)],
        cwd=folder,
        capture_output=True,
        text=True,
        env={**os.environ, **(env or {})},
    )
    return Ended(done.returncode, done.stdout, done.stderr)


def sinusoid(**sections: Any) -> dict[str, Any]:
    """A tiny experiment file; each keyword is laid over a section."""
    data: dict[str, Any] = {
        "experiment": "tiny",
        "task": {"source": "sinusoid", "shots": 5, "queries": 5},
        "model": {"name": "mlp", "sizes": [8]},
        "method": {"name": "maml", "inner_lr": 0.01},
        "run": {
            "meta_steps": 20,
            "tasks_per_step": 4,
            "checkpoint_every": 5,
            "log_every": 3,
            "executor": "vmap",
            "threads": 1,
            "validate": {"every": 10, "episodes": 8},
        },
        "evaluate": {"episodes": 20, "steps": [0, 1, 3], "chunk": 10},
    }
    for name, values in sections.items():
        if isinstance(values, dict) and isinstance(data.get(name), dict):
            data[name] = {**data[name], **values}
        else:
            data[name] = values
    return {name: values for name, values in data.items() if values is not None}


def write(folder: Path, name: str, data: Any) -> Path:
    """An experiment file of that name."""
    path = folder / f"{name}.yaml"
    path.write_text(data if isinstance(data, str) else yaml.safe_dump(data, sort_keys=False))
    return path


def files_of(folder: Path) -> dict[str, bytes]:
    """Every file below a folder with its content, without byte code and the output of commands."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix != ".pyc" and not path.name.startswith(".output-")
    }


def refused(ended: Ended, *words: str) -> None:
    """Exit code 2, every word in the message, no traceback."""
    assert ended.code == 2, ended
    assert "Traceback" not in ended.err, ended.err
    missing = [word for word in words if word not in ended.err]
    assert not missing, f"not in the message: {missing} in {ended.err}"
