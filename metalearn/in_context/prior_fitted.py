"""Prior-fitted networks (Mueller et al. 2022, arXiv:2112.10510; Hollmann et al. 2023)."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from metalearn import rng
from metalearn.component import option
from metalearn.in_context.caml import CAML, class_codes
from metalearn.in_context.component import Sizes
from metalearn.in_context.layers import mlp, mlp_start
from metalearn.padding import class_mask_of, standardise
from metalearn.types import Batch, EpisodeSpec, Key, Learner, Method, Params

LEAST = -30.0  # log p of a class by discriminant analysis
ABSENT = -1e4  # score of a class without support rows


class PriorFitted(CAML):
    """A transformer over table rows, meta-trained on a prior over tables (a small TabPFN).

    minimise over theta the mean over tables of the prior of -log q_theta(y | x, support), whose
    minimum is the posterior predictive distribution of that prior (Mueller et al. 2022, arXiv:
    2112.10510, equation 2 and corollary 1.1); Hollmann et al. 2023, arXiv:2207.01848, for tables.
    Columns are standardised by the support set, clipped at 5 standard deviations, and multiplied by
    sqrt(F / f), f of the F columns varying there: columns of zeros pad. Rows of the support set
    attend to each other, those of queries to the support set alone. A new table takes no gradient
    step. Invariant to the order of the support set; permuted classes give permuted outputs.

    >>> source = ml.tasks.Tables(ways=3, shots=5).build()
    >>> learner = ml.models.MLP(sizes=()).build(source.spec)
    >>> method = ml.in_context.PriorFitted(width=16).build(learner, source.spec)
    >>> method.traits.phases
    ('adapt', 'predict')
    """

    # Departures from TabPFN: class codes of `caml`, so that classes need no permuted copies of a
    # table at test; no ensemble; queries and keys of a block begin as the same map, so that rows
    # attend to similar rows from the first step on. A query's code begins as that of the posterior
    # of a regularised discriminant analysis in closed form, whose log p is added to the logits:
    # the network learns what differs from it.
    name: Literal["prior_fitted"] = option(  # type: ignore[assignment]
        "prior_fitted", "The method."
    )
    layers: int = option(3, "Number of blocks of attention and MLP.", acts="train", ge=1, le=64)

    def build(self, learner: Learner, spec: EpisodeSpec, meta_steps: int | None = None) -> Method:
        return super().build(_on_standardised(learner), spec, meta_steps)

    def start(self, key: Key, sizes: Sizes, dtype: torch.dtype) -> Params:
        params = super().start(key, sizes, dtype)
        for layer in range(self.layers):
            query = params[f"layers.{layer}.query.weight"]
            params |= {f"layers.{layer}.{part}.weight": 2 * query for part in ("query", "key")}
        params["strength"] = torch.tensor([-1.0, 0.5], dtype=dtype)
        params["share"] = torch.tensor(0.5, dtype=dtype)
        params["scale"] = torch.tensor(2.0, dtype=dtype)
        return params

    def token_start(self, key: Key, features: int, dtype: torch.dtype) -> Params:
        sizes = (features, 2 * self.width, self.width)
        params = mlp_start(rng.fold_in(key, "mlp"), "token", sizes, dtype)
        # Bends within 1.5 standard deviations of a column: normalised tokens keep a row's position.
        bends = rng.uniform(rng.fold_in(key, "bends"), (2 * self.width,), -1.5, 1.5, dtype)
        return params | {"token.0.bias": bends}

    def token(self, params: Params, z: Tensor) -> Tensor:
        return mlp(params, "token", z)

    def read(self, params: Params, z: Tensor, labels: Tensor, support: Batch) -> Any:
        return [
            super().read(params, z, labels, support),
            discriminant(params["strength"], z, labels, support.weight),
        ]

    def answer(self, params: Params, memory: Any, z: Tensor, support: Batch) -> Tensor:
        blocks, (weight, bias) = memory
        logs: Tensor = (params["share"] * (z @ weight + bias)).log_softmax(-1)
        codes = class_codes(logs.exp(), class_mask_of(support, logs.shape[-1]))
        return logs.clamp(min=LEAST) + self.answer_from(params, blocks, z, codes, support)


def discriminant(
    strength: Tensor, z: Tensor, labels: Tensor, weight: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return (A [F, N], b [N]) of the scores z A + b of regularised discriminant analysis.

    score_n = m_n' S^-1 z - m_n' S^-1 m_n / 2 with the class means m_n, S the covariance within
    classes plus exp(s_0 + s_1 log(f / B)) on its diagonal (Friedman 1989, J. Am. Stat. Assoc. 84,
    equations 8 and 18), on f varying columns of unit scale. z [B, F], labels one-hot [B, N]."""
    weight = torch.ones_like(z[:, 0]) if weight is None else weight
    varying = (z.square().sum(0) > 0).sum().clamp(min=1).to(z.dtype)
    unit = (varying / z.shape[-1]).sqrt()
    z, member = unit * z, weight.unsqueeze(-1) * labels
    counts = member.sum(0)
    means = member.T @ z / counts.clamp(min=1e-6).unsqueeze(-1)  # [N, F]
    centred = z - labels @ means
    covariance = (weight.unsqueeze(-1) * centred).T @ centred / weight.sum()
    ridge = (strength[0] + strength[1] * (varying / weight.sum()).log()).exp()
    eye = torch.eye(z.shape[-1], dtype=z.dtype, device=z.device)
    projection: Tensor = torch.linalg.solve(covariance + ridge * eye, means.T)  # [F, N]
    offset = -(means.T * projection).sum(0) / 2
    return unit * projection, torch.where(counts > 0, offset, torch.full_like(offset, ABSENT))


def _on_standardised(learner: Learner) -> Learner:
    """Return the learner with features of standardised columns."""

    def columns(x: Tensor, context: Tensor | None) -> Tensor:
        z, varies = standardise(x, context)
        count = varies.sum().clamp(min=1).to(z.dtype)
        return (z * (z.shape[-1] / count).sqrt()).reshape(x.shape)

    def features(params: Params, x: Tensor, context: Tensor | None = None) -> Tensor:
        base = None if context is None else columns(context, context)
        z: Tensor = learner.features(params, columns(x, context), context=base)
        return z

    return learner._replace(features=features)
