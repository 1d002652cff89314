"""MetaNAS (Elsken et al. 2020, arXiv:1911.11090): Reptile over weights and architecture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from metalearn.component import MethodComponent, option
from metalearn.errors import ConfigError
from metalearn.inner.adapt import adapt
from metalearn.inner.method import (
    OverTasks,
    as_step_indices,
    init_state,
    make_step_over_tasks,
    make_update,
    task_keys,
)
from metalearn.inner.requirements import require_no_padding
from metalearn.inner.rules import SGD, Rule, adam
from metalearn.inner.statistics import add_stats_delta, stats_delta_of_pass
from metalearn.losses import criterion
from metalearn.nas.fit import check_shots, halves
from metalearn.nas.searchers.darts import Arch, start_arch
from metalearn.nas.spaces import SpaceChoice
from metalearn.nas.spaces.conv4_micro import Conv4Micro
from metalearn.nas.spaces.space import Space, softmax_masks
from metalearn.rng import fold_in
from metalearn.scopes.running_statistics import training_scope
from metalearn.tree import detach, norm, partition, scale, sub
from metalearn.types import (
    Batch,
    Episode,
    EpisodeSpec,
    Grads,
    Key,
    Learned,
    Learner,
    Ledger,
    Meta,
    MetaState,
    Method,
    Metrics,
    NullLedger,
    Params,
    Path,
    State,
    Traits,
    UpdateRule,
    Updates,
)

ARCH = "arch."  # prefix of the architecture's leaves when `adapt` gets them with the weights
Gate = Callable[[int], Any]  # inner step -> 1 if the architecture is updated, 0 if it is fixed
# (initial w and a, support, steps, points, temperature, gate) -> path of one task
LearnTask = Callable[[Params, Batch, int, Sequence[int], float | Tensor, Gate], Path]


class MetaNAS(MethodComponent):
    """Learn weights of a supernet and a mixture of its operations that adapt in a few steps.

    For weights w and architecture a of a task, S steps of Adam (beta1 = 0) lower the loss of w on
    one half of the support set, and that of a on the other half; then Reptile: theta <- theta - eps
    * mean over tasks of (theta - phi), over both. A new task moves both, a in its first
    `arch_steps` steps alone, and keeps its mixture, by then nearly one operation at each place:
    nothing is trained again. Departures: w and a move together from the point before the step,
    where the authors move a first; the state of Adam begins anew with each task; nothing is
    pruned.

    >>> source = ml.tasks.Sinusoid(shots=5).build()
    >>> learner = ml.models.MLP(sizes=(16,)).build(source.spec)
    >>> method = ml.nas.MetaNAS(space=ml.nas.MLPReg()).build(learner, source.spec)
    >>> method.traits.phases
    ('adapt', 'predict')
    """

    family: ClassVar[str] = "search"
    can_be_contained: ClassVar[bool] = False

    name: Literal["meta_nas"] = option("meta_nas", "The method.")
    space: SpaceChoice = option(
        Conv4Micro(), "Search space whose supernet is learned.", acts="train"
    )
    inner_steps: int = option(5, "S, inner steps in meta-training.", acts="train", ge=1, le=1000)
    inner_lr: float = option(0.005, "Step size of the weights, in training and on new tasks.", gt=0)
    arch_lr: float = option(
        0.005, "Step size of the architecture, in training and on new tasks.", gt=0
    )
    arch_steps: int = option(
        5,
        "Number of first steps on a new task that also update the architecture.",
        acts="adapt",
        ge=0,
    )
    split: Literal["disjoint", "shared"] = option(
        "disjoint",
        "Data for the architecture: the other half of the support set, or (as published) the "
        "data for the weights.",
    )
    temperature: float = option(
        1.0, "Temperature of the mixture at the start of meta-training.", acts="train", gt=0
    )
    last_temperature: float = option(
        0.05, "Temperature at the end of meta-training, and on new tasks.", gt=0
    )
    warm_up: float = option(
        0.5,
        "Fraction of meta-training before the architecture is updated.",
        acts="train",
        ge=0,
        le=1,
    )
    arch_rate: float = option(
        0.6, "Multiplier of the outer step for the architecture.", acts="train", ge=0
    )
    outer: Rule = option(SGD(lr=1.0), "Outer optimizer, applied to theta - phi.", acts="train")

    def build(self, learner: Learner, spec: EpisodeSpec, meta_steps: int | None = None) -> Method:
        """The method for tasks of `spec`, normalised as `learner`; warm-up is of `meta_steps`."""
        require_no_padding(self.name, spec)
        if self.split == "disjoint" and spec.shots < 2:
            text = "disjoint needs at least 2 shots per class (got 1): use split: shared"
            raise ConfigError(("method.split", text))
        policy: Any = learner.normalisation
        space, outer = self.space.build(spec, policy), self.outer.build(meta_steps)
        task_grad, update = self._task_grad(space, meta_steps), make_update(outer)
        fit = self._adapt_one(space)

        def init(key: Key) -> MetaState:
            arch = start_arch(space, fold_in(key, "arch"))
            return init_state({"params": space.supernet.init(key), "arch": arch}, outer)

        traits = Traits(
            consumes="episodes",
            transductive=policy == "query_batch",
            normalisation=policy,
            fixed_ways=True,
        )
        return Method(
            spec=spec,
            traits=traits,
            init=init,
            learn=self._learn(space),
            adapt=lambda meta, support, step, key: fit((step,))(meta, support)[0][-1],
            predict=self._predict_one(space),
            task_grad=task_grad,
            update=update,
            step=make_step_over_tasks(task_grad, update, spec),
        )

    def _learn_task(self, space: Space) -> LearnTask:
        shared, loss_fn = self.split == "shared", criterion(space.spec)
        rule = two_rules(adam(self.inner_lr, beta1=0.0), adam(self.arch_lr, beta1=0.0))

        def loss_on(params: Params, batch: Batch, context: Tensor | None = None) -> Tensor:
            return loss_fn(space.supernet.apply(params, batch.x, context=context), batch.y)

        def run(
            start: Params,
            support: Batch,
            steps: int,
            keep: Sequence[int],
            temperature: float | Tensor,
            gate: Gate,
        ) -> Path:
            train, held_out = (support, support) if shared else halves(space.spec, support)

            def loss(joint: Params, batch: Batch, step: int) -> Tensor:
                arch, weights = split_arch(joint)
                gated = {
                    name: gate(step) * value + (1 - gate(step)) * value.detach()
                    for name, value in arch.items()
                }
                masks = softmax_masks(gated, temperature)
                if shared:  # one loss for both gradients
                    return loss_on({**weights, **masks}, batch)
                weight_loss = loss_on({**weights, **detach(masks)}, batch)
                arch_params = {**detach(weights), **masks}
                return weight_loss + loss_on(arch_params, held_out, context=batch.x)

            return adapt(loss, start, rule, train, steps, keep=keep)

        return run

    def _task_grad(
        self, space: Space, meta_steps: int | None
    ) -> Callable[[Meta, Episode], tuple[Grads, Metrics]]:
        run, steps, total = self._learn_task(space), self.inner_steps, meta_steps or 1
        first = self.warm_up * total if meta_steps else 0.0
        factor = 1.0 if self.split == "shared" else 0.5  # the loss of two halves is a sum of means

        def task_grad(meta: Meta, episode: Episode) -> tuple[Grads, Metrics]:
            require_no_padding(self.name, space.spec, episode.support)
            step = episode.info["step"]
            past = (step / total).clamp(max=1)
            heat = self.temperature + (self.last_temperature - self.temperature) * past
            active = (step >= first).to(heat.dtype)
            with training_scope():
                path = run(
                    join_arch(meta), episode.support, steps, (steps,), heat, lambda _: active
                )
            arch, weights = split_arch(path.points[-1])
            grads = {
                "params": sub(meta["params"], weights),
                "arch": scale(sub(meta["arch"], arch), self.arch_rate),
            }
            params = {**meta["params"], **softmax_masks(meta["arch"], heat)}
            add_stats_delta(grads, stats_delta_of_pass(space.supernet, params, episode.support))
            return grads, {"support_loss": factor * path.losses.mean().detach()}

        return task_grad

    def _learn(self, space: Space) -> Callable[..., Learned]:
        def learn(
            meta: Meta,
            support: Batch,
            query_x: Tensor,
            steps: int | Sequence[int],
            key: Key | None = None,
            ledger: Ledger | None = None,
        ) -> Learned:
            require_no_padding(self.name, space.spec, support)
            check_shots(space.spec, support)
            points, tasks = as_step_indices(steps), task_keys(key, support.x.shape[0]).shape[0]
            ledger = NullLedger() if ledger is None else ledger
            train = OverTasks(self._adapt_one(space), points, meta)
            counts = {"gradient_steps": points[-1] * tasks, "tasks": tasks}
            adapted, arch_distance, genotype = ledger.run("adapt", train, support, **counts)
            predict = self._predict_one(space)

            def answer(meta: Meta, points: list[Params], support: Batch, query_x: Tensor) -> Tensor:
                return torch.stack([predict(meta, joint, support, query_x) for joint in points])

            answers = OverTasks(lambda _: answer, (0,), meta)
            outputs = ledger.run("predict", answers, adapted, support, query_x, tasks=tasks)
            return Learned(outputs, {"arch_moved": arch_distance, "genotype": genotype})

        return learn

    def _adapt_one(self, space: Space) -> Callable[[tuple[int, ...]], Callable[..., Any]]:
        """Return points -> (meta, support) -> (w and a at the points, |a - meta a|, choices)."""
        run, temperature = self._learn_task(space), self.last_temperature

        def gate(step: int) -> float:
            return 1.0 if step < self.arch_steps else 0.0

        def adapt_to(points: tuple[int, ...]) -> Callable[..., Any]:
            def adapt_one(meta: Meta, support: Batch) -> tuple[list[Params], Tensor, Tensor]:
                path = run(join_arch(meta), support, points[-1], points, temperature, gate)
                arch = split_arch(path.points[-1])[0]
                strongest = torch.stack([arch[place.name].argmax() for place in space.places])
                return path.points, norm(sub(arch, meta["arch"])), strongest

            return adapt_one

        return adapt_to

    def _predict_one(self, space: Space) -> Callable[..., Tensor]:
        """Return (meta, w and a, support, query_x [M, *X]) -> [M, C]."""

        def predict(meta: Meta, adapted: Params, support: Batch, query_x: Tensor) -> Tensor:
            del meta
            arch, weights = split_arch(adapted)
            params = {**weights, **softmax_masks(arch, self.last_temperature)}
            return space.supernet.apply(params, query_x, context=support.x)

        return predict


def join_arch(meta: Meta) -> Params:
    """Return weights and architecture in one flat dict."""
    return {**meta["params"], **{ARCH + name: value for name, value in meta["arch"].items()}}


def split_arch(joint: Params) -> tuple[Arch, Params]:
    """Return (architecture, weights) of a dict of `join_arch`."""
    arch, weights = partition(joint, lambda name: name.startswith(ARCH))
    return {name.removeprefix(ARCH): value for name, value in arch.items()}, weights


def two_rules(weights: UpdateRule, arch: UpdateRule) -> UpdateRule:
    """Return a rule that applies `weights` to the weights and `arch` to the architecture."""

    def split(tree: Any) -> tuple[Any, Any]:
        return partition(tree, lambda name: not name.startswith(ARCH))

    def init(params: Any) -> State:
        weight_params, arch_params = split(params)
        return {"weights": weights.init(weight_params), "arch": arch.init(arch_params)}

    def update(grads: Grads, state: State, params: Any, loss: Tensor) -> tuple[Updates, State]:
        (g, h), (p, q) = split(grads), split(params)
        weight_updates, first = weights.update(g, state["weights"], p, loss)
        arch_updates, second = arch.update(h, state["arch"], q, loss)
        return {**weight_updates, **arch_updates}, {"weights": first, "arch": second}

    return UpdateRule(init, update)
