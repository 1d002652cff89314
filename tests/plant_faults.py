"""`make plant-faults`: put every fault of planted_faults.py back, and see its tests fail.

Numbers as arguments: these faults alone. The named tests must pass as the package is, and each of
them must fail with the fault in a copy of it. Tests of a CUDA device run on the emulated one, or on
a card where there is one."""

from __future__ import annotations

import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from commandline import Server
from planted_faults import FAULTS, Fault, plant
from test_cuda_emulated import CACHE, EMULATOR, ROOT

LIMIT = 900.0  # seconds for the tests of one fault, also on a busy machine
IMPORTS = """
import pytest, scipy.stats, torch._inductor.compile_fx

def main():
    sys.exit(pytest.main(sys.argv[1:]))
"""
HERE = """
import importlib.util, sys
sys.path.insert(0, {folder!r})
assert importlib.util.find_spec("metalearn").origin.startswith({folder!r})
"""
LINE = re.compile(r"^(FAILED|ERROR) (\S+(?:\[.*?\])?)(?: - (.*))?$", re.MULTILINE)
# what a fault that was planted wrongly would raise
SLIPS = ("NameError", "ImportError", "ModuleNotFoundError", "SyntaxError", "UnboundLocalError")


class Outcome(NamedTuple):
    """What some tests did: messages of those that failed, and why the run as a whole is void."""

    failed: dict[str, str]
    passed: int
    void: str


class Runner:
    """Runs tests in processes that have torch, or the emulated device and torch, from the start."""

    def __init__(self) -> None:
        emulated = f"import fakecuda\n{IMPORTS}"
        if torch.cuda.is_available():
            emulated = IMPORTS
        self.servers = {
            "emulated": Server(emulated, {"PYTHONPATH": str(EMULATOR)} | CACHE),
            "plain": Server(IMPORTS),
        }

    def run(self, how: str, tests: Iterable[str], folder: Path) -> Outcome:
        """Run the tests of a copy of the checkout."""
        paths = [str(folder)] if how == "plain" else [str(EMULATOR), str(folder)]
        environment = {key: value for key, value in os.environ.items() if key[:7] != "PYTEST_"}
        environment |= {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
        environment |= {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "COLUMNS": "400"}
        order = {"cwd": str(folder), "env": environment, "before": HERE.format(folder=str(folder))}
        words = ["-q", "--tb=short", "-p", "no:cacheprovider", *tests]
        running = self.servers[how].start(words, folder, f".{how}", **order)
        end = time.monotonic() + LIMIT

        def late() -> bool:
            time.sleep(0.05)
            return time.monotonic() > end

        if running.wait_for(late):
            running.kill()
            text = running.wait().out[-2000:]
            return Outcome({}, 0, f"took more than {LIMIT:.0f} seconds: {text}")
        return outcome(*running.wait())


def outcome(code: int, out: str, err: str) -> Outcome:
    """Read what pytest has printed."""
    lines = LINE.findall(out)
    failed = {test: message for kind, test, message in lines if kind == "FAILED"}
    errors = [f"{test} {message}" for kind, test, message in lines if kind == "ERROR"]
    passed = re.search(r"(\d+) passed", out)
    void = "; ".join(errors)
    if code not in (0, 1) or (code == 1 and not failed):
        void = void or f"exit code {code}: {out[-2000:]}{err[-1000:]}"
    if re.search(r"\d+ (skipped|deselected)", out):
        void = f"tests were skipped: {out[-1000:]}"
    return Outcome(failed, int(passed[1]) if passed else 0, void)


@contextmanager
def copied(fault: Fault | None = None) -> Iterator[Path]:
    """A copy of what the tests read of the checkout, with a fault."""
    with tempfile.TemporaryDirectory(prefix="metalearn-fault-") as name:
        folder = Path(name).resolve()
        for part in ("metalearn", "tests"):
            shutil.copytree(ROOT / part, folder / part)
        shutil.copy(ROOT / "pyproject.toml", folder)
        for path, text in (plant(fault, folder / "metalearn") if fault else {}).items():
            path.write_text(text, "utf-8")
        yield folder


def check(fault: Fault, runner: Runner) -> tuple[bool, str]:
    """Whether every named test fails with the fault, and a line on it."""
    notes, seen = [], True
    with copied(fault) as folder:
        for how, tests in (("emulated", fault.emulated), ("plain", fault.plain)):
            if not tests:
                continue
            found = runner.run(how, tests, folder)
            missed = [test for test in tests if not any(_is(one, test) for one in found.failed)]
            slips = {t: m for t, m in found.failed.items() if m.startswith(SLIPS)}
            seen = seen and not (missed or slips or found.void)
            notes += [f"    {how}: {test}: {text[:160]}" for test, text in found.failed.items()]
            notes += [f"    {how}: passes with the fault: {test}" for test in missed]
            notes += [f"    {how}: {found.void}"] * bool(found.void)
    return seen, "\n".join(notes)


def _is(test: str, name: str) -> bool:
    """Whether a test is the named one, or a variant of it."""
    return test == name or test.startswith(f"{name}[")


def green(chosen: Iterable[Fault], runner: Runner) -> bool:
    """Whether the tests pass without a fault."""
    fine = True
    with copied() as folder:
        for how in ("emulated", "plain"):
            tests = dict.fromkeys(test for fault in chosen for test in getattr(fault, how))
            if not tests:
                continue
            found = runner.run(how, tests, folder)
            fine = fine and not found.failed and not found.void and found.passed >= len(tests)
            print(f"without a fault, {how}: {found.passed} passed, {len(found.failed)} failed")
            print("".join(f"    {test}: {text}\n" for test, text in found.failed.items()), end="")
            print(found.void, end="\n" * bool(found.void), flush=True)
    return fine


def main(words: list[str]) -> int:
    numbers = [int(word) for word in words] or [fault.number for fault in FAULTS]
    unknown = set(numbers) - {fault.number for fault in FAULTS}
    chosen = [fault for fault in FAULTS if fault.number in numbers]
    needs_emulator = any(fault.emulated for fault in chosen) and not torch.cuda.is_available()
    if unknown:
        print(f"no such faults: {sorted(unknown)}; they are numbered 1 to {len(FAULTS)}")
        return 2
    if needs_emulator and not (EMULATOR.is_dir() and shutil.which("g++")):
        print("these faults need the emulator ../shared/tools/fake_cuda and g++, or a CUDA device")
        return 2
    runner, unseen = Runner(), list[int]()
    if not green(chosen, runner):
        return 1
    for fault in chosen:
        begin = time.perf_counter()
        seen, notes = check(fault, runner)
        unseen += [] if seen else [fault.number]
        verdict = "seen" if seen else "NOT SEEN"
        print(
            f"fault {fault.number} {verdict} in {time.perf_counter() - begin:.1f} s: {fault.text}"
        )
        print(notes, flush=True)
    print(f"{len(chosen) - len(unseen)} of {len(chosen)} faults are seen by their tests", end="")
    print(f"; not: {unseen}" if unseen else "")
    return 1 if unseen else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
