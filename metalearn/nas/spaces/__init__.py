"""Spaces of architectures by name, and the type of the fields that choose one."""

from __future__ import annotations

from typing import Annotated

from metalearn.component import OneOf
from metalearn.nas.spaces.conv4_micro import Conv4Micro
from metalearn.nas.spaces.conv4_size import Conv4Size
from metalearn.nas.spaces.mlp_reg import MLPReg
from metalearn.nas.spaces.nb201_conv4 import NB201Conv4
from metalearn.nas.spaces.space import SpaceComponent

SPACES: dict[str, type[SpaceComponent]] = {
    "conv4-micro": Conv4Micro,
    "nb201-conv4": NB201Conv4,
    "conv4-size": Conv4Size,
    "mlp-reg": MLPReg,
}
SpaceChoice = Annotated[
    Conv4Micro | NB201Conv4 | Conv4Size | MLPReg, OneOf(SPACES, SpaceComponent, "space")
]
