"""Killing commands, and what must be the same after a run that was killed and one that was not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
from commandline import Commands, Ended

from metalearn.storage import checkpoint


def last(folder: Path) -> tuple[int, dict[str, torch.Tensor]]:
    """The newest checkpoint of a run directory: (step, tensors)."""
    step = checkpoint.steps_in(folder / "checkpoints")[-1]
    return step, checkpoint.read(checkpoint.path_of(folder / "checkpoints", step))


def newest(folder: Path) -> int:
    return max(checkpoint.steps_in(folder / "checkpoints"), default=0)


def same_end(a: Path, b: Path) -> None:
    """Two finished runs learned the same: parameters, metrics and test, bit for bit; and say they
    spent the same."""
    (step, mine), (other_step, other) = last(a), last(b)
    assert step == other_step and set(mine) == set(other)
    assert all(torch.equal(mine[name], other[name]) for name in mine)
    assert checkpoint.steps_in(a / "checkpoints") == checkpoint.steps_in(b / "checkpoints")
    assert (a / "metrics.jsonl").read_bytes() == (b / "metrics.jsonl").read_bytes()
    results = [json.loads((folder / "result.json").read_text()) for folder in (a, b)]
    for key in ("test", "headline", "checkpoint_step", "config_hash", "episodes", "tuned"):
        assert results[0][key] == results[1][key], key
    for phase in ("pretrain", "meta_train", "tune"):
        for count in ("gradient_steps", "examples", "labels", "tasks"):
            assert results[0]["cost"][phase][count] == results[1]["cost"][phase][count], (
                phase,
                count,
            )


def killed(metalearn: Commands, ready: Callable[[], bool], *args: object) -> Ended:
    """A command that is killed as soon as `ready`; or ends first."""
    started = metalearn.start(*args)
    if started.wait_for(ready):
        started.kill()
    return started.wait()


def going_on(folder: Path, *train: object) -> tuple[object, ...]:
    """The command that continues a folder: train before config.yaml is there, resume from then
    on."""
    if (folder / "config.yaml").exists():
        return ("resume", folder)
    return ("train", *train, "--out", folder)


# Python for `before`: the process dies, or meets a full disk, at the n-th thing that it does to
# files whose path holds a word. Writing one file atomically is four: flush it, take the name, open
# the folder, flush the folder.
PLANTED = """
import os, signal
calls, word, number, what = iter(range(10**9)), {word!r}, {number}, {what!r}
def path_of(args):
    try:
        known = isinstance(args[0], int)
        return os.readlink(f"/proc/self/fd/{{args[0]}}") if known else str(args[-1])
    except OSError:
        return ""
def watched(name):
    real = getattr(os, name)
    def call(*args, **options):
        if word in path_of(args) and next(calls) == number:
            if what == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            raise OSError(int(what), os.strerror(int(what)))
        return real(*args, **options)
    setattr(os, name, call)
for name in ("fsync", "replace", "open"):
    watched(name)
"""


def planted(word: str, number: int, what: str = "kill") -> str:
    """A fault at the n-th (from 0) change to files whose path holds `word`; `what`: kill, or an
    error number."""
    return PLANTED.format(word=word, number=number, what=what)
