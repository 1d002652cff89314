"""The state of a run directory: whether it contains a run, which one, and its config."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from metalearn.config.build import Parts
from metalearn.config.experiment import NOT_IN_HASH, Experiment, load, parse
from metalearn.config.sources import changed_data
from metalearn.errors import ConfigError
from metalearn.logger import log
from metalearn.storage.files import read_json, write_json, write_yaml
from metalearn.storage.schema import Environment, check_schema, read_result

# how a run is executed: resume accepts any value
EXECUTION = tuple(f"run.{name}" for name in NOT_IN_HASH)
OTHER = "contains other files, such as a run of another config: choose another --out, or remove it"
UNFINISHED = "contains an unfinished run: continue it with"
# In environment.json of runs whose training steps normalise by the batch under `norm: running`.
# Before, they normalised by the running averages.
STATISTICS = "training_statistics"
START_HASH = "start_config_hash"  # in environment.json: that of the run of `method.start`
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
    """Return the status of a folder: fresh, finished or unfinished (of this config), or other."""
    if not folder.exists():
        return "fresh"
    if not folder.is_dir():
        return "other"
    if not (folder / "config.yaml").exists():
        visible = any(not entry.name.startswith(".") for entry in folder.iterdir())
        return "other" if visible else "fresh"
    if not experiment.has_hash(request_hash(folder)) or _has_outdated_result(folder):
        return "other"
    return "finished" if (folder / "result.json").exists() else "unfinished"


def why_other(folder: Path) -> str:
    """Return the message about a folder of status other."""
    return OUTDATED if _has_outdated_result(folder) else OTHER


def require_same_statistics(folder: Path) -> None:
    """Raise ConfigError for a run under `norm: running` that an older version began."""
    if _is_outdated(folder):
        raise ConfigError((str(folder), OUTDATED))


def _is_outdated(folder: Path) -> bool:
    return (folder / "environment.json").exists() and STATISTICS not in _environment(folder)


def _has_outdated_result(folder: Path) -> bool:
    """Return whether an older version trained the finished run of the folder with other steps."""
    if not (folder / "result.json").exists() or not _is_outdated(folder):
        return False
    result = read_result(folder)
    trained = (result.get("traits") or {}).get("consumes") != "nothing"
    return trained and result.get("normalisation") == "running"


def request_hash(folder: Path) -> str:
    """Return the hash of the config that a run directory was made for.

    config.yaml itself gains tuned values later."""
    if (folder / "result.json").exists():
        return str(read_result(folder).get("config_hash"))
    if (folder / "environment.json").exists():
        return str(_environment(folder).get("config_hash"))
    return as_requested(stored_experiment(folder), folder).hash()


def stored_experiment(folder: Path) -> Experiment:
    """Return the experiment of a run directory. Raises ConfigError if there is none."""
    if not (folder / "config.yaml").is_file():
        text = "is not a run directory: it has no config.yaml"
        several = {"a comparison": "methods/*/seed-*", "a directory of several seeds": "seed-*"}
        for kind, pattern in several.items():
            if runs := sorted(folder.glob(f"{pattern}/config.yaml")):
                text = f"is {kind}: choose one of its runs, such as {runs[0].parent}"
        raise ConfigError((str(folder), text))
    plan = load(str(folder / "config.yaml"), plugins=False)
    if plan.comparison or len(plan.experiments[0].run.seeds) != 1:
        raise ConfigError((str(folder / "config.yaml"), "must contain one method and one seed"))
    return plan.experiments[0]


def search_folder(folder: Path) -> Path:
    """Return the folder with the record of a run's shared search."""
    return folder / "search"


def as_requested(experiment: Experiment, folder: Path) -> Experiment:
    """Return a stored experiment without the architecture that the run's own search found."""
    return experiment.replace(found=None) if search_folder(folder).exists() else experiment


def request(experiment: Experiment, folder: Path) -> dict[str, Any]:
    """Return the config as first written: its hash, one that is the same for all seeds, the SHA-256
    of weights that were trained elsewhere, and `STATISTICS`.

    Raises ConfigError if the weights are not those that the run began with."""
    check_weights(folder, experiment)
    recorded = _environment(folder)
    requested = as_requested(experiment, folder)
    fields: dict[str, Any] = {
        "config_hash": requested.hash(),
        "request": requested.with_seed(0).hash(),
    }
    fields["config"] = requested.resolved()
    if (weights := weights_sha256(experiment)) is not None:
        fields["weights_sha256"] = weights
    mark = {} if _is_outdated(folder) else {STATISTICS: "batch"}
    return {**{name: recorded.get(name, value) for name, value in fields.items()}, **mark}


def recorded_start(folder: Path) -> str | None:
    """Return the config hash of the run that a run started from; None without a record."""
    recorded = _environment(folder).get(START_HASH)
    return None if recorded is None else str(recorded)


def weights_sha256(experiment: Experiment) -> str | None:
    """Return the SHA-256 of weights that were trained elsewhere; None without such weights."""
    return (experiment.model.provenance or {}).get("weights_sha256")


def check_weights(folder: Path, experiment: Experiment) -> None:
    """Raise ConfigError if a run was made with other weights than the experiment has now."""
    recorded = _environment(folder).get("weights_sha256")
    current = weights_sha256(experiment) if recorded is not None else None
    if recorded is not None and current is not None and current != recorded:
        text = f"have SHA-256 {current[:12]}, but {folder} was started with {recorded[:12]}"
        raise ConfigError(("model.weights", f"{text}: restore those weights, or start a new run"))


def write_start(folder: Path, experiment: Experiment, facts: dict[str, Any]) -> None:
    """Write config.yaml, after which the run can be resumed, then environment.json."""
    write_yaml(folder / "config.yaml", experiment.resolved())
    write_json(folder / "environment.json", facts)


def recorded_tasks(folder: Path) -> dict[str, Any]:
    """Return the form of a run's tasks, as from `build.make_records`; empty in older runs."""
    return dict(_environment(folder).get("tasks") or {})


def describe_changed_data(folder: Path, parts: Parts) -> str:
    """Describe a change of a run's data, as the end of a sentence; empty if there is none."""
    recorded, sources = recorded_tasks(folder), {"train": parts.train, "test": parts.test}
    changes = [changed_data(recorded.get(name, {}), source) for name, source in sources.items()]
    return next((text for text in changes if text), "")


def require_same_data(folder: Path, parts: Parts, allow_change: bool) -> None:
    """Raise ConfigError if the data of a run have changed; only warn with `allow_change`."""
    why = describe_changed_data(folder, parts)
    if why and allow_change:
        log.warning(f"{folder}: was started with {why}: continuing on these")
    elif why:
        text = f"was started with {why}: restore them, or start a new run"
        raise ConfigError((str(folder), text))


def config_changes(folder: Path, experiment: Experiment) -> list[str]:
    """Return the differences between the config that a run began with and the stored one, as `key:
    before -> now`."""
    recorded = _environment(folder).get("config")
    # parsed by this version, so that fields added later have their defaults on both sides
    before = flatten(parse(recorded).experiments[0].resolved()) if recorded else {}
    now = flatten(as_requested(experiment, folder).resolved())
    keys = [key for key in {**before, **now} if not key.startswith(EXECUTION)] if before else []
    return [
        f"{key}: {json.dumps(before.get(key))} -> {json.dumps(now.get(key))}"
        for key in keys
        if before.get(key) != now.get(key)
    ]


def flatten(data: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested mappings to dotted keys."""
    flattened: dict[str, Any] = {}
    for key, value in data.items():
        path = f"{prefix}{key}"
        flattened |= flatten(value, f"{path}.") if isinstance(value, dict) else {path: value}
    return flattened


def _environment(folder: Path) -> dict[str, Any]:
    path = folder / "environment.json"
    return check_schema(Environment, read_json(path), path) if path.exists() else {}


def resumable(folder: Path, allow_change: bool) -> dict[str, Any] | None:
    """Return the config of an interrupted run, None of a finished one.

    Raises ConfigError if it was edited, unless `allow_change`."""
    experiment = stored_experiment(folder)
    if (folder / "result.json").exists():
        return None
    edits = _find_edits(folder, experiment)
    if edits is not None and not allow_change:
        changes = "".join(f"\n  {text}" for text in edits)
        text = "was changed since the run started: undo the changes, or use --allow-change (in "
        text += f"Python: allow_change=True){changes}"
        raise ConfigError((str(folder / "config.yaml"), text))
    return experiment.resolved()


def _find_edits(folder: Path, experiment: Experiment) -> list[str] | None:
    """Return what was edited in config.yaml since the run began, or None.

    What tuning wrote there is not an edit."""
    if as_requested(experiment, folder).has_hash(request_hash(folder)):
        return None
    differences = config_changes(folder, experiment)
    if not differences and _environment(folder).get("config"):
        return None
    if not any((folder / "tune" / f"{name}.json").exists() for name in ("training", "best")):
        return differences
    tuned = [
        f"{section}.{key}" for key in experiment.tune for section in ("method", "method.contains")
    ]
    return [
        text for text in differences if not text.startswith(("evaluate.headline_step", *tuned))
    ] or None
