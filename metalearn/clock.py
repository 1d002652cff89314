"""When this process began; the command line imports it first, so that imports are measured."""

import itertools
import time

BEGIN = time.perf_counter()
_calls = itertools.count()


def startup_seconds() -> float:
    """Return the seconds since process start at the first call, and 0 at later ones.

    Imports are therefore counted once."""
    return 0.0 if next(_calls) else time.perf_counter() - BEGIN
