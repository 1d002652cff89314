"""A sweep whose workers are killed on the way, against the same sweep undisturbed; `make
torture-sweep` runs it large.

A random search draws a trial's values from its number, and a resumed run is exact; so both must end
with the same sweep.json, to the last digit."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from commandline import Commands, Running, commands_in, sinusoid, write

RUN = {"meta_steps": 60, "checkpoint_every": 5, "validate": {"every": 20, "episodes": 8}}


def sweep_of(folder: Path, trials: int) -> Path:
    """A random search over MAML on sinusoids; a trial takes a fraction of a second."""
    write(folder, "swept", sinusoid(run=RUN, experiment="swept"))
    spread = {"min": 0.001, "max": 0.3, "distribution": "log_uniform_values"}
    parameters = {"method.inner_lr": spread, "method.inner_steps": {"values": [1, 2]}}
    metric = {"name": "valid/loss", "goal": "minimize"}
    data = {
        "program": "swept.yaml",
        "method": "random",
        "metric": metric,
        "run_cap": trials,
        "parameters": parameters,
    }
    return write(folder, "sweep", data)


def swept(folder: Path, name: str, experiment: Any = None, **keys: Any) -> Path:
    """A sweep file over a tiny experiment; each keyword replaces a key, None removes it."""
    short = sinusoid(run={"meta_steps": 4, "validate": {"every": 2, "episodes": 4}})
    write(folder, f"{name}-program", experiment or short)
    data: dict[str, Any] = {
        "program": f"{name}-program.yaml",
        "method": "grid",
        "metric": {"name": "valid/loss", "goal": "minimize"},
        "parameters": {
            "method.inner_lr": {"values": [0.01, 0.1]},
            "method.inner_steps": {"values": [1, 2]},
        },
    }
    data |= keys
    return write(folder, name, {key: value for key, value in data.items() if value is not None})


def claimed_by(folder: Path, pid: int) -> int | None:
    """The trial that a process is at work on."""
    for path in (folder / "claims").glob("*.json"):
        try:
            if json.loads(path.read_text())["pid"] == pid:
                return int(path.stem)
        except (ValueError, OSError):  # being replaced
            continue
    return None


def at_work(folder: Path, worker: Running) -> bool:
    """Whether a worker is in the middle of a trial: it has saved something, and has no result."""
    number = claimed_by(folder, worker.pid)
    if number is None:
        return False
    trial = folder / "trials" / str(number)
    return any((trial / "checkpoints").glob("*.pt")) and not (trial / "result.json").exists()


def sweep_with_kills(
    metalearn: Commands, file: Path, out: str, workers: int, kills: int
) -> dict[str, Any]:
    """Run a sweep with `workers` processes, `kills` of which are killed, each in the middle of a
    trial."""
    folder = metalearn.folder / out
    running = [metalearn.start("sweep", file, "--out", out) for _ in range(workers)]
    killed = []
    for worker in running[:kills]:
        if worker.wait_for(lambda worker=worker: at_work(folder, worker)):  # type: ignore[misc]
            worker.kill()
            killed.append(worker)
    ended = [worker.wait() for worker in running]
    codes = [end.code for end in ended]
    assert all(
        code in ((-9, 0) if worker in killed else (0,)) for code, worker in zip(codes, running)
    ), ended
    taken = sum(end.err.count("resuming from step") for end in ended)
    return {
        "killed": codes.count(-9),
        "taken_over": taken,
        "sweep": json.loads((folder / "sweep.json").read_text()),
    }


def main(trials: int = 40, workers: int = 4, kills: int = 2) -> None:
    with tempfile.TemporaryDirectory() as name, commands_in(Path(name)) as metalearn:
        file = sweep_of(Path(name), trials)
        found = sweep_with_kills(metalearn, file, "killed", workers, kills)
        assert metalearn("sweep", file, "--out", "alone").code == 0
        straight = json.loads((Path(name) / "alone" / "sweep.json").read_text())
    numbers = [trial["number"] for trial in found["sweep"]["trials"]]
    text = f"{workers} workers, {found['killed']} killed in a trial, {found['taken_over']} trials"
    print(f"{text} taken over")
    text = f"{len(numbers)} results, {len(set(numbers))} different; undisturbed the same"
    print(f"{text}: {found['sweep'] == straight}")
    assert (
        numbers == list(range(trials)) and found["sweep"] == straight and found["killed"] == kills
    )


if __name__ == "__main__":
    main()
