"""When this process began: imported first by the command line, so that imports are on the bill."""

import time

BEGIN = time.perf_counter()
_billed: list[bool] = []


def unbilled() -> float:
    """Seconds since the process began, the first time; 0 after that: one process pays for its
    imports once.
    """
    if _billed:
        return 0.0
    _billed.append(True)
    return time.perf_counter() - BEGIN
