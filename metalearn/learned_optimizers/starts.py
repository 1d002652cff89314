"""Initial parameters of a new task: random, a pretrained body, or a meta-learned network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

from metalearn.inner.heads import fresh_linear, is_head
from metalearn.inner.requirements import require_head
from metalearn.rng import fold_in
from metalearn.tree import partition
from metalearn.types import EpisodeSpec, Key, Learner, Meta, Params

Init = Literal["random", "pretrained", "meta"]
INIT = (
    "Initial parameters of a task. random: random for each task; pretrained: the body of `start` "
    "with a random head for each task (in regression the whole network); meta: the whole network "
    "of `start`."
)
# Names in the report.
LABELS = {"random": "random", "pretrained": "pretrained", "meta": "meta-learned"}


class Start(NamedTuple):
    """The fixed parameters of the meta, and the initial parameters of a task."""

    meta: Callable[[Key], dict[str, Params]]  # {"params": ...}, set by `method.start`; or {}
    init_params: Callable[[Meta, Key], Params]  # (meta, the task's key) -> phi_0


def build_start(init: Init, learner: Learner, spec: EpisodeSpec) -> Start:
    """Build the initialization of every task of `spec`; parameters in the meta stay fixed."""
    if init == "random":
        return Start(lambda key: {}, lambda meta, key: learner.init(key))
    if init == "meta" or not spec.classification:
        return Start(lambda key: {"params": learner.init(key)}, lambda meta, key: meta["params"])
    require_head("this start", learner, linear=False)
    head = learner.init(fold_in(0, "width"))["head.weight"]  # only its width D is used

    def body(key: Key) -> dict[str, Params]:
        return {"params": partition(learner.init(key), is_head)[1]}

    def init_params(meta: Meta, key: Key) -> Params:
        return {**meta["params"], **fresh_linear(key, spec.outputs, head)}

    return Start(body, init_params)


def needs_start(init: Init) -> str:
    """Return why a method with this `init` needs another run; empty if it does not."""
    if init == "random":
        return ""
    if init == "meta":
        source = "an experiment or method that learns an initialization, such as maml"
    else:
        source = "a run of fine_tune"
    return (
        f"is missing: init {init} starts from the network of another run: set start to {source}, "
        "or use init: random"
    )
