"""One error for everything a user can get wrong: all places at once, each with what would be right."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ConfigError(ValueError):
    """Bad input: a list of (place, sentence); the command line prints each on its line and ends with exit code 2."""

    def __init__(self, *problems: tuple[str, str]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(f"{place}: {text}" if place else text for place, text in problems))

    def under(self, prefix: str) -> ConfigError:
        """The same problems, each place with a prefix in front."""
        return ConfigError(*((f"{prefix}.{place}" if place else prefix, text) for place, text in self.problems))


class DataError(ConfigError):
    """A data set that is missing, unreadable or not what it says."""


def did_you_mean(word: str, valid: Iterable[str]) -> str:
    """A closing half sentence with the nearest valid name and all of them."""
    names = sorted(valid)
    near = difflib.get_close_matches(word, names, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"{hint}valid: {', '.join(names)}"
