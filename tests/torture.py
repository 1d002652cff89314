"""`make torture`: a training that is killed and stopped again and again ends, once resumed, as if
undisturbed.

What it prints stands in the README's table of reliability. A smaller version of every part is in
the suite (test_resume.py, test_distributed.py)."""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from commandline import Commands, Ended, Running, commands_in, sinusoid, write
from kills import going_on, last, newest, planted, same_end

RUN = {
    "meta_steps": 600,
    "checkpoint_every": 13,
    "log_every": 5,
    "validate": {"every": 100, "episodes": 8, "keep": 2},
}


class Broken(AssertionError):
    """What must not happen has happened."""


def must(true: object, what: object) -> None:
    if not true:
        raise Broken(str(what))


def run_and_strike(
    running: Running, ready: Callable[[], bool], strike: Callable[[Running], None]
) -> Ended:
    """A command that is struck once it is `ready`, or ends before."""
    if running.wait_for(ready):
        strike(running)
    return running.wait()


def kill(running: Running) -> None:
    running.kill(signal.SIGKILL)


def terminate(running: Running) -> None:
    running.kill(signal.SIGTERM)


def children(pid: int) -> list[int]:
    path = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(word) for word in path.read_text().split()] if path.exists() else []


def some_process(draw: random.Random) -> Callable[[Running], None]:
    """Kill the launcher or one of its ranks, and wait until all are gone."""

    def strike(running: Running) -> None:
        everyone = [running.pid, *children(running.pid)]
        os.kill(draw.choice(everyone), signal.SIGKILL)
        while any(Path(f"/proc/{pid}").exists() for pid in everyone[1:]):
            time.sleep(0.01)

    return strike


def moments(draw: random.Random, folder: Path, whole: float) -> Iterator[Callable[[], bool]]:
    """Moments at random: some time after the start, or some checkpoints further on and a little
    later."""
    while True:
        if draw.random() < 0.5:
            yield at_time(time.monotonic() + draw.uniform(0, whole))
        else:
            yield at_step(folder, newest(folder) + 13 * draw.randint(1, 12), draw.uniform(0, 0.05))


def never() -> bool:
    return False


def at_time(end: float) -> Callable[[], bool]:
    return lambda: time.monotonic() >= end


def at_step(folder: Path, step: int, more: float) -> Callable[[], bool]:
    def ready() -> bool:
        if newest(folder) < step:
            return False
        time.sleep(more)
        return True

    return ready


def torn(folder: Path) -> set[str]:
    """What kills have left half written: temporary files, and checksums without their
    checkpoints."""
    home = folder / "checkpoints"
    sums = {path.name.removesuffix(".sha256") for path in home.glob("step-*.sha256")}
    return {path.name for path in home.glob(".*.tmp")} | (
        sums - {path.name for path in home.glob("step-*.pt")}
    )


class Torture:
    """One undisturbed run, and what its disturbed twins come to."""

    def __init__(self, metalearn: Commands, draw: random.Random, devices: int = 1) -> None:
        self.metalearn, self.draw, self.devices = metalearn, draw, devices
        self.file = write(metalearn.folder, "torture", sinusoid(run=RUN))
        self.straight, self.folder = (
            metalearn.folder / f"{name}-{devices}" for name in ("straight", "killed")
        )
        begin = time.monotonic()
        must(
            self.run("train", self.file, "--out", self.straight).wait().code == 0,
            "the undisturbed run failed",
        )
        self.whole = time.monotonic() - begin

    def run(self, *words: object, before: str = "") -> Running:
        return self.metalearn.start(*words, "--devices", self.devices, before=before)

    def part(
        self,
        count: int,
        codes: tuple[int, ...],
        ready: Callable[[], Callable[[], bool]],
        strike: Callable[[Running], None],
        before: Callable[[], str] = lambda: "",
        *,
        exact: bool = True,
    ) -> dict[str, int]:
        """Strike so often; every time that a run ends by itself it must be the undisturbed one, and
        another begins."""
        counts = {"killed": 0, "torn": 0, "resumed": 0, "finished": 0}
        while counts["killed"] < count:
            counts["resumed"] += (self.folder / "config.yaml").exists()
            left = torn(self.folder)
            ended = run_and_strike(
                self.run(*going_on(self.folder, self.file), before=before()), ready(), strike
            )
            if ended.code == 0:
                self.compare(exact)
                counts["finished"] += 1
                continue
            must(ended.code in codes, ended)
            counts["killed"] += 1
            counts["torn"] += bool(torn(self.folder) - left)
        while self.folder.exists():
            ended = self.run(*going_on(self.folder, self.file)).wait()
            must(ended.code == 0, ended)
            self.compare(exact)
            counts["finished"] += 1
        return counts

    def compare(self, exact: bool) -> None:
        """Parameters bit for bit; of runs that were killed also metrics, test and cost, as
        test_resume asks."""
        (step, mine), (other_step, other) = last(self.folder), last(self.straight)
        must(
            step == other_step and all(torch.equal(mine[name], other[name]) for name in other),
            "other parameters",
        )
        if exact:
            same_end(self.folder, self.straight)
        shutil.rmtree(self.folder)


def comparison(metalearn: Commands, draw: random.Random, count: int) -> dict[str, int]:
    """Kills during `compare`, which goes on by the same command."""
    data: dict[str, Any] = sinusoid(experiment="pair", run={"meta_steps": 150})
    del data["method"]
    file = write(
        metalearn.folder,
        "pair",
        {**data, "methods": [{"name": n} for n in ("maml", "reptile", "fine_tune")]},
    )
    whole, folder = metalearn.folder / "pair-whole", metalearn.folder / "pair-killed"
    begin = time.monotonic()
    must(metalearn("compare", file, "--out", whole).code == 0, "the undisturbed comparison failed")
    lasts, counts = time.monotonic() - begin, {"killed": 0, "resumed": 0, "finished": 0}
    ended = Ended(-9, "", "")
    while counts["killed"] < count or ended.code != 0:
        counts["resumed"] += folder.exists()
        if counts["killed"] < count:
            end = time.monotonic() + draw.uniform(0, 0.7 * lasts)
        else:
            end = float("inf")
        ended = run_and_strike(
            metalearn.start("compare", file, "--out", folder), at_time(end), kill
        )
        must(ended.code in (0, -9), ended)
        counts["killed"] += ended.code == -9
        if ended.code == 0:
            for label in ("maml", "reptile", "fine_tune"):
                same_end(
                    folder / "methods" / label / "seed-0", whole / "methods" / label / "seed-0"
                )
            counts["finished"] += 1
            shutil.rmtree(folder)
    return counts


def torture(metalearn: Commands, kills: int, aimed: int, seed: int) -> None:
    """All parts, with what each came to."""
    draw = random.Random(seed)
    one = Torture(metalearn, draw)
    at = moments(draw, one.folder, one.whole)
    report("SIGKILL at a random moment", one.part(kills, (-9,), lambda: next(at), kill))
    report(
        "SIGKILL while a checkpoint is written",
        one.part(
            aimed, (-9,), lambda: never, kill, lambda: planted("checkpoints", draw.randrange(80))
        ),
    )
    report(
        "SIGTERM at a random moment",
        one.part(aimed, (75, -15), lambda: next(at), terminate, exact=False),
    )
    report("SIGKILL during compare", comparison(metalearn, draw, aimed))
    two = Torture(metalearn, draw, devices=2)
    after = moments(draw, two.folder, two.whole)
    found = two.part(aimed, (-9, 1, 75), lambda: next(after), some_process(draw), exact=False)
    report("SIGKILL of a rank or the launcher, 2 ranks", found)


def report(what: str, counts: dict[str, int]) -> None:
    half = f" ({counts['torn']} left a file half written)" if counts.get("torn") else ""
    print(
        f"{what}: {counts['killed']} killed{half}, {counts['resumed']} resumed, "
        f"{counts['finished']} runs finished, bit-equal to the undisturbed one",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50, help="at random moments of one training")
    parser.add_argument("--aimed", type=int, default=10, help="of every other kind")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="torture-"))
    begin = time.monotonic()
    try:
        with commands_in(folder) as metalearn:
            torture(metalearn, options.kills, options.aimed, options.seed)
    except AssertionError as error:
        sys.exit(f"broken: {error}\nthe runs are left in {folder}")
    shutil.rmtree(folder)
    print(f"{time.monotonic() - begin:.0f} s")


if __name__ == "__main__":
    main()
