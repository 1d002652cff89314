"""Which sweep a folder belongs to: `sweep-request.json`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from metalearn.errors import ConfigError
from metalearn.storage.files import plain, read_json, write_json
from metalearn.sweep.file import Sweep

REQUEST = "sweep-request.json"
MAY_CHANGE = ("run_cap", "name", "description")


def claim_folder(sweep: Sweep, folder: Path) -> None:
    """Record in a folder that it is this sweep's; raises ConfigError if it has other content."""
    request = plain({"sweep": sweep.data, "experiment": sweep.experiment.hash()})
    path = folder / REQUEST
    if folder.exists() and not folder.is_dir():
        raise ConfigError((str(folder), "is a file: choose another --out"))
    if path.exists():
        check_request(read_json(path), request, folder)
        if read_json(path) == request:
            return
    elif folder.exists() and any(not entry.name.startswith(".") for entry in folder.iterdir()):
        raise ConfigError(
            (str(folder), "contains files that are not a sweep: choose another --out")
        )
    folder.mkdir(parents=True, exist_ok=True)
    write_json(path, request)


def check_request(stored: Any, request: dict[str, Any], folder: Path) -> None:
    """Raise ConfigError if the sweeps differ in more than their name and number of trials."""
    old, new = (
        {k: v for k, v in dict(content.get("sweep") or {}).items() if k not in MAY_CHANGE}
        for content in (stored, request)
    )
    changed = sorted(key for key in {*old, *new} if old.get(key) != new.get(key))
    if not changed and stored.get("experiment") != request["experiment"]:
        changed = ["the experiment file that it runs"]
    if changed:
        text = f"contains a sweep that differs in {', '.join(changed)}: choose another --out"
        raise ConfigError((str(folder), f"{text} (only run_cap may change)"))
