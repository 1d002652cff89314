"""The state of a run directory: whether it contains a run, which one, and its config."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from metalearn.config.build import Parts
from metalearn.config.experiment import NOT_IN_HASH, Experiment, load, parse
from metalearn.config.sources import changed_data
from metalearn.errors import ConfigError
from metalearn.storage.files import read_json, write_json, write_yaml
from metalearn.storage.schema import Environment, checked, read_result

# how a run is executed: resume takes it as it is
EXECUTION = tuple(f"run.{name}" for name in NOT_IN_HASH)
OTHER = "contains other files, such as a run of another config: choose another --out, or remove it"
UNFINISHED = "contains an unfinished run: continue it with"
# In environment.json of runs whose training steps normalise by the batch under `norm: running`.
# Before, they normalised by the running averages.
STATISTICS = "training_statistics"
OUTDATED = (
    "contains a run of an older version, whose training steps with norm: running normalised by the "
    "running averages, not by the batch: choose another --out, or remove it"
)


def run_folders(experiment: Experiment, out: Path) -> list[tuple[int, Path]]:
    """(seed, run directory): DIR itself for one seed, DIR/seed-<n> for several."""
    seeds = experiment.run.seeds
    if len(seeds) == 1:
        return [(seeds[0], out)]
    return [(seed, out / f"seed-{seed}") for seed in seeds]


def status(folder: Path, experiment: Experiment) -> str:
    """What lies in a folder: fresh, finished or unfinished (of this config), or other."""
    if not folder.exists():
        return "fresh"
    if not folder.is_dir():
        return "other"
    if not (folder / "config.yaml").exists():
        visible = any(not entry.name.startswith(".") for entry in folder.iterdir())
        return "other" if visible else "fresh"
    if request_hash(folder) != experiment.hash() or _has_outdated_result(folder):
        return "other"
    return "finished" if (folder / "result.json").exists() else "unfinished"


def why_other(folder: Path) -> str:
    """The sentence about a folder of status other."""
    return OUTDATED if _has_outdated_result(folder) else OTHER


def require_same_statistics(folder: Path) -> None:
    """Refuse to go on with a run under `norm: running` that an older version began."""
    if _is_outdated(folder):
        raise ConfigError((str(folder), OUTDATED))


def _is_outdated(folder: Path) -> bool:
    return (folder / "environment.json").exists() and STATISTICS not in _environment(folder)


def _has_outdated_result(folder: Path) -> bool:
    """Whether an older version has trained the finished run of the folder, by other steps."""
    if not (folder / "result.json").exists() or not _is_outdated(folder):
        return False
    result = read_result(folder)
    trained = (result.get("traits") or {}).get("consumes") != "nothing"
    return trained and result.get("normalisation") == "running"


def request_hash(folder: Path) -> str:
    """The hash of the config that a run directory was made for.

    config.yaml itself gains tuned values later."""
    if (folder / "result.json").exists():
        return str(read_result(folder).get("config_hash"))
    if (folder / "environment.json").exists():
        return str(_environment(folder).get("config_hash"))
    return as_asked(stored_experiment(folder), folder).hash()


def stored_experiment(folder: Path) -> Experiment:
    """The experiment of a run directory; ConfigError when there is none."""
    if not (folder / "config.yaml").is_file():
        text = "is not a run directory: it has no config.yaml"
        several = {"a comparison": "methods/*/seed-*", "a directory of several seeds": "seed-*"}
        for what, pattern in several.items():
            if runs := sorted(folder.glob(f"{pattern}/config.yaml")):
                text = f"is {what}: choose one of its runs, such as {runs[0].parent}"
        raise ConfigError((str(folder), text))
    plan = load(str(folder / "config.yaml"), plugins=False)
    if plan.comparison or len(plan.experiments[0].run.seeds) != 1:
        raise ConfigError((str(folder / "config.yaml"), "must contain one method and one seed"))
    return plan.experiments[0]


def search_folder(folder: Path) -> Path:
    """Where the shared search of a run keeps its record."""
    return folder / "search"


def as_asked(experiment: Experiment, folder: Path) -> Experiment:
    """A stored experiment without what the run's own search has found."""
    return experiment.replace(found=None) if search_folder(folder).exists() else experiment


def request(experiment: Experiment, folder: Path) -> dict[str, Any]:
    """The config as first written: its hash, one that is the same for all seeds, the SHA-256 of
    weights that were trained elsewhere, and `STATISTICS`.

    ConfigError where the weights are not those that the run began with."""
    check_weights(folder, experiment)
    old = _environment(folder)
    first = as_asked(experiment, folder)
    new: dict[str, Any] = {"config_hash": first.hash(), "request": first.with_seed(0).hash()}
    new["config"] = first.resolved()
    if (weights := weights_sha256(experiment)) is not None:
        new["weights_sha256"] = weights
    mark = {} if _is_outdated(folder) else {STATISTICS: "batch"}
    return {**{name: old.get(name, value) for name, value in new.items()}, **mark}


def weights_sha256(experiment: Experiment) -> str | None:
    """The SHA-256 of weights that were trained elsewhere; None where there are none."""
    return (experiment.model.provenance or {}).get("weights_sha256")


def check_weights(folder: Path, experiment: Experiment) -> None:
    """ConfigError where a run was made with other given weights than the experiment has now."""
    recorded = _environment(folder).get("weights_sha256")
    found = weights_sha256(experiment) if recorded is not None else None
    if recorded is not None and found is not None and found != recorded:
        text = f"have SHA-256 {found[:12]}, but {folder} was started with {recorded[:12]}"
        raise ConfigError(("model.weights", f"{text}: restore those weights, or start a new run"))


def write_start(folder: Path, experiment: Experiment, facts: dict[str, Any]) -> None:
    """config.yaml first, from which on the run can be resumed, then environment.json."""
    write_yaml(folder / "config.yaml", experiment.resolved())
    write_json(folder / "environment.json", facts)


def recorded_tasks(folder: Path) -> dict[str, Any]:
    """The form of a run's tasks, as `config.build.records_of` gave it; empty in older runs."""
    return dict(_environment(folder).get("tasks") or {})


def changed_data_of(folder: Path, parts: Parts) -> str:
    """What has become of the data of a run, the end of a sentence; empty where they are as then."""
    recorded, sources = recorded_tasks(folder), {"train": parts.train, "test": parts.test}
    found = [changed_data(recorded.get(name, {}), one) for name, one in sources.items()]
    return next((text for text in found if text), "")


def require_same_data(folder: Path, parts: Parts) -> None:
    """Refuse to go on with a run whose data are others now."""
    if why := changed_data_of(folder, parts):
        text = f"was started with {why}: restore them, or start a new run"
        raise ConfigError((str(folder), text))


def changed(folder: Path, experiment: Experiment) -> list[str]:
    """What differs between the config that a run began with and the one that lies there: `key:
    before -> now`."""
    recorded = _environment(folder).get("config")
    # as it is read today, so that fields that came later have their defaults on both sides
    before = flat(parse(recorded).experiments[0].resolved()) if recorded else {}
    now = flat(as_asked(experiment, folder).resolved())
    keys = [key for key in {**before, **now} if not key.startswith(EXECUTION)] if before else []
    return [
        f"{key}: {json.dumps(before.get(key))} -> {json.dumps(now.get(key))}"
        for key in keys
        if before.get(key) != now.get(key)
    ]


def flat(data: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings under dotted keys."""
    found: dict[str, Any] = {}
    for key, value in data.items():
        place = f"{prefix}{key}"
        found |= flat(value, f"{place}.") if isinstance(value, dict) else {place: value}
    return found


def _environment(folder: Path) -> dict[str, Any]:
    path = folder / "environment.json"
    return checked(Environment, read_json(path), path) if path.exists() else {}


def resumable(folder: Path, allow_change: bool) -> dict[str, Any] | None:
    """The config of an interrupted run, None of a finished one; refuses one that was edited."""
    experiment = stored_experiment(folder)
    if (folder / "result.json").exists():
        return None
    differing = _edited(folder, experiment)
    if differing is not None and not allow_change:
        changes = "".join(f"\n  {text}" for text in differing)
        text = "was changed since the run started: undo the changes, or use --allow-change (in "
        text += f"Python: allow_change=True){changes}"
        raise ConfigError((str(folder / "config.yaml"), text))
    return experiment.resolved()


def _edited(folder: Path, experiment: Experiment) -> list[str] | None:
    """What somebody changed in config.yaml since the run began; None where nobody did. Tuning
    writes there too.
    """
    if request_hash(folder) == as_asked(experiment, folder).hash():
        return None
    found = changed(folder, experiment)
    if not any((folder / "tune" / f"{name}.json").exists() for name in ("training", "best")):
        return found
    own = [f"{place}.{key}" for key in experiment.tune for place in ("method", "method.contains")]
    return [text for text in found if not text.startswith(("evaluate.headline_step", *own))] or None
