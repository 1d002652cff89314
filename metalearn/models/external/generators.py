"""Random number generators of Python and numpy, which draw from no key."""

from __future__ import annotations

import pickle
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn

OWN = (random.Random, np.random.Generator, np.random.RandomState)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Context manager that seeds the generators of torch, Python and numpy, and restores them."""
    with torch.random.fork_rng(devices=[]), restored():
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % (1 << 32))
        yield


@contextmanager
def restored() -> Iterator[None]:
    """Context manager that restores the generators of Python and numpy."""
    states = random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])


def generator_states(module: nn.Module) -> dict[str, bytes]:
    """Return the states of the generators of Python, of numpy, and in attributes of a module."""
    states = {
        "Python's random": pickle.dumps(random.getstate()),
        "numpy.random": pickle.dumps(np.random.get_state()),
    }
    for name, part in module.named_modules():
        for attribute, value in vars(part).items():
            if isinstance(value, OWN):
                states[f"{name}.{attribute}" if name else attribute] = pickle.dumps(value)
    return states
