"""Set-up: the Makefile's list, the project files, and a doctor that finds what is planted."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import shutil
import socket
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

import metalearn
from metalearn.cli import doctor

ROOT = Path(__file__).resolve().parents[1]
TARGETS = {"setup", "demo", "test", "check", "wheel", "help", "maml-sinusoid", "clean"}
TARGETS |= {"omniglot-quick"}
TARGETS |= {"compare-sinusoid", "compare-glyphs", "compare-omniglot"}
needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))


def make(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """GNU make as a person calls it, also where the tests run under `make test`."""
    outer = {"MAKEFLAGS", "MAKELEVEL", "MFLAGS", "MAKEOVERRIDES"}
    env = {name: value for name, value in os.environ.items() if name not in outer}
    return subprocess.run(["make", *arguments], cwd=cwd, env=env, capture_output=True, text=True)


def pins() -> list[str]:
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


@needs_make
def test_make_help_lists_every_target_with_its_sentence() -> None:
    shown = make("help", cwd=ROOT).stdout
    listed = dict(
        line.split(maxsplit=2)[1:]
        for line in shown.splitlines()
        if line.strip().startswith("make ")
    )
    declared = set(
        re.findall(r"^([a-z0-9-]+):(?!=)", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
    )
    assert set(listed) == declared
    assert set(listed) >= TARGETS
    assert all(sentence.endswith(".") and len(sentence.split()) > 2 for sentence in listed.values())


@needs_make
def test_every_recipe_is_good_shell(tmp_path: Path) -> None:
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    recipes = make("--dry-run", *sorted(TARGETS), cwd=tmp_path).stdout
    assert "-m venv" in recipes and "learn2learn" in recipes
    checked = subprocess.run(["sh", "-n"], input=recipes, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr


@needs_make
def test_an_old_python_is_refused_with_a_sentence(tmp_path: Path) -> None:
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "python-old").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "python-old").chmod(0o755)
    done = make("setup", "PYTHON=./python-old", cwd=tmp_path)
    assert done.returncode != 0
    assert "3.11 or newer" in done.stderr
    assert "./python-old" in done.stderr
    assert not (tmp_path / ".venv").exists()


@needs_make
@pytest.mark.parametrize(
    ("stamp", "clears"),
    [(None, True), ("/another/folder", True), ("here", False)],
    ids=["none", "moved", "ours"],
)
def test_an_interrupted_or_moved_environment_is_made_afresh(
    tmp_path: Path, stamp: str | None, clears: bool
) -> None:
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / ".venv").mkdir()
    if stamp:
        (tmp_path / ".venv" / ".stamp").write_text(
            f"{tmp_path.resolve() if stamp == 'here' else stamp}\n"
        )
        # older than the files below: there is something to do
        os.utime(tmp_path / ".venv" / ".stamp", (1e9, 1e9))
    for name in ("pyproject.toml", "constraints.txt"):
        (tmp_path / name).write_text("")
    planned = make("--dry-run", "setup", cwd=tmp_path)
    assert planned.returncode == 0
    assert "-m venv" in planned.stdout
    assert ("--clear" in planned.stdout) == clears


def test_the_distribution_does_not_take_somebody_elses_name() -> None:
    assert project()["project"]["name"] == "metalearn-lab"
    assert project()["project"]["scripts"] == {"metalearn": "metalearn.cli.main:main"}
    assert (ROOT / "metalearn" / "py.typed").is_file()


def test_constraints_are_exact_versions_without_hosts() -> None:
    form = re.compile(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.]*(\s*;\s*python_version.*)?")
    assert [line for line in pins() if not form.fullmatch(line)] == []
    assert not re.search(r"://|@|--", "\n".join(pins()))
    assert not [line for line in pins() if re.match(r"(torch|nvidia|triton|learn2learn)\b", line)]


def test_every_dependency_but_torch_is_pinned() -> None:
    wanted = (
        project()["project"]["dependencies"] + project()["project"]["optional-dependencies"]["dev"]
    )
    names = {re.match(r"[A-Za-z0-9._-]+", line)[0].lower() for line in wanted}  # type: ignore[index]
    pinned = {line.split("==")[0].lower() for line in pins()}
    assert names - pinned == {"torch"}


def test_the_citation_is_readable_and_agrees_with_the_project() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert citation["version"] == project()["project"]["version"]
    assert citation["license"] == project()["project"]["license"] == "MIT"
    assert citation["authors"] and citation["title"] and citation["cff-version"]


def test_continuous_integration_checks_tests_and_installs_the_wheel() -> None:
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o100
    lines = script.read_text("utf-8").splitlines()
    wheel = 'PYTEST_ARGS="--ignore=tests/test_wheel.py" # `make wheel` has run it'
    tests = ["make test", f"make test-thorough {wheel}"]
    expected = ["make check", "make wheel", *tests, "make docs"]
    assert [line for line in lines if line.startswith("make ")] == expected


def test_the_version_stands_in_one_form_everywhere() -> None:
    version = project()["project"]["version"]
    assert metalearn.__version__ == version
    changes = (ROOT / "CHANGELOG.md").read_text("utf-8")
    assert re.findall(r"^## \[([0-9.]+)\] - \d{4}-\d\d-\d\d$", changes, re.MULTILINE)[0] == version


def plant(monkeypatch: pytest.MonkeyPatch, versions: dict[str, str | None]) -> None:
    """Let importlib.metadata answer these versions (None: not installed) and the truth for all
    else."""
    truth = importlib.metadata.version

    def version(name: str) -> str:
        found = versions[name] if name in versions else truth(name)
        if found is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return found

    monkeypatch.setattr(importlib.metadata, "version", version)


def states(findings: list[doctor.Finding]) -> dict[str, str]:
    return {finding.name: finding.state for finding in findings}


def test_the_doctor_finds_the_core_working_here() -> None:
    findings = doctor.report()
    assert doctor.healthy(findings)
    assert {"python", "torch", "numpy", "cpu", "compiler", "learn2learn", "METALEARN_DATA"} <= set(
        states(findings)
    )
    assert doctor.lines(findings)[-1].startswith("metalearn can run")


@pytest.mark.parametrize("name", doctor.SAME_FOLDER)
def test_the_doctor_warns_of_a_package_with_the_same_folder(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    plant(monkeypatch, dict.fromkeys(doctor.SAME_FOLDER))
    assert "same folder" not in "\n".join(doctor.lines())
    plant(monkeypatch, {name: "0.7.1"})
    warned = [line for line in doctor.lines() if "same folder" in line]
    assert len(warned) == 1
    assert warned[0].startswith("warning")
    assert f"pip uninstall -y {name}" in warned[0]


def test_the_doctor_says_how_to_get_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    plant(monkeypatch, {"torch": None, "wandb": None})
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setenv("METALEARN_DATA", str(tmp_path / "nowhere"))
    monkeypatch.setenv("HOME", str(tmp_path))
    findings = doctor.report()
    found = states(findings)
    assert not doctor.healthy(findings)
    assert found["torch"] == "missing"
    expected = ("wandb", "learn2learn", "compiler", "METALEARN_DATA", "data omniglot")
    assert {name: found[name] for name in expected} == dict.fromkeys(expected, "warning")
    remedy = re.compile(r"pip install|make -B setup|metalearn data prepare|install g\+\+|create it")
    assert [
        line for line in findings if line.state != "ok" and not remedy.search(line.sentence)
    ] == []
    assert "cannot run" in doctor.lines(findings)[-1]


def test_the_doctor_survives_a_check_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> list[doctor.Finding]:
        raise OSError("libtorch.so: cannot open shared object file")

    monkeypatch.setattr(doctor, "CHECKS", (("torch", broken), ("compiler", broken)))
    findings = doctor.report()
    assert states(findings) == {"torch": "missing", "compiler": "warning"}
    assert all("libtorch.so" in finding.sentence for finding in findings)


def test_the_doctor_needs_no_package_to_start() -> None:
    code = (
        "import sys, metalearn.cli.doctor; print([m for m in ('torch', 'numpy', 'pydantic') "
        "if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_tests_cannot_reach_the_network() -> None:
    with socket.socket() as plug, pytest.raises(AssertionError, match="without a network"):
        plug.connect(("192.0.2.1", 80))  # an address set aside for documentation (RFC 5737)
