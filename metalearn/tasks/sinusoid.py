"""Sinusoid regression (Finn, Abbeel & Levine 2017, section 5.1) and its variants."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
from pydantic import model_validator
from torch import Tensor

from metalearn import rng
from metalearn.component import TaskComponent, option
from metalearn.errors import ConfigError
from metalearn.types import Batch, Episode, EpisodeSpec, Key

Range = tuple[float, float]


class SinusoidSource:
    """y = amplitude * sin(frequency * x - phase) + noise; every draw of task t comes from (key,
    start + t).
    """

    data_sha256 = ""

    def __init__(self, options: Sinusoid, spec: EpisodeSpec) -> None:
        self.spec = spec
        self._options = options

    def sample(self, key: Key, num_tasks: int, start: int = 0) -> Episode:
        """support.x [T, K, 1], support.y [T, K, 1], query [T, Q, 1]; info: key, step and the wave
        [T].
        """
        spec = self.spec
        index = torch.arange(start, start + num_tasks, device=spec.device)
        keys = rng.fold_in(key.to(spec.device), spec.split, index)
        x, y, drawn = self._points(keys, spec.shots + spec.queries)
        info = {"key": keys, "step": torch.zeros_like(drawn[:, 0])}
        info |= dict(zip(("amplitude", "phase", "frequency"), drawn.unbind(-1), strict=True))
        split = spec.shots
        return Episode(Batch(x[:, :split], y[:, :split]), Batch(x[:, split:], y[:, split:]), info)

    def examples(self, key: Key, size: int) -> Batch:
        """One point of each of `size` fresh tasks: x [B, 1], y [B, 1]."""
        keys = rng.fold_in(
            key.to(self.spec.device), self.spec.split, torch.arange(size, device=self.spec.device)
        )
        x, y, _ = self._points(keys, 1)
        return Batch(x[:, 0], y[:, 0])

    def _points(self, keys: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """x, y [T, count, 1] and amplitude, phase, frequency [T, 3]."""
        options, spec = self._options, self.spec
        u = rng.uniform(keys, (3 + count,), dtype=spec.dtype)
        low, high = (
            torch.tensor(
                [r[end] for r in (options.amplitude, options.phase, options.frequency)],
                dtype=spec.dtype,
            )
            for end in (0, 1)
        )
        drawn = low.to(spec.device) + (high - low).to(spec.device) * u[:, :3]
        amplitude, phase, frequency = (column.unsqueeze(-1) for column in drawn.unbind(-1))
        x = options.x[0] + (options.x[1] - options.x[0]) * u[:, 3:]
        y = amplitude * torch.sin(frequency * x - phase)
        if options.noise:
            y = y + options.noise * rng.normal(
                rng.fold_in(keys, "noise"), (count,), dtype=spec.dtype
            )
        return x.unsqueeze(-1), y.unsqueeze(-1), drawn


class Sinusoid(TaskComponent):
    """Regression on sine waves of random amplitude and phase; frequency, noise and ranges as
    options.
    """

    default_model: ClassVar[str] = "mlp"

    source: Literal["sinusoid"] = option("sinusoid", "the task source")
    ways: Literal[1] = option(1, "always 1: regression has no classes")
    shots: int = option(10, "K, points of the support set", ge=1, le=100_000)
    queries: int = option(10, "points of the query set", ge=0, le=100_000)
    amplitude: Range = option((0.1, 5.0), "range of the amplitude")
    phase: Range = option(
        (0.0, math.pi), "range of the phase, radians; Reptile's variant is [0, 2 pi]"
    )
    frequency: Range = option(
        (1.0, 1.0), "range of the frequency, radians a unit of x; Meta-SGD's variant varies it"
    )
    x: Range = option((-5.0, 5.0), "range of the inputs")
    noise: float = option(0.0, "deviation of normal noise on y", ge=0)

    @model_validator(mode="after")
    def _ranges_ascend(self) -> Sinusoid:
        bad = [
            n
            for n in ("amplitude", "phase", "frequency", "x")
            if getattr(self, n)[0] > getattr(self, n)[1]
        ]
        if bad:
            raise ValueError(f"{', '.join(bad)}: a range is [low, high] with low <= high")
        return self

    def build(
        self,
        split: str = "train",
        seed: int = 0,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> SinusoidSource:
        """A source; splits have the same distribution and different waves, `seed` changes nothing
        here.
        """
        del seed
        if split not in ("train", "valid", "test"):
            raise ConfigError(("split", f"{split!r} should be train, valid or test"))
        spec = EpisodeSpec(
            kind="regression",
            ways=1,
            shots=self.shots,
            queries=self.queries,
            x_shape=(1,),
            outputs=1,
            num_classes=0,
            split=split,
            dtype=dtype,
            device=device,
        )
        return SinusoidSource(self, spec)
