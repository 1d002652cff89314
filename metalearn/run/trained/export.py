"""The predictions of an adapted task as a program that runs without this package."""

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


class TaskProgram(nn.Module):
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
    """Write `predict` of one task to `path`, in the format of its suffix; return the path.

    The program takes any number of inputs. Raises ConfigError for another suffix, for a missing
    package, and for a network that torch cannot export, with the reason."""
    write = {".pt2": _save_exported, ".pt": _save_scripted, ".onnx": _save_onnx}.get(path.suffix)
    if write is None:
        raise ConfigError(("path", f"must end with {FORMATS} (got {path.suffix or 'no suffix'})"))
    module, x = TaskProgram(predict, meta, item, support).eval(), support.x[:3].clone()
    x = x if len(x) > 1 else torch.cat([x, x])  # one example would be taken for a constant size
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch about its own formats
            write(module, x, temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def _program(module: nn.Module, x: Tensor) -> Any:
    """Export the graph for any number of inputs; it must contain only torch's operators."""
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
    custom = sorted(name for name in foreign if "metalearn" in name)
    if custom:
        text = f"the network uses operators that exist only in this package: {', '.join(custom)}"
        raise ConfigError(("export", text))
    return program


def _save_exported(module: nn.Module, x: Tensor, path: Path) -> None:
    torch.export.save(_program(module, x), path)


def _save_scripted(module: nn.Module, x: Tensor, path: Path) -> None:
    """Trace the exported program, as TorchScript cannot trace a functional call of a module."""
    longer_batch = torch.cat([x, x, x[:1]])
    try:
        traced = torch.jit.trace(_program(module, x).module(), x)
        has_fixed_size = not torch.allclose(
            traced(longer_batch), module(longer_batch), rtol=1e-3, atol=1e-5
        )
    except Exception as error:
        text = f"cannot be traced as TorchScript: {str(error).strip().splitlines()[0]}: use .pt2"
        raise ConfigError(("export", text)) from error
    if has_fixed_size:
        text = "TorchScript would fix the number of inputs of this network: use .pt2"
        raise ConfigError(("export", text))
    torch.jit.save(traced, path)


def _save_onnx(module: nn.Module, x: Tensor, path: Path) -> None:
    try:
        import onnxscript  # noqa: F401
    except ImportError as error:
        text = "ONNX needs the packages onnx and onnxscript: pip install 'metalearn-lab[onnx]'"
        raise ConfigError(("export", f"{text}; .pt2 and .pt need none")) from error
    torch.onnx.export(_program(module, x), (x,), path, verbose=False)
