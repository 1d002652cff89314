"""The types that everything passes through.

Axis letters, the same in every comment of the project:

    T tasks in a batch · N ways · K shots · Q queries per class · M query examples · S inner steps
    B examples · X example shape · D features · C outputs · E evaluation episodes · P points of a
    learning curve"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from metalearn.errors import ConfigError
from metalearn.tree import optional_leaves

Key = Tensor  # 0-d int64, or [*B] int64 where a function says so; see metalearn/rng.py
Params = dict[str, Tensor]  # flat; names as in the module; "stats." marks running statistics
Grads = Any  # a pytree like the parameters it belongs to
Updates = Any
State = Any  # a pytree of float tensors
Meta = Any  # what is learned across tasks: a pytree of float tensors of one dtype
Lanes = Any  # leaves [T, ...]
Metrics = dict[str, Tensor]
Result = TypeVar("Result")


@optional_leaves
class Batch(NamedTuple):
    """Labelled examples of one task, or of one split.

    x: inputs [B, *X].
    y: classes [B], int64 0 .. N-1; in regression targets [B, C], in the dtype of the spec.
    weight: None, or [B]; 0 marks padding.

    In the batches of a stacked Episode, each has a leading axis of tasks: [T, B, ...]."""

    x: Tensor  # [B, *X]
    y: Tensor  # [B] int64 classes | [B, C] float targets
    weight: Tensor | None = None  # [B]; 0 marks padding; None: every example counts once


class Episode(NamedTuple):
    """One task; a stacked Episode has a leading T on every leaf and the same type.

    support: Batch of the N*K labelled examples that the task is learned from.
    query: Batch of the N*Q examples that are predicted.
    info: {name: tensor} of facts about the task. `key` [], int64, seeds the random numbers of
        learning it; `step` [] is 0 (training sets the number of the meta-step); `class_ids` [N] are
        the classes of the split that the labels 0 .. N-1 stand for (classification)."""

    support: Batch  # x [N*K, *X]
    query: Batch  # x [M, *X]
    # key [], step [], class_ids [N] (classification), amplitude [] (sinusoid), ...
    info: dict[str, Tensor]


class Learner(NamedTuple):
    """A model as pure functions of its parameters."""

    init: Callable[[Key], Params]
    # (params, x, context=None): [B, *X] -> [B, D]; runs without the head's leaves
    features: Callable[..., Tensor]
    apply: Callable[..., Tensor]  # (params, x, context=None): [B, *X] -> [B, C]
    # running statistics refreshed from one batch; identity elsewhere
    stats: Callable[[Params, Tensor], Params]
    normalisation: str = "none"  # the policy, for the traits of the methods that use this learner
    outputs: int = 1  # C
    x_shape: tuple[int, ...] = ()  # X
    # Names of the parameters of a torch module with requires_grad=False: no step updates them.
    fixed: tuple[str, ...] = ()
    # How outputs come from features: by head.weight and head.bias alone; by them and more of the
    # module; none: without such leaves.
    readout: Literal["linear", "module", "none"] = "linear"
    draws_noise: bool = False  # in training steps, under noise.noise_from
    # (name in the module, leaf) of leaves that are called otherwise: of a head, of tied parameters.
    aliases: tuple[tuple[str, str], ...] = ()
    integers: bool = False  # x are integers that are looked up, such as the numbers of words
    random_start: bool = True  # `init` draws; False: the same values for every key
    module: Callable[[Params], Any] | None = None  # an ordinary torch module with these parameters
    # the FrozenNetwork (kernels/feature_cache.py) of the features, or of the first layers if
    # `after_frozen` is the learner that takes its outputs [B, D] as inputs
    frozen: Any = None
    after_frozen: Learner | None = None
    gains: tuple[str, ...] = ()  # leaves that are gain or shift of batch normalisation


class Objective(NamedTuple):
    """The parameters and outputs of an objective without a network, such as a test function."""

    init: Callable[[Key], Params]
    # ONE task: (params, x [B, *X]) -> [B, C], compared with y as any prediction
    apply: Callable[[Params, Tensor], Tensor]


class UpdateRule(NamedTuple):
    """An (init, update) pair for inner and outer loops; the caller adds the updates."""

    init: Callable[[Any], State]
    update: Callable[[Grads, State, Any, Tensor], tuple[Updates, State]]  # last argument: the loss
    elementwise: bool = False  # it treats all numbers alike, whichever parameter they belong to


class Path(NamedTuple):
    """The trajectory of one inner loop."""

    points: list[Params]  # the parameters at the requested steps, in order
    state: State  # of the rule, after the last step
    losses: Tensor  # [S], each before its step


class MetaState(NamedTuple):
    """Everything that changes during meta-training; only tensors."""

    meta: Meta
    opt: State
    lanes: Lanes | None
    step: Tensor  # []


@optional_leaves
class Learned(NamedTuple):
    """Predictions after chosen numbers of steps on each task's support set."""

    predictions: Tensor  # [T, P, M, C]
    notes: dict[str, Tensor]  # [T, ...]
    # of the predictions' normal distribution [T, P, M, C], where a method predicts one
    log_deviation: Tensor | None = None


@dataclass(frozen=True)
class Traits:
    """Static properties of a method, for the training loop, the checks and the report."""

    consumes: Literal["episodes", "examples", "nothing"]
    uses_steps: bool = True
    support_at_step_0: bool = False  # predictions after 0 steps already use the support set
    transductive: bool = False  # a prediction depends on the other queries of its batch
    normalisation: str = "none"
    host_side: bool = False  # `learn` is Python code per task, such as a search: never traced
    fixed_ways: bool = False  # the head is part of meta: ways at test must equal ways in training
    # inner steps are one function of their inputs: one may be compiled for all (inner/stepwise.py)
    step_invariant: bool = False
    # of the ledger that `learn` writes to for every new task
    phases: tuple[str, ...] = ("adapt", "predict")


@dataclass(frozen=True)
class EpisodeSpec:
    """The shape of one task; a method is built for it.

    kind: "classification" or "regression".
    ways: N, classes of a task; 1 for regression.
    shots: K, support examples of each class; in regression, of the task.
    queries: Q, query examples of each class; in regression, of the task.
    x_shape: shape of one input, a tuple such as (1,) or (3, 84, 84).
    outputs: C, outputs of the network: N for classification, in regression those of one target.
    num_classes: classes of the split, which `examples` labels; 0 for regression.
    split: "train", "valid" or "test": the split that the tasks come from.
    dtype: of x and of regression targets.
    device: of all tensors.
    loss: None (cross entropy, mean squared error), the name of a loss, or a function
        (predictions, y) -> loss of each example.
    objective: an Objective that replaces the network.
    padded: whether `Batch.weight` marks padding: `ways` and `shots` are the most a task has.
    """

    kind: Literal["classification", "regression"]
    ways: int  # N; 1 for regression
    shots: int  # K
    queries: int  # Q
    x_shape: tuple[int, ...]  # X
    outputs: int  # C
    num_classes: int  # of the split; 0 for regression
    split: str = "train"
    dtype: torch.dtype = torch.float32
    device: str = "cpu"
    # How predictions are compared with y: a name of losses.LOSSES, or a function of both to the
    # loss of each example; None: cross_entropy for classes, mse for regression.
    loss: str | Callable[..., Tensor] | None = None
    # An objective without a network, which the model `own` learns; functions are not compared.
    objective: Objective | None = field(default=None, repr=False, compare=False)
    # Tasks have at most `ways` classes and `shots` examples; `Batch.weight` says which.
    padded: bool = False

    def __post_init__(self) -> None:
        """Raise ConfigError for classification with one class, whose accuracy is always 1.

        Dense tasks have the number of classes in `outputs`, and 1 for `ways`."""
        if self.kind == "classification" and max(self.ways, self.outputs) < 2:
            text = f"must be >= 2 (got {self.ways}): a classification task needs at least 2 classes"
            raise ConfigError(("ways", text))

    @property
    def classification(self) -> bool:
        return self.kind == "classification"

    @property
    def class_sets(self) -> int | None:
        """How many sets of N classes the split has; None where tasks are not made of classes.

        A source whose tasks cannot have every set states its own number as `class_sets`."""
        has_sets = self.classification and self.num_classes >= self.ways
        return math.comb(self.num_classes, self.ways) if has_sets else None

    @property
    def metric(self) -> str:
        """The headline metric: accuracy for classes, loss for regression."""
        return "accuracy" if self.classification else "loss"


class Ledger(Protocol):
    """Records cost by phase: `run` that of a call, `span` the time of a block."""

    def run(
        self,
        phase: str,
        function: Callable[..., Result],
        *args: Any,
        times: int = 1,
        **counts: int | None,
    ) -> Result:
        """Call `function(*args)`, measure it and write it to `phase`."""
        ...

    def span(self, phase: str, **counts: float) -> AbstractContextManager[None]:
        """Write the time of a block to `phase`, and to no span around it."""
        ...

    def add(self, phase: str, seconds: float | None, **counts: float | None) -> None:
        """Write what was measured elsewhere; None: it was not measured."""
        ...

    def totals(self) -> dict[str, dict[str, float]]:
        """What was spent so far, by phase."""
        ...

    def under(self, phase: str) -> Ledger:
        """A ledger that writes everything to one phase of this one."""
        ...


class NullLedger:
    """A ledger that records nothing."""

    def run(
        self,
        phase: str,
        function: Callable[..., Result],
        *args: Any,
        times: int = 1,
        **counts: int | None,
    ) -> Result:
        del phase, times, counts
        return function(*args)

    @contextmanager
    def span(self, phase: str, **counts: float) -> Iterator[None]:
        del phase, counts
        yield

    def add(self, phase: str, seconds: float | None, **counts: float | None) -> None:
        del phase, seconds, counts

    def totals(self) -> dict[str, dict[str, float]]:
        return {}

    def under(self, phase: str) -> NullLedger:
        del phase
        return self


class TaskSource(Protocol):
    """Where episodes come from: an object with these three, one for each split.

    spec: EpisodeSpec of the tasks."""

    spec: EpisodeSpec

    def sample(self, key: Key, num_tasks: int, start: int = 0) -> Episode:
        """Return the tasks start to start + num_tasks - 1, stacked: leaves [T, ...].

        Task t depends on (key, start + t) alone: fold_in(key, torch.arange(start, start +
        num_tasks)) are the keys of the tasks."""
        ...

    def examples(self, key: Key, size: int) -> Batch:
        """Return `size` examples for pretraining: x [B, *X], y [B] over all classes of the split.

        In regression y is [B, C], of one example of each of B new tasks."""
        ...


class Method(NamedTuple):
    """One way of learning new tasks; all families are Methods."""

    spec: EpisodeSpec
    traits: Traits
    init: Callable[[Key], MetaState]
    # (meta, support, query_x, steps, key=..., ledger=NullLedger()); leaves with a leading T
    learn: Callable[..., Learned]
    # ONE task: (meta, support, step, key) -> what it has learned after `step` steps, for `predict`
    adapt: Callable[..., Any] | None = None
    # ONE task: (meta, adapted, support, query_x [M, *X]) -> [M, C]
    predict: Callable[..., Tensor] | None = None
    # ONE task: (meta, episode[, lane]) -> (grads, metrics[, lane])
    task_grad: Callable[..., tuple[Any, ...]] | None = None
    update: Callable[[MetaState, Grads], MetaState] | None = None  # the meta-update alone
    # None: nothing is learned across tasks
    step: Callable[[MetaState, Any], tuple[MetaState, Metrics]] | None = None
    lanes: Callable[[Key, int], Lanes] | None = None  # per-task state that persists across steps
    prepare: Callable[..., Method] | None = None  # once, on the host, before training
