"""Counter-based random numbers from keys and names: SplitMix64 in integer tensor operations.

SplitMix64 (Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators", figure 17):

    z_i = key + (i + 1) * GAMMA;   z = (z ^ z >> 30) * A;   z = (z ^ z >> 27) * B  (mod 2^64)
    output_i = z ^ z >> 31

Number i of a key needs no earlier number, so bits are the same on CPU and CUDA, under vmap, in a
loop, in chunks and on any rank. A key is a 0-d int64 tensor; a function of keys [*B] returns [*B,
*shape], whose rows are the results of each key alone.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from metalearn.errors import ConfigError
from metalearn.types import Key

MASK = (1 << 64) - 1
_GAMMA = 0x9E3779B97F4A7C15
_A = 0xBF58476D1CE4E5B9
_B = 0x94D049BB133111EB
_SALT = 0xD1B54A32D192ED03  # separates the keys of fold_in from the numbers that they generate


def signed(value: int) -> int:
    """An integer mod 2^64 as an int64.

    >>> ml.rng.signed(2**64 - 1)
    -1
    """
    value &= MASK
    return value - (1 << 64) if value >> 63 else value


GAMMA_SIGNED, SALT_SIGNED = signed(_GAMMA), signed(_SALT)
A_SIGNED, B_SIGNED = signed(_A), signed(_B)


def _shift(z: Tensor, bits: int) -> Tensor:
    """Shift right logically; int64 has only the arithmetic shift."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def _mix(z: Tensor) -> Tensor:
    z = (z ^ _shift(z, 30)) * A_SIGNED
    z = (z ^ _shift(z, 27)) * B_SIGNED
    return z ^ _shift(z, 31)


def _mix_int(z: int) -> int:
    z = ((z ^ (z >> 30)) * _A) & MASK
    z = ((z ^ (z >> 27)) * _B) & MASK
    return z ^ (z >> 31)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]  # hashing is not traced: a name is a constant
def number(name: str | int) -> int:
    """Return the integer below 2^64 of a name.

    >>> ml.rng.number(7), ml.rng.number("train") == ml.rng.number("train")
    (7, True)
    """
    if isinstance(name, str):
        return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
    truncated = int(name)
    if truncated != name:
        raise ConfigError(
            ("name", f"{name!r} is truncated to {truncated} in a key: use str({name!r})")
        )
    return truncated & MASK


def _device(name: str | int | Tensor) -> torch.device | None:
    return name.device if isinstance(name, Tensor) else None


def _times(name: str | int | Tensor, factor: int) -> Tensor | int:
    """(name + 1) * factor mod 2^64."""
    if isinstance(name, Tensor):
        return (name.to(torch.int64) + 1) * signed(factor)
    return signed((number(name) + 1) * factor)


def fold_in(seed_or_key: int | Key, *names: str | int | Tensor) -> Key:
    """A new key from a seed or key and names: keys and names [*B] give keys [*B].

    fold_in(fold_in(k, "a"), "b") equals fold_in(k, "a", "b"). Integers stay in Python up to the
    first tensor.

    >>> a, b = ml.fold_in(0, "train", 3), ml.fold_in(ml.fold_in(0, "train"), 3)
    >>> bool(a == b), bool(a == ml.fold_in(0, "train", 4))
    (True, False)
    """
    key: int | Tensor = seed_or_key if isinstance(seed_or_key, Tensor) else int(seed_or_key) & MASK
    for name in names:
        if isinstance(key, Tensor) or isinstance(name, Tensor):
            base = (
                key
                if isinstance(key, Tensor)
                else torch.tensor(signed(key), dtype=torch.int64, device=_device(name))
            )
            key = _mix(_mix(base + _times(name, _SALT)) + _times(name, _GAMMA))
        else:
            number_int = number(name)
            first = _mix_int((key + _SALT * (number_int + 1)) & MASK)
            key = _mix_int((first + _GAMMA * (number_int + 1)) & MASK)
    return key if isinstance(key, Tensor) else torch.tensor(signed(key), dtype=torch.int64)


def _counters(count: int, device: torch.device) -> Tensor:
    """Return (i + 1) * GAMMA mod 2^64: [count], using only doubling and sums.

    Not `GAMMA * arange`, nor a running sum that the compiler rewrites into it: torch 2.13's CPU
    compiler corrupts memory on that product when `count` is not a multiple of the vector width
    (tests/test_rng.py compiles odd sizes)."""
    counters = torch.full((1,), GAMMA_SIGNED, dtype=torch.int64, device=device)
    size = 1
    while size < count:
        counters, size = torch.cat([counters, counters + signed(size * _GAMMA)]), 2 * size
    return counters[:count]


def bits(key: Key, shape: Sequence[int]) -> Tensor:
    """64 random bits for each element: keys [*B] -> int64 [*B, *shape].

    Element i is output i of SplitMix64 from that key.

    >>> ml.rng.bits(ml.fold_in(0), (2, 3)).shape
    torch.Size([2, 3])
    """
    counters = _counters(math.prod(shape), key.device)
    return _mix(key.unsqueeze(-1) + counters).reshape((*key.shape, *shape))


def uniform(
    key: Key,
    shape: Sequence[int],
    low: float = 0.0,
    high: float = 1.0,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Uniform on [low, high): [*B, *shape].

    float64 takes the top 53 bits, float32 the top 24 bits of the same number.

    >>> x = ml.rng.uniform(ml.fold_in(0), (100,), -1, 1)
    >>> bool((x >= -1).all() and (x < 1).all())
    True
    """
    precision = 53 if dtype == torch.float64 else 24
    unit = _shift(bits(key, shape), 64 - precision).to(dtype) * 2.0**-precision
    return unit if (low, high) == (0.0, 1.0) else low + (high - low) * unit


def normal(key: Key, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
    """Standard normal: [*B, *shape], from two uniforms each, the first in (0, 1].

    Box and Muller 1958.

    >>> keys = ml.fold_in(0, torch.arange(5))  # one for each of 5 tasks
    >>> ml.rng.normal(keys, (3,)).shape
    torch.Size([5, 3])
    """
    radius, angle = uniform(key, (*shape, 2), dtype=torch.float64).unbind(-1)
    return ((-2.0 * torch.log1p(-radius)).sqrt() * torch.cos(2.0 * math.pi * angle)).to(dtype)


def integers(key: Key, shape: Sequence[int], high: int) -> Tensor:
    """Integers in [0, high): [*B, *shape]; bias below high / 2^31.

    >>> sorted(set(ml.rng.integers(ml.fold_in(0), (100,), 3).tolist()))
    [0, 1, 2]
    """
    return below(bits(key, shape), high)


def below(words: Tensor, high: int) -> Tensor:
    """`integers` of random bits: [*B] -> [*B].

    >>> ml.rng.below(ml.rng.bits(ml.fold_in(0), (100,)), 3).unique()
    tensor([0, 1, 2])
    """
    return (_shift(words, 33) * high) >> 31


def permutation(key: Key, size: int) -> Tensor:
    """A random permutation of 0 .. size-1: [*B, size].

    >>> sorted(ml.rng.permutation(ml.fold_in(0), 4).tolist())
    [0, 1, 2, 3]
    """
    return bits(key, (size,)).argsort(-1)


def choice(key: Key, size: int, count: int) -> Tensor:
    """`count` different numbers of 0 .. size-1 in random order: [*B, count].

    Few of many by `floyd` instead of sorting `size` numbers; a permutation makes their order
    uniform as well. Raises ValueError if `count` is larger than `size`.

    >>> len(set(ml.rng.choice(ml.fold_in(0), 1000, 5).tolist()))
    5
    """
    if count > size:
        raise ValueError(f"cannot choose {count} distinct elements of {size}")
    if sorts_all(size, count):
        return permutation(key, size)[..., :count]
    return floyd(bits(key, (count,)), bits(fold_in(key, "order"), (count,)), size)


def sorts_all(size: int, count: int) -> bool:
    """Return whether `choice` permutes all numbers and takes the first ones."""
    return size <= 4 * count or size <= 32


def floyd(words: Tensor, order: Tensor, size: int | Tensor) -> Tensor:
    """Different numbers of 0 .. size-1 (Bentley & Floyd 1987, CACM 30(9)): [*B, count].

        t_p = size - count + p,  d_p uniform in 0 .. t_p
        chosen_p = d_p, or t_p where d_p was chosen before

    words [*B, count] are the bits of the d_p, order [*B, count] those of the order in which numbers
    are returned; size an int or [*B] of at least `count`. All rounds at once: d_p was chosen before
    if an earlier d equals it, or if it is an earlier t_j and round j chose that; these pointers
    from p to j < p are followed by doubling."""
    count = words.shape[-1]
    offset = (size.unsqueeze(-1) if isinstance(size, Tensor) else size) - count
    positions = torch.arange(count, device=words.device)
    sampled = (_shift(words, 33) * (positions + (offset + 1))) >> 31
    earlier = positions < positions.unsqueeze(-1)
    repeats = ((sampled.unsqueeze(-1) == sampled.unsqueeze(-2)) & earlier).any(-1)
    source = (sampled - offset).clamp(min=0)  # position 0 repeats nothing
    doublings = max(count - 2, 0).bit_length()
    for doubling in range(doublings):
        repeats = repeats | repeats.gather(-1, source)
        source = source.gather(-1, source) if doubling < doublings - 1 else source
    return torch.where(repeats, positions + offset, sampled).gather(-1, order.argsort(-1))


Chain = tuple[int, ...]  # the integers added to a key before each of the mixes of a number


def chain(*names: str | int) -> Chain:
    """Return the chain of fold_in(key, *names)."""
    numbers = [number(name) + 1 for name in names]
    return tuple(signed(value * factor) for value in numbers for factor in (_SALT, _GAMMA))


def chains(start: Chain, count: int) -> list[Chain]:
    """Return the chains of bits(key, (count,)), where `start` is the chain of the key."""
    return [(*start, signed((index + 1) * _GAMMA)) for index in range(count)]


class Words:
    """Several samples of one key in few operations: equal to `bits` of keys folded from it.

        words = Words([chains(chain(name), n), ...], device);   words(key) -> [bits [*B, n], ...]

    Numbers at the end of chains of equal length are mixed together, and common prefixes only once.
    Build it outside of traces, as it holds tensors."""

    def __init__(self, draws: Sequence[Sequence[Chain]], device: str | torch.device) -> None:
        self._depths = [len(chains[0]) if chains else 0 for chains in draws]
        self._counts = [len(chains) for chains in draws]
        self._rounds: list[tuple[Tensor | None, Tensor]] = []  # (columns of the last, added) [K]
        last: dict[Chain, int] = {(): 0}
        for depth in range(1, max(self._depths) + 1):
            ends = [chain for chains in draws for chain in chains if len(chain) == depth]
            longer = [c[:depth] for chains in draws for c in chains if len(c) > depth]
            prefixes = [*ends, *(prefix for prefix in dict.fromkeys(longer))]
            columns = [last[prefix[:-1]] for prefix in prefixes]
            plain = len(last) == 1 or columns == list(range(len(last)))
            added = torch.tensor([prefix[-1] for prefix in prefixes], dtype=torch.int64)
            index = None if plain else torch.tensor(columns).to(device)
            self._rounds.append((index, added.to(device)))
            last = {prefix: column for column, prefix in enumerate(prefixes)}

    def __call__(self, key: Key) -> list[Tensor]:
        value, outputs = key.unsqueeze(-1), dict[int, Tensor]()
        for depth, (columns, added) in enumerate(self._rounds, 1):
            value = value if columns is None else value.index_select(-1, columns)
            value = _mix(value + added)
            sizes = [n if d == depth else 0 for n, d in zip(self._counts, self._depths)]
            pieces = value.split([*sizes, value.shape[-1] - sum(sizes)], -1)
            outputs |= {index: pieces[index] for index, size in enumerate(sizes) if size}
        empty = key.unsqueeze(-1)[..., :0]
        return [outputs.get(index, empty) for index in range(len(self._counts))]
