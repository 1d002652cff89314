"""Checkpoints: a flat {name: tensor} file with a SHA-256 file next to it.

The newest valid one is loaded, with a warning for damaged ones."""

from __future__ import annotations

import hashlib
import io
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from metalearn.errors import ConfigError
from metalearn.logger import log
from metalearn.storage.files import write_atomic
from metalearn.tree import from_named, named_leaves
from metalearn.types import MetaState

NAME = re.compile(r"^step-(\d+)\.pt$")


def path_of(folder: Path, step: int) -> Path:
    return folder / f"step-{step:09d}.pt"


def save(path: Path, tree: Any) -> None:
    """Write every leaf under its dotted name.

    The checksum is written first, so that an incomplete pair is never valid."""
    named = {
        name: value.detach().to("cpu").contiguous().clone()
        for name, value in named_leaves(tree).items()
    }
    buffer = io.BytesIO()
    torch.save(named, buffer)
    content = buffer.getvalue()
    digest = hashlib.sha256(content).hexdigest()
    write_atomic(checksum_of(path), f"{digest}  {path.name}\n".encode())
    write_atomic(path, content)


def checksum_of(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")


def read(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint. Raises ConfigError if it is missing or damaged."""
    try:
        content = path.read_bytes()
        expected = checksum_of(path).read_text().split()[0]
    except (OSError, IndexError, UnicodeDecodeError) as error:
        raise ConfigError((str(path), f"cannot be read with its checksum file: {error}")) from error
    if hashlib.sha256(content).hexdigest() != expected:
        text = "does not match its SHA-256: the file was truncated or changed"
        raise ConfigError((str(path), text))
    try:
        named = torch.load(io.BytesIO(content), weights_only=True, map_location="cpu")
    except Exception as error:  # the unpickler raises errors of all types on other content
        text = f"is not a file of tensors ({type(error).__name__})"
        raise ConfigError((str(path), text)) from error
    if not isinstance(named, dict) or not all(
        isinstance(value, Tensor) for value in named.values()
    ):
        raise ConfigError((str(path), "is not a checkpoint: it must contain named tensors"))
    return named


def load(path: Path, like: MetaState) -> MetaState:
    """Return the state of a checkpoint, in the structure, dtype and device of `like`.

    The task state may be of more tasks than in `like`."""
    named = read(path)
    try:
        state: MetaState = from_named(like, named)
    except KeyError as error:
        text = f"belongs to another method or model: {error.args[0]}"
        raise ConfigError((str(path), text)) from error
    mismatches = [
        f"{name} is {list(named[name].shape)}, must be {list(value.shape)}"
        for name, value in named_leaves(like).items()
        if not name.startswith("lanes") and named[name].shape != value.shape
    ]
    if mismatches:
        raise ConfigError((str(path), f"belongs to another model: {'; '.join(mismatches[:3])}"))
    devices = {name: value.device for name, value in named_leaves(like).items()}
    named_on_device = {name: value.to(devices[name]) for name, value in named_leaves(state).items()}
    return from_named(state, named_on_device)  # type: ignore[no-any-return]


def steps_in(folder: Path) -> list[int]:
    """Return the steps of the checkpoints in a folder, ascending."""
    matches = (
        (NAME.match(path.name) for path in folder.glob("step-*.pt")) if folder.is_dir() else ()
    )
    return sorted(int(match.group(1)) for match in matches if match)


def newest(folder: Path, like: MetaState) -> tuple[int, MetaState] | None:
    """Return (step, state) of the newest valid checkpoint, or None.

    Damaged ones are skipped."""
    steps = steps_in(folder)
    for step in reversed(steps):
        try:
            return step, load(path_of(folder, step), like)
        except ConfigError as error:
            log.warning(f"{error}; falling back to the previous checkpoint")
    if steps:
        log.warning(f"no valid checkpoint in {folder}: restarting from step 0")
    return None


def keep_only(folder: Path, steps: set[int]) -> None:
    """Remove the checkpoints of all other steps."""
    for step in steps_in(folder):
        if step not in steps:
            path_of(folder, step).unlink(missing_ok=True)
            checksum_of(path_of(folder, step)).unlink(missing_ok=True)
