"""Errors: invalid input with all its places, and other failures of a run, with exit codes."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, get_args

from metalearn.logger import log


class ConfigError(ValueError):
    """Invalid input as (place, sentence) pairs; the command line prints each and exits with 2."""

    def __init__(self, *problems: tuple[str, str]) -> None:
        self.problems = tuple(problems)
        super().__init__(
            "\n".join(f"{place}: {text}" if place else text for place, text in problems)
        )

    def __reduce__(self) -> tuple[type[ConfigError], tuple[tuple[str, str], ...]]:
        return type(self), self.problems  # how it is sent to another process

    def under(self, prefix: str) -> ConfigError:
        """Return the same problems with a prefix before each place."""
        return ConfigError(
            *((f"{prefix}.{place}" if place else prefix, text) for place, text in self.problems)
        )


class DataError(ConfigError):
    """A data set that is missing, unreadable or not what it says."""


def did_you_mean(word: str, valid: Iterable[str]) -> str:
    """Return the end of a sentence with the nearest valid name and all valid names.

    >>> ml.errors.did_you_mean("mamal", ["maml", "anil"])
    "did you mean 'maml'? valid: anil, maml"
    """
    names = sorted(valid)
    matches = difflib.get_close_matches(word, names, n=1)
    hint = f"did you mean {matches[0]!r}? " if matches else ""
    return f"{hint}valid: {', '.join(names)}"


Place = tuple[str, ...]  # keys on the way to a value
SENTENCE = "sentence"  # the type of a problem whose text is already a sentence


def explained(kind: Any, problem: Any) -> tuple[Place, str]:
    """Convert one of pydantic's problems with a component's options to (place, sentence)."""
    place, value = [str(part) for part in problem["loc"]], problem.get("input")
    owners, keys = _owners(kind, place)
    where, text = tuple(keys), problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "extra_forbidden":
        valid = getattr(owners[-1], "model_fields", ())
        return where, f"unknown key; {did_you_mean(place[-1], valid)}"
    if problem["type"] == "dict_type":
        return where, f"must be a mapping (got {value!r})"
    if problem["type"] in ("tuple_type", "list_type") and not isinstance(value, dict):
        return where, f"must be a list, such as [{value}]"
    text = re.sub("^Input should ", "must ", text)
    is_complete = isinstance(value, dict) or problem["type"] in ("value_error", SENTENCE)
    return where, text if is_complete else f"{text} (got {value!r})"


def explained_call(
    kind: type[Any], call: Callable[..., Any], args: tuple[Any, ...], options: dict[str, Any]
) -> Any:
    """Return the component call(*args, **options); a ValidationError has sentences."""
    from pydantic import ValidationError
    from pydantic_core import PydanticCustomError

    invalid = [name for name, value in options.items() if truth_for_number(kind, name, value)]
    problems: list[tuple[Place, str]] = [((n,), no_truth(options[n])) for n in invalid]
    valid = {name: value for name, value in options.items() if name not in invalid}
    try:
        component = call(*args, **valid)
    except ValidationError as error:
        # A class with its own `__init__` is also called when its options are validated.
        checked_options = None if args or kind.__pydantic_custom_init__ else valid
        problems += sentences(kind, error, checked_options)
    if problems:
        lines: Any = [
            {"type": PydanticCustomError(SENTENCE, "{text}", {"text": text}), "loc": place}
            for place, text in problems
        ]
        raise ValidationError.from_exception_data(kind.__name__, lines, hide_input=True) from None
    return component


def sentences(kind: Any, error: Any, options: Mapping[str, Any] | None) -> list[tuple[Place, str]]:
    """Return every problem of the options of a component class, as (place, sentence).

    This includes cross-field rules, which pydantic skips if a field is invalid, except rules about
    an invalid field; with None instead of options they are left out."""
    from pydantic import ValidationError  # not for the commands that do without it

    problems: list[Any] = list(error.errors(include_url=False))
    invalid = {str(problem["loc"][0]) for problem in problems if problem["loc"]}
    if invalid and options is not None:
        try:
            kind.model_validate({name: v for name, v in options.items() if name not in invalid})
        except ValidationError as rule_error:
            rules = [problem for problem in rule_error.errors() if not problem["loc"]]
            problems += [rule for rule in rules if not any(name in rule["msg"] for name in invalid)]
    return [explained(kind, problem) for problem in problems]


def truth_for_number(kind: Any, name: str, value: Any) -> bool:
    """Return whether a field that takes no truth value got one: pydantic would read 1 or 0."""
    items = value if isinstance(value, list | tuple) else [value]
    info = kind.model_fields.get(name)
    if info is None or not any(isinstance(item, bool) for item in items):
        return False
    return "bool" not in str(info.annotation) and "Any" not in str(info.annotation)


def no_truth(value: Any) -> str:
    """Return the sentence about a true or false instead of a number."""
    return f"must not be true or false (got {value!r})"


def _owners(kind: Any, place: list[str]) -> tuple[list[Any], list[str]]:
    """Return the component classes that the keys of a place belong to, and the place without tags.

    In pydantic's path the tag of a component of a table follows its field."""
    owners, keys, remaining = [kind], list[str](), list(place)
    while remaining:
        keys.append(remaining.pop(0))
        info = getattr(owners[-1], "model_fields", {}).get(keys[-1])
        if info is None or not remaining:
            break
        table = _component_table(info)
        if len(remaining) > 1 and remaining[0] in table:
            owners.append(table[remaining.pop(0)])
        else:
            owners.append(type(info.default))
    return owners, [*keys, *remaining]


def _component_table(info: Any) -> dict[str, Any]:
    """Return the components that a field accepts, by name; empty if it accepts other values."""
    pending, table = [*info.metadata, info.annotation], dict[str, Any]()
    while pending:
        part = pending.pop()
        table |= getattr(part, "table", None) or {}
        pending += get_args(part)
    return table


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message; without a message its repr.

    >>> ml.errors.first_line(RuntimeError("out of memory"))
    'out of memory'
    """
    return next(iter(str(error).strip().splitlines()), repr(error))


class Diverged(RuntimeError):
    """Raised if training, or the test of a trained run, is not finite: exit code 3."""


class Stopped(BaseException):
    """Raised after a signal to stop; the state is saved: exit code 75."""


class RankLost(RuntimeError):
    """Raised if a process of the group has died or cannot be reached: exit code 1."""


@contextmanager
def exit_codes() -> Iterator[None]:
    """Log errors and exit: 1 a process was lost, 2 bad input, 3 diverged, 75 stopped after saving.

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
