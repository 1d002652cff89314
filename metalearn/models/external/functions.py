"""Functions of torch replaced while a module runs: dropout, noise and attention.

Random numbers come from keys, bitwise equal in a loop over tasks and in a batch of them; attention
uses its plain operators."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from metalearn import noise, rng
from metalearn.models.external.attention import attention

SELU = -1.7580993408473766  # the value that alpha dropout puts in: -scale * alpha of SELU


class Functions(TorchFunctionMode):
    """Mode in which functions of torch are replaced by those of a table."""

    def __init__(self, table: dict[Any, Callable[..., Any]]) -> None:
        super().__init__()
        self.table, self.met = table, set[Any]()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        new = self.table.get(func)
        if new is None:
            return func(*args, **(kwargs or {}))
        self.met.add(func)
        with self:
            return new(*args, **(kwargs or {}))


def _mask(x: Tensor, shape: tuple[int, ...], p: float) -> Tensor:
    """Return ones with probability 1 - p, else zeros: `shape`."""
    keep = rng.uniform(noise.next_key().to(x.device), shape, dtype=torch.float64) >= p
    return keep.to(x.dtype)


def dropout(x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """F.dropout: [*] -> [*]."""
    return _drop(x, tuple(x.shape), p, training, inplace)


def channel_dropout(unbatched: int | None) -> Callable[..., Tensor]:
    """F.dropout1d, 2d, 3d: whole channels [B, C, ...]; inputs of `unbatched` axes have no B."""

    def function(x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        return _drop(x, _channels(x, unbatched), p, training, inplace)

    return function


def _channels(x: Tensor, unbatched: int | None = None) -> tuple[int, ...]:
    lead = 1 if x.dim() == unbatched else 2
    return (*x.shape[:lead], *[1] * (x.dim() - lead))


def _drop(x: Tensor, shape: tuple[int, ...], p: float, training: bool, inplace: bool) -> Tensor:
    if not training or p == 0:
        return x
    factor = _mask(x, shape, p) / (1 - p) if p < 1 else torch.zeros_like(x)
    return x.mul_(factor) if inplace else x * factor


def alpha_dropout(
    x: Tensor, p: float = 0.5, training: bool = False, inplace: bool = False
) -> Tensor:
    """F.alpha_dropout (Klambauer et al. 2017, section 3): [*] -> [*]."""
    return _alpha(x, tuple(x.shape), p, training)


def feature_alpha_dropout(
    x: Tensor, p: float = 0.5, training: bool = False, inplace: bool = False
) -> Tensor:
    """F.feature_alpha_dropout: whole channels [B, C, ...]."""
    return _alpha(x, _channels(x), p, training)


def _alpha(x: Tensor, shape: tuple[int, ...], p: float, training: bool) -> Tensor:
    if not training or p == 0:
        return x
    keep = _mask(x, shape, p)
    scale = ((1 - p) * (1 + p * SELU**2)) ** -0.5 if p < 1 else 0.0
    return scale * (keep * x + (1 - keep) * SELU - p * SELU)


def _like(draw: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """torch.rand_like and torch.randn_like."""

    def function(x: Tensor, **options: Any) -> Tensor:
        dtype, device = options.get("dtype") or x.dtype, options.get("device") or x.device
        return draw(noise.next_key().to(device), tuple(x.shape), dtype=dtype)

    return function


def _new(draw: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """torch.rand and torch.randn."""

    def function(*size: Any, **options: Any) -> Tensor:
        size = (options["size"],) if "size" in options else size
        shape = size if not size or isinstance(size[0], int) else size[0]
        key = noise.next_key().to(options.get("device") or torch.get_default_device())
        return draw(key, tuple(shape), dtype=options.get("dtype") or torch.get_default_dtype())

    return function


def bernoulli(x: Tensor, p: float | None = None, **options: Any) -> Tensor:
    """torch.bernoulli: probabilities [*], or all of them `p` -> [*]."""
    uniforms = rng.uniform(noise.next_key().to(x.device), tuple(x.shape), dtype=torch.float64)
    return (uniforms < (x if p is None else p)).to(x.dtype)


def bernoulli_(x: Tensor, p: Any = 0.5, **options: Any) -> Tensor:
    """Tensor.bernoulli_: [*] -> [*], in place."""
    uniforms = rng.uniform(noise.next_key().to(x.device), tuple(x.shape), dtype=torch.float64)
    return x.copy_((uniforms < p).to(x.dtype))


def uniform_(x: Tensor, *ends: float, **options: Any) -> Tensor:
    """Tensor.uniform_(from=0, to=1): [*] -> [*], in place."""
    low, high = (*ends, *(0.0, 1.0)[len(ends) :])
    low, high = options.get("from", low), options.get("to", high)
    key = noise.next_key().to(x.device)
    return x.copy_(rng.uniform(key, tuple(x.shape), low, high, dtype=x.dtype))


def normal_(x: Tensor, mean: float = 0.0, std: float = 1.0, **options: Any) -> Tensor:
    """Tensor.normal_: [*] -> [*], in place."""
    key = noise.next_key().to(x.device)
    return x.copy_(mean + std * rng.normal(key, tuple(x.shape), dtype=x.dtype))


def _empty(zeros: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return zeros instead of empty tensors, batched over tasks as the keys are, so that noise can
    be written into them."""

    def function(*args: Any, **options: Any) -> Tensor:
        options.pop("memory_format", None)
        values = zeros(*args, **options)
        return values + (0 * noise.current_key()).to(values)

    return function


def _with_math(*args: Any, **options: Any) -> Any:
    """F.multi_head_attention_forward, whose inside a function mode does not see."""
    with torch._C.DisableTorchFunction(), sdpa_kernel(SDPBackend.MATH):
        return F.multi_head_attention_forward(*args, **options)


# Attention has a vmap and a second derivative by torch's plain operators alone.
ATTENTION: dict[Any, Callable[..., Any]] = {
    F.scaled_dot_product_attention: attention,
    F.multi_head_attention_forward: _with_math,
}
DRAWS: dict[Any, Callable[..., Any]] = {
    **ATTENTION,
    F.dropout: dropout,
    torch.dropout: lambda x, p, train: dropout(x, p, train),
    F.dropout1d: channel_dropout(2),
    F.dropout2d: channel_dropout(None),
    F.dropout3d: channel_dropout(4),
    F.alpha_dropout: alpha_dropout,
    F.feature_alpha_dropout: feature_alpha_dropout,
    torch.rand_like: _like(rng.uniform),
    torch.randn_like: _like(rng.normal),
    torch.rand: _new(rng.uniform),
    torch.randn: _new(rng.normal),
    torch.bernoulli: bernoulli,
    Tensor.bernoulli_: bernoulli_,
    Tensor.uniform_: uniform_,
    Tensor.normal_: normal_,
    torch.empty: _empty(torch.zeros),
    torch.empty_like: _empty(torch.zeros_like),
    Tensor.new_empty: _empty(Tensor.new_zeros),
}
