"""MetaNAS (Elsken, Staffler, Metzen & Hutter 2020, arXiv:1911.11090): Reptile over weights and
architecture.
"""

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
    init_state,
    outer_update,
    points_of,
    step_over_tasks,
    task_keys,
)
from metalearn.inner.rules import SGD, Rule, adam
from metalearn.losses import criterion
from metalearn.nas.conv4_micro import Conv4Micro
from metalearn.nas.darts import Arch, start_arch
from metalearn.nas.fit import check_shots, halves
from metalearn.nas.space import Space, softened
from metalearn.nas.tables import SpaceChoice
from metalearn.rng import fold_in
from metalearn.tree import STATS, detach, norm, partition, scale, sub
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
    State,
    Traits,
    UpdateRule,
    Updates,
)

# prefix of the architecture's leaves where they travel with the weights through `adapt`
ARCH = "arch."


class MetaNAS(MethodComponent):
    """Learn weights of a supernet and a mixture of its operations that a few steps fit to a new
    task.

    (w, a) of a task: S steps of Adam (beta1 = 0), w downhill in the loss of one half of the support
    set, a in that of the other; then Reptile: theta <- theta - eps * mean over tasks of (theta -
    phi), over both. A new task moves both, a in its first `arch_steps` steps alone, and keeps its
    mixture, nearly one operation a place by then: nothing is trained again. Departures: w and a
    move together from the point before the step, where the authors move a first; the slots of Adam
    begin anew with each task; nothing is pruned."""

    can_be_contained: ClassVar[bool] = False

    family: ClassVar[str] = "search"
    name: Literal["meta_nas"] = option("meta_nas", "the method")
    space: SpaceChoice = option(Conv4Micro(), "whose supernet is learned", acts="train")
    inner_steps: int = option(
        5, "S, steps on a task during meta-training", acts="train", ge=1, le=1000
    )
    inner_lr: float = option(0.005, "step size of the weights, in training and on new tasks", gt=0)
    arch_lr: float = option(
        0.005, "step size of the architecture, in training and on new tasks", gt=0
    )
    arch_steps: int = option(
        5, "first steps on a new task in which the architecture moves", acts="adapt", ge=0
    )
    split: Literal["disjoint", "shared"] = option(
        "disjoint",
        "data of the architecture: the other half of the support set, or (as published) that "
        "of the weights",
    )
    temperature: float = option(1.0, "of the mixture when meta-training begins", acts="train", gt=0)
    last_temperature: float = option(
        0.05, "of the mixture at the end of meta-training, and on new tasks", gt=0
    )
    warm_up: float = option(
        0.5, "share of meta-training before the architecture moves", acts="train", ge=0, le=1
    )
    arch_rate: float = option(
        0.6, "share of the outer step that the architecture takes", acts="train", ge=0
    )
    outer: Rule = option(SGD(lr=1.0), "rule of the meta-update, on theta - phi", acts="train")

    def build(self, learner: Learner, spec: EpisodeSpec, meta_steps: int | None = None) -> Method:
        """The method for tasks of `spec`, normalised as `learner` is; `meta_steps` is what warm-up
        is a share of.
        """
        if self.split == "disjoint" and spec.shots < 2:
            text = "disjoint needs at least 2 shots a class, this task has 1: use split shared"
            raise ConfigError(("method.split", text))
        policy: Any = learner.normalisation
        space = self.space.build(spec, policy)
        outer = self.outer.build(meta_steps)
        task_grad, update = self._task_grad(space, meta_steps), outer_update(outer)

        def init(key: Key) -> MetaState:
            meta = {
                "params": space.supernet.init(key),
                "arch": start_arch(space, fold_in(key, "arch")),
            }
            return init_state(meta, outer)

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
            task_grad=task_grad,
            update=update,
            step=step_over_tasks(task_grad, update),
        )

    def _learn_task(self, space: Space) -> Callable[..., Any]:
        """(start of w and a, support, steps, points, temperature, gate of each step) -> Path of one
        task.
        """
        shared, spec, loss_of = self.split == "shared", space.spec, criterion(space.spec)
        rule = two_rules(adam(self.inner_lr, beta1=0.0), adam(self.arch_lr, beta1=0.0))

        def said(
            weights: Params, masks: Params, batch: Batch, context: Tensor | None = None
        ) -> Tensor:
            return loss_of(
                space.supernet.apply({**weights, **masks}, batch.x, context=context), batch.y
            )

        def run(
            start: Params,
            support: Batch,
            steps: int,
            keep: Sequence[int],
            heat: float | Tensor,
            gate: Gate,
        ) -> Any:
            train, held = (support, support) if shared else halves(spec, support)

            def loss(joint: Params, batch: Batch, step: int) -> Tensor:
                arch, weights = apart(joint)
                gated = {
                    name: gate(step) * value + (1 - gate(step)) * value.detach()
                    for name, value in arch.items()
                }
                masks = softened(gated, heat)
                if shared:  # one loss has both slopes
                    return said(weights, masks, batch)
                for_weights = said(weights, detach(masks), batch)
                return for_weights + said(detach(weights), masks, held, context=batch.x)

            return adapt(loss, start, rule, train, steps, keep=keep)

        return run

    def _task_grad(
        self, space: Space, meta_steps: int | None
    ) -> Callable[[Meta, Episode], tuple[Grads, Metrics]]:
        run, steps, total = self._learn_task(space), self.inner_steps, meta_steps or 1
        first = self.warm_up * total if meta_steps else 0.0

        def task_grad(meta: Meta, episode: Episode) -> tuple[Grads, Metrics]:
            done = episode.info["step"]
            past = (done / total).clamp(max=1)
            heat = self.temperature + (self.last_temperature - self.temperature) * past
            open_ = (done >= first).to(heat.dtype)
            path = run(together(meta), episode.support, steps, (steps,), heat, lambda step: open_)
            arch, weights = apart(path.points[-1])
            grads = {
                "params": sub(meta["params"], weights),
                "arch": scale(sub(meta["arch"], arch), self.arch_rate),
            }
            grads["params"].update(refresh(space, meta, heat, episode.support.x))
            share = (
                1.0 if self.split == "shared" else 0.5
            )  # the loss of two halves is the sum of two means
            return grads, {"support_loss": share * path.losses.mean().detach()}

        return task_grad

    def _learn(self, space: Space) -> Callable[..., Learned]:
        run = self._learn_task(space)

        def gate(step: int) -> float:
            return 1.0 if step < self.arch_steps else 0.0

        def learn(
            meta: Meta,
            support: Batch,
            query_x: Tensor,
            steps: int | Sequence[int],
            key: Key | None = None,
            ledger: Ledger | None = None,
        ) -> Learned:
            check_shots(space.spec, support)
            points, tasks = points_of(steps), task_keys(key, support.x.shape[0]).shape[0]
            book = NullLedger() if ledger is None else ledger

            def to(points: tuple[int, ...]) -> Callable[..., Any]:
                def one(meta: Meta, support: Batch) -> tuple[list[Params], Tensor, Tensor]:
                    path = run(
                        together(meta), support, points[-1], points, self.last_temperature, gate
                    )
                    arch = apart(path.points[-1])[0]
                    return path.points, norm(sub(arch, meta["arch"])), strongest(space, arch)

                return one

            def answer(meta: Meta, items: list[Params], support: Batch, query_x: Tensor) -> Tensor:
                return torch.stack([self._say(space, joint, support, query_x) for joint in items])

            spent = {"gradient_steps": points[-1] * tasks, "tasks": tasks}
            items, moved, genotype = book.run(
                "adapt", OverTasks(to, points, meta), support, **spent
            )
            predictions = book.run(
                "predict",
                OverTasks(lambda _: answer, (0,), meta),
                items,
                support,
                query_x,
                tasks=tasks,
            )
            return Learned(predictions, {"arch_moved": moved, "genotype": genotype})

        return learn

    def _say(self, space: Space, joint: Params, support: Batch, query_x: Tensor) -> Tensor:
        arch, weights = apart(joint)
        masks = softened(arch, self.last_temperature)
        return space.supernet.apply({**weights, **masks}, query_x, context=support.x)


Gate = Callable[[int], Any]  # inner step -> 1 where the architecture moves, 0 where it stands


def together(meta: Meta) -> Params:
    """Weights and architecture in one flat dict."""
    return {**meta["params"], **{ARCH + name: value for name, value in meta["arch"].items()}}


def apart(joint: Params) -> tuple[Arch, Params]:
    """(architecture, weights)."""
    arch, weights = partition(joint, lambda name: name.startswith(ARCH))
    return {name.removeprefix(ARCH): value for name, value in arch.items()}, weights


def strongest(space: Space, arch: Arch) -> Tensor:
    """The strongest word of every place: [places] int64."""
    return torch.stack([arch[place.name].argmax() for place in space.places])


def refresh(space: Space, meta: Meta, heat: float | Tensor, x: Tensor) -> Params:
    """Old minus refreshed running statistics, as `stats_gradient` has them; nothing where there are
    none.
    """
    if space.supernet.normalisation != "running":
        return {}
    new = space.supernet.stats({**meta["params"], **softened(meta["arch"], heat)}, x)
    return {
        name: value - new[name] for name, value in meta["params"].items() if name.startswith(STATS)
    }


def two_rules(weights: UpdateRule, arch: UpdateRule) -> UpdateRule:
    """One rule for the weights, another for the architecture's leaves."""

    def split(tree: Any) -> tuple[Any, Any]:
        return partition(tree, lambda name: not name.startswith(ARCH))

    def init(params: Any) -> State:
        one, other = split(params)
        return {"weights": weights.init(one), "arch": arch.init(other)}

    def update(grads: Grads, state: State, params: Any, loss: Tensor) -> tuple[Updates, State]:
        (g, h), (p, q) = split(grads), split(params)
        one, first = weights.update(g, state["weights"], p, loss)
        other, second = arch.update(h, state["arch"], q, loss)
        return {**one, **other}, {"weights": first, "arch": second}

    return UpdateRule(init, update)
