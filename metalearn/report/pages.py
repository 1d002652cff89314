"""One page about run, comparison or sweep directories."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from metalearn.config.plugins import load_entry_points
from metalearn.errors import ConfigError
from metalearn.report.page import write_report
from metalearn.report.sweep_page import split_kinds, write_sweep_report
from metalearn.results.comparison import read_request, update_comparison


def write_pages(dirs: str | Path | Sequence[str | Path], out: str | Path = "report.html") -> Path:
    """Write one HTML report of runs and comparisons, or of sweeps. Returns its path.

    A comparison.json that is missing or out of date is written first.

    >>> ml.report("runs/example", "example.html").name  # of the run of `train`
    'example.html'
    """
    load_entry_points()
    dirs = [dirs] if isinstance(dirs, (str, Path)) else dirs
    folders, demonstration = [Path(folder) for folder in dirs], False
    for folder in folders:
        if not folder.is_dir():
            text = "is not a directory: pass directories of runs, comparisons or sweeps"
            raise ConfigError((str(folder), text))
    _check_page(Path(out))
    if split_kinds(folders):
        return write_sweep_report(folders, Path(out))
    for folder in folders:
        if (folder / "methods").is_dir():
            update_comparison(folder)
            demonstration |= bool(read_request(folder).get("demonstration"))
    return write_report(folders, Path(out), demonstration=demonstration)


def _check_page(out: Path) -> None:
    """Raise ConfigError if something other than a report is at `out`, before any work is done."""
    if out.is_dir():
        raise ConfigError(("--out", f"{out} is a directory: pass the path of an HTML file"))
    if out.exists():
        with out.open("rb") as file:
            if not file.read(64).lstrip().lower().startswith(b"<!doctype html"):
                raise ConfigError(
                    ("--out", f"{out} already exists and is not a report: choose another name")
                )
