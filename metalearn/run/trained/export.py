"""The answers of an adapted task as a program that runs without this package."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from metalearn.errors import ConfigError
from metalearn.tree import detach, from_named, named_leaves
from metalearn.types import Batch

FORMATS = ".pt2 (torch.export), .pt (TorchScript) or .onnx"


class Answers(nn.Module):
    """x [M, *X] -> the outputs of one task, whose tensors are buffers."""

    def __init__(
        self, predict: Callable[..., Tensor], meta: Any, item: Any, support: Batch
    ) -> None:
        super().__init__()
        self._predict, self._like = predict, detach((meta, item, support))
        self._names = dict[str, str]()
        for number, (name, value) in enumerate(named_leaves(self._like).items()):
            self._names[name] = f"tensor_{number}"
            self.register_buffer(f"tensor_{number}", value.clone())

    def forward(self, x: Tensor) -> Tensor:
        named = {name: getattr(self, own) for name, own in self._names.items()}
        meta, item, support = from_named(self._like, named)
        return self._predict(meta, item, support, x)


def export(
    predict: Callable[..., Tensor], meta: Any, item: Any, support: Batch, path: Path
) -> Path:
    """Write `predict` of one task to `path`, in the format of its ending; the path.

    The program takes any number of inputs. Raises ConfigError for another ending, for a package
    that is missing, and for what torch cannot export, with its reason."""
    write = {".pt2": _exported, ".pt": _scripted, ".onnx": _onnx}.get(path.suffix)
    if write is None:
        raise ConfigError(("path", f"must end with {FORMATS} (got {path.suffix or 'no suffix'})"))
    module, x = Answers(predict, meta, item, support).eval(), support.x[:3].clone()
    x = x if len(x) > 1 else torch.cat([x, x])  # one example would be taken for a constant size
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch about its own formats
            write(module, x, part)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    return path


def _program(module: nn.Module, x: Tensor) -> Any:
    """The graph for any number of inputs, of torch's operators alone."""
    batch = torch.export.Dim("batch", min=1)
    try:
        program = torch.export.export(module, (x,), dynamic_shapes=({0: batch},))
    except Exception as error:
        text = f"torch.export cannot trace this network: {str(error).strip().splitlines()[0]}"
        raise ConfigError(("export", text)) from error
    foreign = {
        str(node.target)
        for node in program.graph.nodes
        if node.op == "call_function" and not str(node.target).startswith(("aten.", "<built-in"))
    }
    own = sorted(name for name in foreign if "metalearn" in name)
    if own:
        text = f"the network uses operators that exist only in this package: {', '.join(own)}"
        raise ConfigError(("export", text))
    return program


def _exported(module: nn.Module, x: Tensor, path: Path) -> None:
    torch.export.save(_program(module, x), path)


def _scripted(module: nn.Module, x: Tensor, path: Path) -> None:
    """By the exported program, as TorchScript traces no functional call of a module."""
    more = torch.cat([x, x, x[:1]])
    try:
        traced = torch.jit.trace(_program(module, x).module(), x)
        fixed = not torch.allclose(traced(more), module(more), rtol=1e-3, atol=1e-5)
    except Exception as error:
        text = f"cannot be traced as TorchScript: {str(error).strip().splitlines()[0]}: use .pt2"
        raise ConfigError(("export", text)) from error
    if fixed:
        text = "TorchScript would fix the number of inputs of this network: use .pt2"
        raise ConfigError(("export", text))
    torch.jit.save(traced, path)


def _onnx(module: nn.Module, x: Tensor, path: Path) -> None:
    try:
        import onnxscript  # noqa: F401
    except ImportError as error:
        text = "ONNX needs the packages onnx and onnxscript: pip install 'metalearn-lab[onnx]'"
        raise ConfigError(("export", f"{text}; .pt2 and .pt need none")) from error
    torch.onnx.export(_program(module, x), (x,), path, verbose=False)
