"""FLOPs of a function, counted from shapes alone: nothing is computed or timed here.

The function runs once on fake tensors, which carry the device of the real ones, so that the
operators are those of the real run. The count has two parts: multiply-adds of matrix products and
convolutions by torch's own formulas, two FLOPs each; and elementwise work, one FLOP per element of
an arithmetic result or of a reduced input. Comparisons, selections, copies, integers and indices
are free. Distances between two sets of vectors count as a matrix product, also where the table of
differences is computed (scopes/counting.py). An operator that neither table lists counts one FLOP
per element of its result, which is logged; one of linear algebra or of Fourier transforms, whose
cost is not proportional to that, is an error."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils.flop_counter import conv_flop_count, flop_registry

from metalearn.evaluate.fingerprint import fingerprint
from metalearn.scopes.counting import Counting
from metalearn.tree import leaves, tree_map

Shape = tuple[int, ...]
# (the operator's arguments with shapes instead of tensors, out_shape=) -> FLOPs
Rule = Callable[..., int]
log = logging.getLogger("metalearn")


class Flops(NamedTuple):
    """FLOPs of one call."""

    matrix: int = 0  # matrix products and convolutions, 2 per multiply-add
    elementwise: int = 0  # normalisation, activations, losses, optimizer arithmetic

    def times(self, factor: int) -> Flops:
        return Flops(self.matrix * factor, self.elementwise * factor)

    def plus(self, other: Flops) -> Flops:
        return Flops(self.matrix + other.matrix, self.elementwise + other.elementwise)


class UnknownFlops(RuntimeError):
    """The FLOPs of a function do not follow from shapes; the message says why."""


@runtime_checkable
class Countable(Protocol):
    """A function whose FLOPs are the sum of those of smaller calls."""

    def parts(self, *args: Any) -> list[tuple[int, Callable[..., Any], tuple[Any, ...]]]:
        """Return [(number of calls, function, arguments)] for a call with `args`."""
        ...


def count(function: Callable[..., Any], *args: Any) -> Flops:
    """Return the FLOPs of one call of `function(*args)`, run on fake tensors: it must be pure.

    Raises:
        UnknownFlops: If the function needs values (`.item()`, sizes that depend on data), or an
            operator has no known cost."""
    counter = _Counter()
    try:
        with FakeTensorMode(allow_non_fake_inputs=True) as fake:
            fake_args = tree_map(
                lambda leaf: fake.from_tensor(leaf) if isinstance(leaf, Tensor) else leaf, args
            )
            with counter:
                function(*fake_args)
    except UnknownFlops:
        raise
    except Exception as error:  # functions fail on fake tensors in many ways; none is a zero
        lines = str(error).strip().splitlines()
        reason = f"{type(error).__name__}: {lines[0][:200] if lines else ''}"
        raise UnknownFlops(f"its FLOPs do not follow from shapes ({reason})") from error
    return Flops(counter.matrix, counter.elementwise)


def cached_count(function: Callable[..., Any], *args: Any) -> Flops:
    """Return the FLOPs of one call; each function is counted once per set of shapes.

    Raises UnknownFlops as `count` does.

    A `Countable` is counted by its parts: T tasks in S steps are counted from one task in 0 steps
    and one task in 1 step."""
    parts = function.parts(*args) if isinstance(function, Countable) else [(1, function, args)]
    total = Flops()
    for repeats, part, part_args in parts:
        if repeats:
            total = total.plus(_count_once(part, part_args).times(repeats))
    return total


# Per process: a count is a pure function of its key.
_counted: dict[Any, Flops | UnknownFlops] = {}


def _count_once(function: Callable[..., Any], args: tuple[Any, ...]) -> Flops:
    key = fingerprint(function, args)
    if key not in _counted:
        try:
            _counted[key] = count(function, *args)
        except UnknownFlops as error:
            _counted[key] = error
    result = _counted[key]
    if isinstance(result, UnknownFlops):
        raise result
    return result


aten = torch.ops.aten
DEVICE_OF = torch.ops.prim.device.default
# Operators of the random number generator: half of all when networks are initialised.
INTEGER = {
    *(aten.__rshift__.Scalar, aten.bitwise_and.Scalar, aten.bitwise_and.Tensor),
    *(aten.bitwise_xor.Tensor, aten.add.Tensor, aten.mul.Tensor),
}


def _keeps_shape(args: tuple[Any, ...]) -> bool:
    """Return whether an elementwise result has the shape of the first argument, an int64."""
    first, second = args
    if not isinstance(first, FakeTensor) or first.dtype != torch.int64:
        return False
    if isinstance(second, FakeTensor):
        return second.dtype == torch.int64 and second.shape == first.shape
    return isinstance(second, int)


class _Counter(Counting):
    """Adds up the FLOPs of every operator, as it is after vmap and grad."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.matrix, self.elementwise = 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is DEVICE_OF:
            return args[0].fake_device
        if func in INTEGER and _keeps_shape(args):
            return args[0]  # free, and a fake tensor has no values: any of this shape works
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        rule = RULES.get(func._schema.name)
        if rule is not None:
            shapes = tree_map(
                lambda leaf: tuple(leaf.shape) if isinstance(leaf, Tensor) else leaf,
                (args, kwargs, out),
            )
            self.matrix += rule(*shapes[0], **shapes[1], out_shape=shapes[2])
        elif func.overloadpacket in flop_registry:
            self.matrix += flop_registry[func.overloadpacket](*args, **kwargs, out_val=out)
        else:
            self.elementwise += arithmetic(func, args, out)
        return out


# matrix products and convolutions


def convolution_backward(
    grad: Shape,
    x: Shape,
    w: Shape,
    bias: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: bool,
    output_padding: Any,
    groups: int,
    mask: Sequence[bool],
    out_shape: Any = None,
) -> int:
    """Each of the two gradients costs what the convolution itself costs, whatever the groups.

    Departure from torch 2.13's own rule, whose weight gradient leaves out `groups`: vmap turns
    tasks into groups, and it counts a training step of 32 tasks twelvefold."""
    forward: int = conv_flop_count(list(x), list(w), list(grad), transposed=transposed)
    return forward * (int(mask[0]) + int(mask[1]))


def _conv_flops(y: Shape, size: Shape) -> int:
    """y [G, B, Ho, Wo, F] by kernels [k, k, C]."""
    return 2 * math.prod(y) * math.prod(size)


def _native_conv(x: Shape, w: Shape, stride: int, out_shape: Shape) -> int:
    return _conv_flops(out_shape, w[1:4])


def _native_input(g: Shape, w: Shape, *rest: int, out_shape: Shape) -> int:
    return _conv_flops(g, w[1:4])


def _native_weight(x: Shape, g: Shape, *rest: int, out_shape: Shape) -> int:
    return _conv_flops(g, out_shape[1:4])


def _distances(x: Shape, y: Shape, *rest: Any, out_shape: Shape) -> int:
    """x [*, M, D], y [*, N, D] -> [*, M, N]: a product, as those of negative_squared_distance."""
    return 2 * math.prod(out_shape) * x[-1]


def _distances_backward(g: Shape, x: Shape, *rest: Any, out_shape: Shape) -> int:
    """The gradient in x; that in y is another call."""
    return 2 * math.prod(g) * x[-1]


def _solve(order: Callable[[int, int], float], right: int | None) -> Rule:
    """Return the rule of a factorisation of, or a solve with, the n x n matrices of the first
    argument; `right` is the index of the argument with the right-hand sides."""

    def rule(*args: Any, out_shape: Any, **kwargs: Any) -> int:
        n = args[0][-1]
        columns = 0 if right is None else args[right][-1] if len(args[right]) > 1 else 1
        whole: int = round(math.prod(args[0][:-2]) * order(n, columns))
        return whole

    return rule


# Operators for which torch's counter is wrong or has no rule, by their full names. A package with
# operators of its own adds a line here and is not imported.
RULES: dict[str, Rule] = {
    "aten::convolution_backward": convolution_backward,
    "metalearn::conv": _native_conv,
    "metalearn::conv_input": _native_input,
    "metalearn::conv_weight": _native_weight,
    "aten::_cdist_forward": _distances,
    "aten::_cdist_backward": _distances_backward,
    "aten::_euclidean_dist": _distances,  # torch.cdist of more than 25 vectors
    "aten::dot": lambda a, b, out_shape: 2 * a[0],
    "aten::vdot": lambda a, b, out_shape: 2 * a[0],
    "aten::mv": lambda a, b, out_shape: 2 * a[0] * a[1],
    # Golub & Van Loan 2013, Matrix Computations, sections 3.1 to 4.2: leading terms.
    "aten::linalg_cholesky_ex": _solve(lambda n, m: n**3 / 3, None),
    "aten::linalg_lu_factor_ex": _solve(lambda n, m: 2 * n**3 / 3, None),
    "aten::linalg_inv_ex": _solve(lambda n, m: 2 * n**3, None),
    "aten::linalg_lu_solve": _solve(lambda n, m: 2 * n**2 * m, 2),
    "aten::linalg_solve_triangular": _solve(lambda n, m: n**2 * m, 1),
    "aten::_linalg_solve_ex": _solve(lambda n, m: 2 * n**3 / 3 + 2 * n**2 * m, 1),
}


# elementwise


def _same_cost(names: str, flops: int) -> dict[str, int]:
    return dict.fromkeys(names.split(), flops)


FREE = frozenset(
    _same_cost(
        """clone copy where masked_fill fill zero relu clamp clamp_min clamp_max maximum minimum
        sign eq ne lt le gt ge logical_not logical_and isnan isfinite floor ceil round hardtanh
        threshold_backward hardtanh_backward _to_copy cat stack constant_pad_nd gather index
        index_select take scatter slice_scatter select_scatter flip roll sort topk argsort unfold
        repeat max min amax amin argmax argmin max_pool2d_with_indices
        max_pool2d_with_indices_backward max_dim tril triu zeros_like ones_like
        empty_like full_like new_zeros new_empty new_full new_ones zeros ones empty full
        scalar_tensor new_empty_strided empty_strided rand randn rand_like randn_like
        bernoulli arange linspace eye lift lift_fresh select_backward slice_backward
        unsafe_index resize detach contiguous _unsafe_view _reshape_copy view_copy
        permute_copy expand_copy as_strided_scatter bitwise_and diagonal_scatter
        nan_to_num random uniform normal _reshape_alias set_ unique_dim one_hot
        _efficientzerotensor
        split_with_sizes_copy squeeze_ metalearn::frozen_features""",
        0,
    )
)
# FLOPs per element of the first input: reductions.
OF_INPUT = {
    **_same_cost("sum mean prod cumsum cumprod logcumsumexp trace linalg_vector_norm", 1),
    **_same_cost("var std var_mean std_mean", 4),
    "logsumexp": 3,
    **_same_cost(
        "native_batch_norm native_layer_norm native_group_norm _native_batch_norm_legit", 7
    ),
    "metalearn::norm_relu_pool": 7,  # a normalisation; ReLU and maxima are comparisons
    **_same_cost(
        "native_batch_norm_backward native_layer_norm_backward native_group_norm_backward", 11
    ),
    **_same_cost("avg_pool2d _adaptive_avg_pool2d mean_pool", 1),
}
# FLOPs per element of the result, if not 1 as for a plain elementwise operator.
OF_OUTPUT = {
    **_same_cost("_softmax _log_softmax _softmax_backward_data _log_softmax_backward_data", 4),
    "prims::add": 1,
    **_same_cost("addcmul addcdiv lerp", 3),
    **_same_cost("gelu silu mish gelu_backward silu_backward mish_backward", 5),
    **_same_cost("tanh_backward sigmoid_backward elu_backward softplus_backward", 3),
    **_same_cost("avg_pool2d_backward _adaptive_avg_pool2d_backward leaky_relu_backward", 1),
    # four products and three sums; the filter of an antialiased reduction has more taps
    **_same_cost("upsample_bilinear2d _upsample_bilinear2d_aa", 7),
}
# FLOPs per element of the argument with this index: first and second derivatives of that
# normalisation, as its loops compute them.
OF_ARGUMENT = {
    "metalearn::norm_relu_pool_grad": (1, 11),
    "metalearn::norm_relu_pool_second": (4, 15),
}
# Index of the argument that is added: 1 FLOP per element.
OF_SOURCE = {
    "scatter_add": 3,
    "index_add": 3,
    "_index_put_impl": 2,
    "index_put": 2,
    "_unsafe_index_put": 2,
}


NOT_ELEMENTWISE = (
    *("linalg", "_linalg", "svd", "cholesky", "triangular", "lu_", "fft", "_fft", "_conv"),
    *("mkldnn", "_cudnn", "cudnn", "miopen", "_thnn", "_scaled_dot"),  # recurrent, attention
)
_assumed: set[str] = set()  # operators whose cost was assumed, per process


def arithmetic(func: Any, args: Any, out: Any) -> int:
    """Return the elementwise FLOPs of an operator: 1 per element of its result or reduced input.

    Raises:
        UnknownFlops: If it is a linear algebra or Fourier transform operator without a rule."""
    space, _, name = func._schema.name.rpartition("::")
    name = name if name in FREE else name.rstrip("_")
    name = name if space == "aten" else f"{space}::{name}"
    results = [leaf for leaf in leaves(out) if isinstance(leaf, Tensor)]
    if name in FREE or func.is_view or not any(leaf.is_floating_point() for leaf in results):
        return 0
    if name in OF_INPUT:
        return OF_INPUT[name] * int(args[0].numel())
    if name in OF_ARGUMENT:
        index, per_element = OF_ARGUMENT[name]
        return per_element * int(args[index].numel())
    if name in OF_SOURCE:
        return int(leaves(args[OF_SOURCE[name]])[0].numel())
    if name not in OF_OUTPUT and torch.Tag.pointwise not in func.tags:
        _assume(func._schema.name, name)
    return OF_OUTPUT.get(name, 1) * int(results[0].numel())


def _assume(full: str, name: str) -> None:
    """Log, once, that an operator is counted as elementwise work."""
    if name.startswith(NOT_ELEMENTWISE):
        text = f"the operator {full} is not in the tables of evaluate/flops.py: add its cost"
        raise UnknownFlops(text)
    if full not in _assumed:
        _assumed.add(full)
        log.warning(
            f"FLOPs: the operator {full} is not in the tables of evaluate/flops.py and "
            "counts 1 per element of its result"
        )
