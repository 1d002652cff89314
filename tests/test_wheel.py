"""The wheel, built and installed in a fresh environment, runs outside the checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

import metalearn
from metalearn.config import shipped
from metalearn.errors import ConfigError

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ("metalearn", "experiments", "pyproject.toml", "setup.py", "README.md", "LICENSE")
SMALL = ["run.meta_steps=3", "run.seeds=[0]", "run.executor=vmap", "evaluate.episodes=4"]
SMALL += ["evaluate.chunk=4", "run.validate={every: null}"]


def environment() -> dict[str, str]:
    """This process's, without a way back into the checkout."""
    env = {name: text for name, text in os.environ.items() if name != "PYTHONPATH"}
    return {**env, "OMP_NUM_THREADS": "1", "WANDB_MODE": "disabled", "PIP_NO_INDEX": "1"}


def run(*command: str | Path, cwd: Path) -> str:
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built of a copy, where no earlier build can lend it a file; setuptools is all it needs."""
    pytest.importorskip("setuptools", minversion="77")
    source = tmp_path_factory.mktemp("source")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(
                ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__")
            )
        else:
            shutil.copy(ROOT / name, source)
    options = ("--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", source / "dist")
    run(sys.executable, "-m", "pip", "wheel", *options, source, cwd=source)
    (built,) = (source / "dist").glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The console script of a fresh environment with the wheel and the packages of this one."""
    home = tmp_path_factory.mktemp("installed") / "venv"
    venv.create(home, with_pip=False)
    scheme = sysconfig.get_paths("venv", {"base": str(home), "platbase": str(home)})
    here = dict.fromkeys((sysconfig.get_path("purelib"), sysconfig.get_path("platlib")))
    (Path(scheme["purelib"]) / "here.pth").write_text("\n".join(here))
    scripts = Path(scheme["scripts"])
    options = ("--quiet", "--no-deps", "--ignore-installed")
    run(scripts / "python", "-m", "pip", "install", *options, wheel, cwd=home)
    return scripts


def test_the_wheel_holds_every_file_of_the_package(wheel: Path) -> None:
    held = set(zipfile.ZipFile(wheel).namelist())
    package = [path for path in (ROOT / "metalearn").rglob("*") if "__pycache__" not in path.parts]
    files = {path.relative_to(ROOT).as_posix() for path in package if path.is_file()}
    files |= {
        f"metalearn/{path.relative_to(ROOT).as_posix()}"
        for path in (ROOT / "experiments").rglob("*.yaml")
    }
    assert files - held == set()
    assert wheel.name.startswith(f"metalearn_lab-{metalearn.__version__}-")


def test_it_runs_outside_the_checkout(installed: Path, tmp_path: Path) -> None:
    command, python = installed / "metalearn", installed / "python"
    place = run(python, "-c", "import metalearn; print(metalearn.__file__)", cwd=tmp_path)
    assert Path(place.strip()).is_relative_to(installed.parent)
    listed = run(command, "list", "experiments", cwd=tmp_path)
    assert "maml_sinusoid" in listed and "demo" in listed
    assert "quick" in run(command, "list", "sweeps", cwd=tmp_path)
    run(command, "train", "maml_sinusoid", *SMALL, "--out", "first", cwd=tmp_path)
    assert (tmp_path / "first" / "result.json").is_file()
    assert "proto_net" in run(command, "compare", "demo", "--dry-run", cwd=tmp_path)
    assert "Usage" in run(python, "-m", "metalearn", "--help", cwd=tmp_path)


@pytest.fixture(scope="module")
def plugin(installed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of examples/plugin, installed beside the wheel."""
    source = tmp_path_factory.mktemp("plugin") / "plugin"
    shutil.copytree(ROOT / "examples" / "plugin", source)
    options = ("--quiet", "--no-deps", "--no-build-isolation")
    run(installed / "python", "-m", "pip", "install", *options, source, cwd=source)
    return source


def test_a_plugin_is_compared_with_built_in_rivals(installed: Path, plugin: Path) -> None:
    """Its method, its data and its section of the page are found by entry points alone."""
    command, python = installed / "metalearn", installed / "python"
    assert "sign_maml" in run(command, "list", "methods", cwd=plugin)
    small = [*SMALL, "run.log_every=1", "evaluate.steps=[0,3]", "evaluate.headline_step=3"]
    run(command, "compare", "compare.yaml", *small, "--out", "runs", cwd=plugin)
    page = (plugin / "runs" / "report.html").read_text()
    assert "sign_maml" in page and "With which inner step sizes?" in page
    row = plugin / "runs" / "methods" / "sign_maml" / "seed-0"
    assert "metalearn_signs" in (row / "config.yaml").read_text()
    run(python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests", cwd=plugin)


def test_a_run_with_an_unknown_plugin_is_refused_and_nothing_imported(
    installed: Path, plugin: Path, tmp_path: Path
) -> None:
    """What a run directory names is no reason to import it, even where it can be found."""
    row = plugin / "runs" / "methods" / "sign_maml" / "seed-0"
    if not row.is_dir():
        pytest.skip("the comparison above did not end")
    (tmp_path / "metalearn_signs.py").write_text("open('imported', 'w')")
    for action in ("evaluate", "resume"):
        done = subprocess.run(
            [sys.executable, "-m", "metalearn", action, row],
            cwd=tmp_path,
            env={**environment(), "PYTHONPATH": os.pathsep.join((str(ROOT), str(tmp_path)))},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 2 and "unknown method 'sign_maml'" in done.stderr, done.stderr
        assert "--plugin metalearn_signs" in done.stderr
    assert not (tmp_path / "imported").exists()


def test_the_working_directory_wins_over_what_is_shipped(installed: Path, tmp_path: Path) -> None:
    own = tmp_path / "experiments" / "maml_sinusoid.yaml"
    own.parent.mkdir()
    own.write_text("experiment: mine\ntask: {source: sinusoid}\nmethod: {name: maml}\n")
    shown = run(installed / "metalearn", "train", "maml_sinusoid", "--dry-run", cwd=tmp_path)
    assert "experiment: mine" in shown


def test_a_copy_of_the_package_alone_names_what_it_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(shipped, "__file__", str(tmp_path / "metalearn" / "config" / "shipped.py"))
    with pytest.raises(ConfigError, match="contains no experiments: install its wheel"):
        shipped.find("maml_sinusoid", "experiment")


def test_every_shipped_file_has_a_short_sentence() -> None:
    for sub in ("", "sweeps"):
        for path in shipped.files(sub).values():
            assert 20 < len(shipped.sentence(path)) <= 110, path
            assert all(len(line) <= 100 for line in path.read_text("utf-8").splitlines()), path
