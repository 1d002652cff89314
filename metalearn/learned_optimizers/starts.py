"""Where a new task's parameters begin: at random, at a pretrained body, or at a meta-learned
network.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

from metalearn.inner.heads import fresh_linear, is_head
from metalearn.inner.requirements import require_head
from metalearn.rng import fold_in
from metalearn.tree import partition
from metalearn.types import EpisodeSpec, Key, Learner, Meta, Params

Init = Literal["random", "pretrained", "meta"]
SENTENCE = (
    "where a task begins: random, a network drawn for each task; pretrained, the body of "
    "`start` with a head drawn for "
    "each task (in regression the whole network); meta, the whole network of `start`"
)
WORDS = {
    "random": "random",
    "pretrained": "pretrained",
    "meta": "meta-learned",
}  # as the report calls them


class Start(NamedTuple):
    """The part of a meta that holds parameters, and what one task makes of it."""

    meta: Callable[
        [Key], dict[str, Params]
    ]  # {"params": ...}, for `method.start` to fill; {} where nothing is held
    of_task: Callable[[Meta, Key], Params]  # (meta, the task's key) -> phi_0


def start_of(init: Init, learner: Learner, spec: EpisodeSpec) -> Start:
    """The start of every task of `spec`; the parameters that are held stand still."""
    if init == "random":
        return Start(lambda key: {}, lambda meta, key: learner.init(key))
    if init == "meta" or not spec.classification:
        return Start(lambda key: {"params": learner.init(key)}, lambda meta, key: meta["params"])
    require_head("this start", learner, linear=False)
    width = learner.init(fold_in(0, "width"))["head.weight"]  # of the head only the width D is read

    def body(key: Key) -> dict[str, Params]:
        return {"params": partition(learner.init(key), is_head)[1]}

    return Start(
        body, lambda meta, key: {**meta["params"], **fresh_linear(key, spec.outputs, width)}
    )


def needs_start(init: Init) -> str:
    """Why a method with this start cannot begin by itself; empty where it can."""
    if init == "random":
        return ""
    other = (
        "an experiment or row that learns an initialization, such as maml"
        if init == "meta"
        else "fine_tune's"
    )
    return (
        f"is missing: init {init} begins from another run's network; give start, {other}, "
        f"or say init: random"
    )
