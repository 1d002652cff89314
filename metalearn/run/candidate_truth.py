"""After the test: what every candidate of a per-task search was worth on queries, so that noise can
be told from merit.

The search has ended by then: its picks and its bill stand. This is measuring, and is billed as such
(`setup`)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from metalearn.config.experiment import Experiment
from metalearn.evaluate.curves import learn_keys
from metalearn.losses import accuracy, criterion
from metalearn.nas.fit import lanes_of
from metalearn.nas.per_task import PerTaskNAS, Winners
from metalearn.rng import fold_in
from metalearn.tree import take
from metalearn.types import Method, NullLedger, TaskSource

TASKS = 10  # test tasks whose candidates are all trained


def candidates_on_queries(
    experiment: Experiment, method: Method, source: TaskSource, notes: dict[str, torch.Tensor]
) -> dict[str, Any] | None:
    """Arrays of selection.npz for the first R test tasks; None where there was nothing to choose
    from.

    `score` [R, A] is what a candidate was chosen by, `truth` [R, A] minus its loss on the queries
    after training on the whole support set as the winner is, `accuracy` [R, A] that on the queries
    (NaN for regression), `pick` [R] which one was taken, `one_unit` [1] whether score and truth are
    both minus a loss of held-out examples."""
    options = experiment.method
    if not isinstance(options, PerTaskNAS) or notes["trial_genotype"].shape[1] < 2:
        return None
    evaluate, spec = experiment.evaluate, source.spec
    tasks = min(TASKS, evaluate.episodes)
    batch = source.sample(fold_in(evaluate.seed, "episodes"), tasks)
    keys = fold_in(learn_keys(batch.info["key"], experiment.run.seeds[0]), "retrain")
    policy: Any = method.traits.normalisation
    train = Winners(options.space.build(spec, policy), options.inner_rule())
    tried = notes["trial_genotype"][:tasks].tolist()
    loss, right = np.full((2, tasks, len(tried[0])), np.nan)
    for place in range(len(tried[0])):
        whole = [task for task in range(tasks) if tried[task][place][0] >= 0]
        chosen = [tuple(tried[task][place]) for task in whole]
        support, query = (take(part, whole) for part in (batch.support, batch.query))
        logits = train(chosen, support, query.x, (evaluate.steps[-1],), keys[whole], NullLedger())[
            :, 0
        ]
        loss[whole, place] = criterion(spec)(logits, query.y, lead=1).cpu()
        if spec.classification:
            right[whole, place] = accuracy(logits, query.y, lead=1).cpu()
    return _arrays(options, method, notes, tasks, loss, right)


def _arrays(
    options: PerTaskNAS,
    method: Method,
    notes: dict[str, torch.Tensor],
    tasks: int,
    loss: Any,
    right: Any,
) -> dict[str, Any] | None:
    score = notes["trial_score"][:tasks].cpu().numpy().astype(np.float64)
    share = notes["trial_share"][:tasks].cpu().numpy()
    # Of a halving search those that were trained fully: a score after fewer steps is of another
    # kind.
    kept = (share == np.nanmax(share)).all(0) & np.isfinite(loss).any(0)
    loss, right, score = loss[:, kept], right[:, kept], score[:, kept]
    if loss.shape[1] < 2:
        return None
    worst = np.nanmax(np.where(np.isfinite(loss), loss, np.nan))
    genotypes = notes["trial_genotype"][:tasks].cpu().numpy()[:, kept]
    same = (genotypes == notes["genotype"][:tasks].cpu().numpy()[:, None]).all(-1)
    holds = lanes_of(method.spec, options.folds, options.repeats)[1]
    return {
        "score": score,
        "truth": -np.where(
            np.isfinite(loss), loss, worst
        ),  # one that diverged is as bad as the worst
        "accuracy": right,
        "pick": np.where(same.any(1), same.argmax(1), -1).astype(np.float64)[:, None],
        "one_unit": np.full((tasks, 1), float(bool(holds))),
    }
