"""Errors: bad input with all places at once, and the other ends of a run with their exit codes."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from metalearn.logger import log


class ConfigError(ValueError):
    """Bad input, as a list of (place, sentence); the command line prints each and exits with 2."""

    def __init__(self, *problems: tuple[str, str]) -> None:
        self.problems = tuple(problems)
        super().__init__(
            "\n".join(f"{place}: {text}" if place else text for place, text in problems)
        )

    def __reduce__(self) -> tuple[type[ConfigError], tuple[tuple[str, str], ...]]:
        return type(self), self.problems  # how it is sent to another process

    def under(self, prefix: str) -> ConfigError:
        """The same problems, each place with a prefix in front."""
        return ConfigError(
            *((f"{prefix}.{place}" if place else prefix, text) for place, text in self.problems)
        )


class DataError(ConfigError):
    """A data set that is missing, unreadable or not what it says."""


def did_you_mean(word: str, valid: Iterable[str]) -> str:
    """A closing half sentence with the nearest valid name and all of them.

    >>> ml.errors.did_you_mean("mamal", ["maml", "anil"])
    "did you mean 'maml'? valid: anil, maml"
    """
    names = sorted(valid)
    near = difflib.get_close_matches(word, names, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"{hint}valid: {', '.join(names)}"


def first_line(error: BaseException) -> str:
    """The first line of an error's message; of an error without one, how Python writes it.

    >>> ml.errors.first_line(RuntimeError("out of memory"))
    'out of memory'
    """
    return next(iter(str(error).strip().splitlines()), repr(error))


class Diverged(RuntimeError):
    """Meta-training met a loss that is not finite: exit code 3."""


class Stopped(BaseException):
    """A signal asked for the end; the state is saved: exit code 75."""


class RankLost(RuntimeError):
    """A process of the group has died or is out of reach: exit code 1."""


@contextmanager
def exit_codes() -> Iterator[None]:
    """Log errors as sentences and exit: 2 bad input, 3 diverged, 75 stopped after saving.

    >>> with ml.errors.exit_codes():
    ...     raise ml.ConfigError(("task.shots", "should be at least 1"))
    Traceback (most recent call last):
    SystemExit: 2
    """
    try:
        yield
    except ConfigError as error:
        for place, text in error.problems:
            log.error(f"{place}: {text}" if place else text)
        raise SystemExit(2) from None
    except OSError as error:
        log.error(f"{error.filename or ''}: {error.strerror or error}")
        raise SystemExit(2) from None
    except (Diverged, Stopped, RankLost) as error:
        log.error(str(error))
        code = {Diverged: 3, Stopped: 75, RankLost: 1}
        raise SystemExit(next(code[kind] for kind in code if isinstance(error, kind))) from None
