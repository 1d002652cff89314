"""When this process began; the command line imports it first, so that imports are measured."""

import itertools
import time

BEGIN = time.perf_counter()
_calls = itertools.count()


def startup_seconds() -> float:
    """Seconds since the process began at the first call, 0 later: imports are counted once."""
    return 0.0 if next(_calls) else time.perf_counter() - BEGIN
