"""Workloads as numbers, without torch, so that an unknown name fails at once."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from metalearn.errors import ConfigError, did_you_mean

Family = Literal[
    "maml", "anil", "imaml", "proto_net", "r2d2", "in_context", "sampling", "l2o", "validation"
]


@dataclass(frozen=True)
class Workload:
    """One meta-step: sample `tasks` tasks, their meta-gradient, one Adam step on the parameters."""

    name: str
    tasks: int  # T
    family: Family = "maml"
    model: Literal["mlp", "conv4", "resnet12"] = "conv4"
    ways: int = 5  # N; 1 for regression
    shots: int = 1  # K
    queries: int = 1  # Q
    x_shape: tuple[int, ...] = (1, 28, 28)
    filters: int = 64
    downsample: Literal["pool", "stride"] = "pool"
    flatten: bool = False
    norm: bool = True  # whether the current batch normalises each block of conv4
    inner_steps: int = 1  # S
    inner_lr: float = 0.4
    first_order: bool = False
    threads: int | None = None  # None: every core

    @property
    def regression(self) -> bool:
        return self.model == "mlp"

    @property
    def outputs(self) -> int:
        return self.ways

    def with_tasks(self, tasks: int) -> Workload:
        return replace(self, tasks=tasks)

    def sentence(self) -> str:
        """Describe the workload in one line."""
        if self.family == "sampling":
            return (
                f"{self.ways}-way {self.shots}-shot episodes with {self.queries} queries a "
                f"class, {self._images()}"
            )
        if self.family == "validation":
            steps = f"{self.inner_steps} step{'s' if self.inner_steps > 1 else ''} of MAML each"
            return f"a look at {self.tasks} validation tasks, {steps}, {self._conv4()}"
        if self.family == "l2o":
            problem = (
                "10-d quadratics" if self.name == "l2o_quadratics" else "MLP 64-20-10 on 50 digits"
            )
            return (
                f"learned optimizer, LSTM 2 x 20, {problem}, back-propagation through "
                f"{self.inner_steps} inner steps"
            )
        resnet12 = f"ResNet-12, {self._images()}"
        models = {"mlp": "MLP 40-40", "resnet12": resnet12, "conv4": self._conv4()}
        model = models[self.model]
        shape = f"{self.shots} + {self.queries} points" if self.regression else self._ways()
        if self.family in ("proto_net", "r2d2"):
            return f"{'R2-D2' if self.family == 'r2d2' else 'ProtoNet'}, {model}, {shape}"
        if self.family == "in_context":
            return f"transformer neural process, 3 blocks of width 64 on {model}, {shape}"
        order = "first order" if self.first_order else "second order"
        steps = f"{self.inner_steps} inner step{'s' if self.inner_steps > 1 else ''}"
        if self.family == "imaml":
            return f"iMAML, {model}, {shape}, {steps}, 5 conjugate gradients"
        return f"{self.family.upper()}, {model}, {shape}, {steps}, {order}"

    def _conv4(self) -> str:
        return f"Conv4-{self.filters}, {self._halving()}{self._norm()}, {self._images()}"

    def _ways(self) -> str:
        return (
            f"{self.ways}-way {self.shots}-shot, {self.queries} "
            f"quer{'ies' if self.queries > 1 else 'y'} a class"
        )

    def _halving(self) -> str:
        return "strided" if self.downsample == "stride" else "pooled"

    def _norm(self) -> str:
        return "" if self.norm else ", without normalisation"

    def _images(self) -> str:
        return "x".join(map(str, self.x_shape))


# MLPs have one thread: their matrices are too small to split, and a second one only costs time.
_MLP = Workload("", 25, model="mlp", ways=1, shots=10, queries=10, inner_lr=0.01, threads=1)
_SINUSOID = replace(_MLP, name="sinusoid_1step", x_shape=(1,))
_L2O = replace(_MLP, family="l2o", inner_steps=100)
# MAML's setting on colour images
_COLOUR = Workload("", 4, queries=15, filters=32, flatten=True, inner_steps=5, inner_lr=0.01)
_IN_CONTEXT = Workload("in_context_omniglot", 16, family="in_context", queries=5, inner_steps=0)

_TABLE = (
    _SINUSOID,
    replace(_SINUSOID, name="sinusoid_5steps", inner_steps=5),
    Workload("conv4_pool_5w1s_q1", 32),
    Workload("conv4_pool_5w1s_q5", 16, queries=5),
    Workload("conv4_pool_5w1s_q15", 8, queries=15),
    Workload("conv4_stride_5w1s_q1", 32, downsample="stride"),
    Workload("conv4_stride_5w1s_q5", 16, queries=5, downsample="stride"),
    Workload("conv4_stride_5w1s_q15", 8, queries=15, downsample="stride"),
    # at 0.1 float32 is off by 2 % in every package
    Workload("conv4_pool_20w1s", 16, ways=20, inner_steps=5, inner_lr=0.02),
    replace(_COLOUR, name="conv4_84_5w5s", shots=5, x_shape=(3, 84, 84)),
    replace(_COLOUR, name="conv4_cifar_5w1s", x_shape=(3, 32, 32)),
    Workload(
        "resnet12_84_5w1s", 2, model="resnet12", queries=15, x_shape=(3, 84, 84), inner_lr=0.01
    ),
    Workload("anil_5w1s", 32, family="anil", queries=5, inner_steps=5, inner_lr=0.1),
    Workload("first_order_5w1s", 32, first_order=True),
    Workload("imaml_5w1s", 8, family="imaml", downsample="stride", inner_steps=16, inner_lr=0.1),
    Workload("proto_net_5w1s", 16, family="proto_net", queries=5, inner_steps=0),
    Workload("r2d2_5w1s", 16, family="r2d2", queries=5, inner_steps=0),
    replace(_SINUSOID, name="in_context_sinusoid", family="in_context", inner_steps=0),
    replace(_IN_CONTEXT, downsample="stride", norm=False),
    Workload("sampling_5w1s", 32, family="sampling", queries=15, inner_steps=0),
    Workload("validation_5w1s", 100, family="validation", queries=15, downsample="stride"),
    replace(_L2O, name="l2o_quadratics", tasks=32, x_shape=(10,)),
    # Few tasks: back-propagation saves 0.3 GB per task for 100 steps on 1,510 parameters if
    # everything is saved.
    replace(_L2O, name="l2o_mlp", tasks=4, ways=10, shots=5, x_shape=(1, 8, 8)),
)

WORKLOADS: dict[str, Workload] = {workload.name: workload for workload in _TABLE}
# the workloads of the curve over tasks per batch
SCALING = ("sinusoid_1step", "conv4_stride_5w1s_q1")
# those whose memory in chunks is measured
IN_CHUNKS = ("conv4_stride_5w1s_q1", "conv4_pool_5w1s_q1")


def select_workloads(names: list[str]) -> list[Workload]:
    """Return the workloads with these names, each once; all if there are none.

    Raises ConfigError with every unknown name."""
    unknown = [
        (name, f"unknown workload; {did_you_mean(name, WORKLOADS)}")
        for name in names
        if name not in WORKLOADS
    ]
    if unknown:
        raise ConfigError(*unknown)
    return [WORKLOADS[name] for name in dict.fromkeys(names or WORKLOADS)]
