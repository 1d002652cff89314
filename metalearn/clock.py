"""When this process began; the command line imports it first, so that imports are measured."""

import time

BEGIN = time.perf_counter()
_billed: list[bool] = []


def unbilled() -> float:
    """Seconds since the process began at the first call, 0 later: imports are counted once."""
    if _billed:
        return 0.0
    _billed.append(True)
    return time.perf_counter() - BEGIN
