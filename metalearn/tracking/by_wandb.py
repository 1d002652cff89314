"""Weights & Biases: the only file that imports it.

Online with a key, else offline, without prompts and with short timeouts."""

from __future__ import annotations

import netrc
import os
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from metalearn.component import option
from metalearn.errors import ConfigError
from metalearn.logger import log
from metalearn.storage.files import read_json, read_lines, write_json
from metalearn.tracking.sink import Json, Sink, SinkOptions, TrackedRun, scalars

WAIT = 4.0  # seconds for a server's answer at the start, and for the last data at the end
ID_FILE = "tracked.json"  # the run's id at W&B: a resumed run keeps it
_UNREACHABLE: list[str] = []  # why this process no longer tries the server


class WandB(SinkOptions):
    """Weights & Biases: online with a key, else files in the run directory for `wandb sync`.

    >>> track = {"wandb": {"mode": "offline"}}
    >>> task = ml.tasks.Sinusoid()
    >>> experiment = ml.experiment(ml.algorithms.MAML(), task=task, run={"track": track})
    >>> experiment.run.track.wandb.mode
    'offline'
    """

    mode: Literal["auto", "online", "offline", "disabled"] = option(
        "auto", "auto: online with a key, else offline. WANDB_MODE takes precedence."
    )
    project: str = option("metalearn", "Name of the project.", min_length=1, max_length=128)
    entity: str | None = option(None, "User or team; null: that of the API key.")
    group: str | None = option(
        None, "Group of the run; null: the comparison or sweep it belongs to."
    )
    tags: tuple[str, ...] = option((), "Tags.")

    def resolved_mode(self) -> str:
        """Return online, offline or disabled, from environment, key and options."""
        variable = os.environ.get("WANDB_MODE", "").strip().lower()
        mode = {"dryrun": "offline", "run": "online"}.get(variable, variable) or self.mode
        if mode in ("auto", "online"):
            return "online" if has_key() and not _UNREACHABLE else "offline"
        return "disabled" if mode == "disabled" else "offline"

    def build(self, tracked: TrackedRun) -> Sink | None:
        mode = self.resolved_mode()
        return None if mode == "disabled" else _Run(self, tracked, mode)


def has_key() -> bool:
    """Return whether the environment or netrc contains a key; there is no prompt."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai").netloc
    files = [os.environ.get("NETRC"), Path.home() / ".netrc", Path.home() / "_netrc"]
    for file in files:
        try:
            if file and netrc.netrc(str(file)).authenticators(host):
                return True
        except (OSError, netrc.NetrcParseError):
            continue
    return False


class _Run:
    """One run at W&B."""

    def __init__(self, options: WandB, tracked: TrackedRun, mode: str) -> None:
        self._tracked, self._options = tracked, options
        code = {"git": tracked.facts.get("git")}
        config = {**tracked.config, "code": code, "environment": tracked.facts}
        self._run = _open_run(options, tracked, mode, config)
        self._run.define_metric("step")
        self._run.define_metric("adapt_step")
        for name in ("train/*", "valid/*", "train_tasks/*"):
            self._run.define_metric(name, step_metric="step")
        self._run.define_metric("test/*", step_metric="adapt_step")

    def rows(self, rows: Sequence[Json]) -> None:
        for row in rows:
            self._run.log({"step": int(row["step"]), **scalars(row)})

    def result(self, result: Json) -> None:
        import wandb

        test, head = result["test"], result["headline"]
        columns = ["steps", *(key for key, value in test.items() if key != "steps" and value)]
        points = list(zip(*(test[key] for key in columns)))
        for step, *values in points:
            named = {f"test/{key}": value for key, value in zip(columns[1:], values)}
            finite = {name: value for name, value in named.items() if value is not None}
            self._run.log({"adapt_step": step, **finite})
        phases = [
            {"phase": phase} | {key: None if v == "unknown" else v for key, v in entry.items()}
            for phase, entry in result["cost"].items()
        ]
        counts = sorted({key for row in phases for key in row if key != "phase"})
        rows = [dict(zip(columns, point)) for point in points]
        images = self._tracked.figures(self._tracked.folder)
        self._run.log(
            {
                "tables/test": _table(columns, rows),
                "tables/cost": _table(["phase", *counts], phases),
                **{f"figures/{name}": wandb.Image(image) for name, image in images.items()},
            }
        )
        headline = {f"test/{head['metric']}": head["value"]}
        self._run.summary.update({**_flat(result), **headline, **self._best(result)})

    def _best(self, result: Json) -> dict[str, float]:
        """Return the validation scores of the tested state, which W&B's sweeps compare."""
        lines = read_lines(self._tracked.folder / "metrics.jsonl")
        rows = [row for row in lines if row.get("split") == "valid"]
        tested = [row for row in rows if row["step"] == result.get("checkpoint_step")]
        return scalars(tested[-1] if tested else rows[-1]) if rows else {}

    def page(self, folder: Path, page: Path) -> None:
        media: Json = {"report": _html(page)}
        for name in ("comparison.json", "sweep.json"):
            if (folder / name).exists():
                media |= _tables(read_json(folder / name))
        for file in sorted((folder / "figures").glob("*.svg")):
            media[f"figures/{file.stem}"] = _html(file)
        self._run.log(media)

    def close(self) -> None:
        self._run.finish()


def _open_run(options: WandB, tracked: TrackedRun, mode: str, config: Json) -> Any:
    """Open the run, offline if the server does not respond in time."""
    os.environ.setdefault("WANDB_SILENT", "true")
    # W&B's error telemetry waits up to 30 s, after the run, for a server that accepts calls and
    # never responds.
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    import wandb

    if not os.environ.get("WANDB_MODE", "x").strip():
        del os.environ["WANDB_MODE"]  # empty, which W&B does not accept
    arguments: dict[str, Any] = {
        "project": options.project,
        "entity": options.entity,
        "group": options.group,
        "tags": list(options.tags),
        "name": tracked.title,
        "job_type": tracked.job,
        "config": config,
        "dir": str(tracked.folder),
    }
    if "WANDB_SWEEP_ID" not in os.environ:  # else W&B's own agent has chosen the id
        arguments["id"] = _run_id(tracked.folder)
        arguments["resume"] = "allow" if mode == "online" else None
    timeouts: Any = dict.fromkeys(("init_timeout", "login_timeout", "finish_timeout"), WAIT)
    quiet_options: Any = {"silent": True, "console": "off", "disable_git": True, "save_code": False}
    settings = wandb.Settings(**timeouts, **quiet_options)
    if mode == "online":
        try:
            return wandb.init(mode="online", settings=settings, **arguments)
        except Exception as error:  # a bad key, a dead server, no network: of many types
            why = " ".join(str(error).split())[:200] or type(error).__name__
            _UNREACHABLE.append(why)
            files = tracked.folder / "wandb"
            later = f"wandb sync {files}/offline-run-*"
            log.warning(f"wandb: {why}; continuing offline; later: {later}")
            wandb.teardown()
    return wandb.init(mode="offline", settings=settings, **{**arguments, "resume": None})


def _run_id(folder: Path) -> str:
    id_file = folder / ID_FILE
    if not id_file.exists():
        write_json(id_file, {"wandb": uuid.uuid4().hex[:12]})
    return str(read_json(id_file)["wandb"])


def _html(file: Path) -> Any:
    import wandb

    return wandb.Html(file.read_text(encoding="utf-8"), inject=False)


def _table(columns: Sequence[str], rows: Sequence[Json]) -> Any:
    import wandb

    data = [[_cell(row.get(key)) for key in columns] for row in rows]
    return wandb.Table(columns=list(columns), data=data)


def _cell(value: Any) -> Any:
    return value if value is None or isinstance(value, (int, float, str, bool)) else str(value)


def _flat(data: Json, prefix: str = "") -> Json:
    """Flatten nested numbers and texts to dotted names; lists are in the tables."""
    flattened: Json = {}
    for key, value in data.items():
        if isinstance(value, dict):
            flattened |= _flat(value, f"{prefix}{key}.")
        elif isinstance(value, (int, float, str, bool)):
            flattened[f"{prefix}{key}"] = value
    return flattened


def _tables(data: Json) -> dict[str, Any]:
    """Return every list of objects as a table."""
    tables = {}
    for name, rows in data.items():
        is_table = isinstance(rows, list) and rows and all(isinstance(row, dict) for row in rows)
        if is_table and name != "rows":
            columns = list(dict.fromkeys(key for row in rows for key in row))
            tables[f"tables/{name}"] = _table(columns, rows)
    return tables


def new_sweep(data: Json, program: str) -> str:
    """Register a sweep file with W&B; return the command that starts its agents.

    Raises ConfigError without an account."""
    if not has_key():
        text = "needs an account: run `wandb login`, or omit --wandb to run it here"
        raise ConfigError(("--wandb", text))
    import wandb

    # An agent's trial is `metalearn train` with dotted overrides, in its own folder.
    run = 'exec metalearn train "$0" "$@" --out "runs/sweeps/$WANDB_SWEEP_ID/$WANDB_RUN_ID"'
    command = ["${env}", "sh", "-c", run, "${program}", "${args_no_hyphens}"]
    config = {"project": "metalearn", "command": command, **data, "program": program}
    try:
        sweep_id = wandb.sweep(config)
    except Exception as error:  # those of W&B, the network and the server have no common type
        why = " ".join(str(error).split()) or type(error).__name__
        text = f"W&B rejected the sweep: {why}; omit --wandb to run it here"
        raise ConfigError(("--wandb", text)) from error
    entity = f"{config['entity']}/" if "entity" in config else ""
    return f"wandb agent {entity}{config['project']}/{sweep_id}"
