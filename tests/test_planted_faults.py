"""The table of planted faults fits today's code: `make plant-faults` plants them and runs tests."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from plant_faults import outcome
from planted_faults import FAULTS, Edit, Fault, Misplaced, plant
from test_cuda_emulated import PARTS
from thorough import is_thorough

ROOT = Path(__file__).resolve().parents[1]
EMULATED_FILES = {file for files, _ in PARTS.values() for file in files.split()}
each_fault = pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: str(fault.number))


def test_every_fault_has_its_number() -> None:
    assert [fault.number for fault in FAULTS] == list(range(1, 21))
    assert all(fault.edits and (fault.emulated or fault.plain) for fault in FAULTS)


@each_fault
def test_a_fault_changes_code_of_today_into_code(fault: Fault) -> None:
    for path, text in plant(fault, ROOT / "metalearn").items():
        assert text != path.read_text("utf-8")
        compile(text, str(path), "exec", dont_inherit=True)


def test_a_text_that_is_not_there_once_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("x = 1\ny = 1\n")
    for text, times in (("z", 0), (" = 1", 2)):
        with pytest.raises(Misplaced, match=f"fault 3: this text stands {times} times in a.py"):
            plant(Fault(3, "", (Edit("a.py", text, ""),)), tmp_path)


def variants(test: Any) -> Iterator[str]:
    """The ids of a test's variants, where one mark with plain values gives them."""
    for mark in getattr(test, "pytestmark", ()):
        if mark.name == "parametrize" and "ids" not in mark.kwargs:
            for values in mark.args[1]:
                yield "-".join(map(str, values if isinstance(values, tuple) else (values,)))


def is_emulated(module: Any, test: Any) -> bool:
    marks = getattr(module, "pytestmark", []), *getattr(test, "pytestmark", ())
    return any(getattr(mark, "name", "") == "gpu" for mark in marks)


@each_fault
def test_the_named_tests_are_there(fault: Fault) -> None:
    """And in `make test`; on the emulated device, if they need one."""
    for name in (*fault.emulated, *fault.plain):
        file, _, rest = name.partition("::")
        function, _, variant = rest.removesuffix("]").partition("[")
        module = importlib.import_module(Path(file).stem)
        test = getattr(module, function)
        assert is_emulated(module, test) is (name in fault.emulated), name
        assert not variant or variant in variants(test), name
        assert file in EMULATED_FILES if name in fault.emulated else not is_thorough(name), name


PRINTED = """
FAILED tests/a.py::test_x[one-2] - RuntimeError: two - devices
FAILED tests/a.py::test_y
2 failed, 3 passed in 0.10s
"""


def test_what_pytest_prints_is_read() -> None:
    found = outcome(1, PRINTED, "")
    messages = {
        "tests/a.py::test_x[one-2]": "RuntimeError: two - devices",
        "tests/a.py::test_y": "",
    }
    assert (found.failed, found.passed, found.void) == (messages, 3, "")
    assert outcome(4, "ERROR: not found: tests/a.py::test_z\n", "").void
    assert "ERROR" not in outcome(0, "1 passed in 0.01s\n", "").void
    assert outcome(0, "1 passed, 1 skipped in 0.01s\n", "").void
    assert outcome(1, f"ERROR tests/a.py::test_z - E{PRINTED}", "").void
    assert outcome(1, "", "Traceback").void
