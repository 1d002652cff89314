"""Hostile inputs: every one ends with exit code 0 or 2, and changes nothing outside the run.

test_fuzz.py runs some hundred of each kind; `make fuzz` ten thousand in all, in one process."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import sys
import tempfile
import time
import traceback
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import typer
import yaml
from commandline import sinusoid
from fuzz_inputs import (
    COMPARISON,
    FILES,
    PICTURES,
    SCRIPT,
    SWEEP,
    added,
    document,
    harm,
    members,
    paths_of,
    put,
    words_of,
)
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import Image

from metalearn.cli import main as cli
from metalearn.errors import exit_codes
from metalearn.logger import show_messages
from metalearn.sweep.file import read as read_sweep
from metalearn.tasks import omniglot, store

show_messages()
COMMAND = typer.main.get_command(cli.app)  # what cli.main makes anew at every call


class Place(NamedTuple):
    """Where it all happens; everything but `scratch` must stay as it is."""

    root: Path
    run: Path  # a finished run
    images: Path

    @property
    def scratch(self) -> Path:
        return self.root / "scratch"

    def fresh(self) -> Path:
        shutil.rmtree(self.scratch, ignore_errors=True)
        self.scratch.mkdir()
        return self.scratch


def place_in(root: Path) -> Place:
    """A workplace with an experiment, a finished run, a folder of images, and things to lose."""
    (root / "treasure").mkdir(parents=True)
    (root / "treasure" / "thesis.txt").write_text("mine")
    (root / "tiny.yaml").write_text(
        yaml.safe_dump(sinusoid(run={"meta_steps": 4, "validate": {"every": 2}}))
    )
    for name in range(4):
        (root / "images" / f"c{name}").mkdir(parents=True)
        for number in range(4):
            Image.new("L", (6, 6), 40 * name + number).save(
                root / "images" / f"c{name}" / f"{number}.png"
            )
    found = Place(root, root / "run", root / "images")
    code, errors = command(found, "train", "tiny.yaml", "--out", "run")
    assert code == 0, errors
    return found


def command(place: Place, *words: str) -> tuple[int, str]:
    """(exit code, output) of a command, in this process; anything but SystemExit comes out
    as it is."""
    before, argv = Path.cwd(), sys.argv
    out = io.StringIO()
    os.chdir(place.root)
    sys.argv = ["metalearn", *words]
    try:
        with (
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(out),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            try:
                COMMAND()
            except SystemExit as end:
                return (
                    end.code if isinstance(end.code, int) else int(end.code is not None)
                ), out.getvalue()
        return 0, out.getvalue()
    finally:
        os.chdir(before)
        sys.argv = argv


def state(place: Place) -> dict[str, tuple[int, int]]:
    """Size and time of every file but those in `scratch`."""
    found = {}
    for folder, _, files in os.walk(place.root):
        if not Path(folder).is_relative_to(place.scratch):
            for name in files:
                about = os.lstat(Path(folder) / name)
                found[os.path.join(folder, name)] = (about.st_size, about.st_mtime_ns)
    return found


def holds(place: Place, *words: str, codes: tuple[int, ...] = (0, 2)) -> str:
    """Run a command and see that it ends as it must."""
    before = state(place)
    code, errors = command(place, *words)
    assert code in codes, (code, errors)
    assert "Traceback" not in errors
    assert code != 2 or errors.strip(), "exit code 2 without a word"
    assert state(place) == before
    return errors


def write_text(path: Path, text: str) -> Path:
    path.write_bytes(text.encode("utf-8", errors="surrogatepass"))
    return path


def check_config(place: Place, text: str) -> None:
    file = write_text(place.fresh() / "fuzzed.yaml", text)
    holds(place, "train", str(file), "--dry-run", "--out", "scratch/out")


def check_compare(place: Place, text: str) -> None:
    file = write_text(place.fresh() / "fuzzed.yaml", text)
    holds(place, "compare", str(file), "--dry-run", "--out", "scratch/out")


def check_overrides(place: Place, words: list[str]) -> None:
    place.fresh()
    holds(place, "train", "tiny.yaml", "--dry-run", "--out", "scratch/out", "--", *words)


def check_sweep(place: Place, text: str) -> None:
    """Read and checked with its experiment, as the command does first; what it would run is not
    run."""
    file = write_text(place.fresh() / "sweep.yaml", text)
    before, here = state(place), Path.cwd()
    os.chdir(place.root)
    try:
        with contextlib.redirect_stderr(io.StringIO()) as errors, exit_codes():
            read_sweep(str(file))
    except SystemExit as end:
        assert end.code == 2 and errors.getvalue().strip()
    finally:
        os.chdir(here)
    assert state(place) == before


def damage(path: Path, how: str, what: Any) -> None:
    """One file of a run directory, changed by somebody else."""
    content = path.read_bytes()
    if how == "cut":
        path.write_bytes(content[: int(what * len(content))])
    elif how == "flip":
        at = min(int(what * len(content)), len(content) - 1)
        path.write_bytes(content[:at] + bytes([content[at] ^ 0x55]) + content[at + 1 :])
    elif how == "put":
        path.write_bytes(what)
    elif how in ("gone", "folder"):
        path.unlink()
        if how == "folder":
            path.mkdir()
    elif path.suffix == ".json":
        data = json.loads(content)
        paths = paths_of(data)
        data = put(data, paths[int(what[0] * (len(paths) - 1))], what[1])
        path.write_text(json.dumps(data, default=str))
    elif path.suffix == ".yaml":
        data = yaml.safe_load(content)
        paths = paths_of(data)
        path.write_text(
            yaml.dump(
                put(data, paths[int(what[0] * (len(paths) - 1))], what[1]), allow_unicode=True
            )
        )


def check_run(place: Place, parts: tuple[str, tuple[str, Any], str, bool]) -> None:
    """A finished run, or one that was stopped after its last checkpoint but one, with one file
    harmed."""
    name, (how, what), verb, stopped = parts
    folder = place.fresh() / "run"
    shutil.copytree(place.run, folder)
    if stopped:
        for file in (folder / "result.json", folder / "scores.npz", folder / "episodes.npz"):
            file.unlink()
        max((folder / "checkpoints").glob("*.pt")).unlink()
        name = name if (folder / name).exists() else "checkpoint"
    path = folder / name if name != "checkpoint" else max((folder / "checkpoints").glob("*.pt"))
    damage(path, how, what)
    words = {
        "evaluate": (
            "evaluate",
            "scratch/run",
            "evaluate.episodes=2",
            "evaluate.steps=[0,1]",
            "evaluate.headline_step=1",
            "evaluate.task={source: sinusoid, shots: 2, queries: 2}",
        ),
        "report": ("report", "scratch/run", "--out", "scratch/page.html"),
        "resume": ("resume", "scratch/run"),
    }
    if verb == "resume" and name == "config.yaml" and how == "edit":
        verb = "evaluate"
    holds(place, *words[verb], codes=(0, 2, 3))
    if (place.scratch / "page.html").exists():
        assert SCRIPT not in (place.scratch / "page.html").read_text()


def check_archive(place: Place, members: list[tuple[str, bytes, int]]) -> None:
    """A zip with any names, kinds and sizes: read in memory, or refused; nothing is unpacked."""
    path = place.fresh() / "a.zip"
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        warnings.simplefilter("ignore")  # a name twice
        for name, content, kind in members:
            info = zipfile.ZipInfo(name or "x")
            info.external_attr = (0o120777 << 16) if kind == 1 else (0o644 << 16)
            archive.writestr(info, b"\0" * (2 << 20) if kind == 2 else content)
    content = bytearray(path.read_bytes())
    for _, _, kind in members:
        if kind == 3:
            content[len(content) // 2] ^= 0xFF
        if kind == 4:
            del content[-9:]
    path.write_bytes(content)
    before = state(place)
    for read in (lambda: list(store.archive_members(path, ".png")), lambda: omniglot_from(path)):
        with contextlib.suppress(store.DataError):
            for member, _ in read():
                assert not member.is_absolute() and ".." not in member.parts
    assert state(place) == before and {entry.name for entry in place.scratch.iterdir()} == {"a.zip"}


def omniglot_from(path: Path) -> list[Any]:
    omniglot.read_archives(path, path)
    return []


def check_data(place: Place, parts: tuple[str, Any]) -> None:
    """A prepared file of Omniglot that is none, or was changed."""
    path = place.fresh() / omniglot.FILE
    arrays = {"images": np.zeros((2, 20, 28, 28), np.uint8), "is_evaluation": np.zeros(2, bool)}
    if parts[0] == "edit":
        arrays["vinyals_split"] = (
            np.array([{"a": 1}], dtype=object) if parts[1][0] > 0.5 else np.zeros(2, np.int8)
        )
    np.savez_compressed(path, **arrays)  # type: ignore[arg-type]
    if parts[0] not in ("edit", "folder"):
        damage(path, *parts)
    before = os.environ.get("METALEARN_DATA")
    os.environ["METALEARN_DATA"] = str(place.scratch)
    try:
        holds(place, "data", "verify", "omniglot", codes=(2,))
        words = ("task.source=omniglot", "model.name=conv4", "task.ways=2")
        holds(place, "train", "tiny.yaml", *words, "--dry-run", codes=(2,))
    finally:
        os.environ.pop("METALEARN_DATA") if before is None else os.environ.__setitem__(
            "METALEARN_DATA", before
        )


def check_images(place: Place, parts: list[tuple[int, str, str]]) -> None:
    """A folder of images into which somebody put more."""
    root = place.fresh() / "images"
    shutil.copytree(place.images, root)
    for number, name, kind in parts:
        path = root / f"c{number}" / name
        if kind == "link":
            path.symlink_to(place.root / "treasure" / "thesis.txt")
        elif kind == "folder":
            path.mkdir(exist_ok=True)
        else:
            path.write_bytes(PICTURES[kind])
    before = os.environ.get("METALEARN_DATA")
    os.environ["METALEARN_DATA"] = str(place.scratch / "cache")
    words = (
        f"task.path={root}",
        "task.size=8",
        "task.channels=1",
        "task.ways=2",
        "task.shots=1",
        "task.queries=1",
    )
    try:
        holds(
            place,
            "train",
            "tiny.yaml",
            "task.source=image_folder",
            *words,
            "model.name=conv4",
            "model.filters=2",
            "task.fractions=[0.5,0,0.5]",
            "--dry-run",
        )
    finally:
        os.environ.pop("METALEARN_DATA") if before is None else os.environ.__setitem__(
            "METALEARN_DATA", before
        )


# strategy, check, share in %
Target = tuple[st.SearchStrategy[Any], Callable[[Place, Any], None], int]
TARGETS: dict[str, Target] = {
    "config": (document(sinusoid()), check_config, 26),
    "comparison": (document(COMPARISON), check_compare, 10),
    "overrides": (words_of, check_overrides, 22),
    "sweep file": (document(SWEEP), check_sweep, 16),
    "run directory": (
        st.tuples(
            st.sampled_from(FILES),
            harm,
            st.sampled_from(["evaluate", "report", "resume"]),
            st.booleans(),
        ),
        check_run,
        12,
    ),
    "archive": (members, check_archive, 8),
    "prepared data": (harm, check_data, 2),
    "image folder": (added, check_images, 4),
}


def fuzz(name: str, place: Place, examples: int, **how: Any) -> None:
    """So many inputs of one kind; raises at the smallest one that does not end as it must."""
    strategy, check, _ = TARGETS[name]

    checks: Any = {"suppress_health_check": list(HealthCheck), "database": None, **how}

    @settings(max_examples=examples, deadline=None, **checks)
    @given(strategy)
    def run(value: Any) -> None:
        check(place, value)

    run()


def main(total: int = 10_000) -> int:
    """Rounds of a thousand inputs, a line after each; 1 where something did not end as it must."""
    os.environ["WANDB_MODE"] = "disabled"
    done: dict[str, int] = dict.fromkeys(TARGETS, 0)
    failed, begin = 0, time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        place = place_in(Path(name) / "place")
        while sum(done.values()) < total:
            for kind, (_, _, share) in TARGETS.items():
                examples = max(1, min(1000, total) * share // 100)
                try:
                    fuzz(kind, place, examples, derandomize=False, phases=[Phase.generate])
                except Exception:
                    failed += 1
                    print(f"{kind}: {traceback.format_exc()}", flush=True)
                done[kind] += examples
            counts = ", ".join(f"{count} {kind}" for kind, count in done.items())
            print(
                f"{sum(done.values())} inputs in {time.monotonic() - begin:.0f} s: {counts}; "
                f"wrong: {failed}",
                flush=True,
            )
    print(
        "each ended with 0 or 2, no traceback, nothing changed outside"
        if not failed
        else f"{failed} did not end so"
    )
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:2])))
