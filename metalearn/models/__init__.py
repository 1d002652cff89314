"""What learns: models as pure functions of their parameters."""

from metalearn.component import ModelComponent
from metalearn.models.conv4 import Conv4
from metalearn.models.external.from_module import from_module
from metalearn.models.mlp import MLP
from metalearn.models.module import Module
from metalearn.models.norm import Norm
from metalearn.models.own import Own
from metalearn.models.pretrained import Pretrained
from metalearn.models.resnet12 import ResNet12
from metalearn.models.sized_mlp import SizedMLP
from metalearn.models.standardised import Standardised
from metalearn.models.wide_resnet import WideResNet

MODELS: dict[str, type[ModelComponent]] = {
    "mlp": MLP,
    "conv4": Conv4,
    "resnet12": ResNet12,
    "torch_module": Module,
    "own": Own,
    "sized_mlp": SizedMLP,
    "pretrained": Pretrained,
    "standardised": Standardised,
    "wide_resnet": WideResNet,
}

__all__ = [
    "MLP",
    "MODELS",
    "Conv4",
    "Module",
    "Norm",
    "Own",
    "Pretrained",
    "ResNet12",
    "SizedMLP",
    "Standardised",
    "WideResNet",
    "from_module",
]
