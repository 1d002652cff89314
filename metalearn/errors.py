"""Errors: bad input with all places at once, and the other ends of a run with their exit codes."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, get_args

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


Place = tuple[str, ...]  # keys on the way to a value
SENTENCE = "sentence"  # the type of a problem whose text is one already


def explained(kind: Any, problem: Any) -> tuple[Place, str]:
    """One of pydantic's problems with the options of a component class, as (place, sentence)."""
    place, got = [str(part) for part in problem["loc"]], problem.get("input")
    owners, shown = _owners(kind, place)
    where, text = tuple(shown), problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "extra_forbidden":
        valid = getattr(owners[-1], "model_fields", ())
        return where, f"unknown key; {did_you_mean(place[-1], valid)}"
    if problem["type"] == "dict_type":
        return where, f"must be a mapping (got {got!r})"
    if problem["type"] in ("tuple_type", "list_type") and not isinstance(got, dict):
        return where, f"must be a list, such as [{got}]"
    text = re.sub("^Input should ", "must ", text)
    teaches = isinstance(got, dict) or problem["type"] in ("value_error", SENTENCE)
    return where, text if teaches else f"{text} (got {got!r})"


def explained_call(
    kind: type[Any], call: Callable[..., Any], args: tuple[Any, ...], options: dict[str, Any]
) -> Any:
    """call(*args, **options), which makes a component; a ValidationError has sentences."""
    from pydantic import ValidationError
    from pydantic_core import PydanticCustomError

    wrong = [name for name, value in options.items() if truth_for_number(kind, name, value)]
    problems: list[tuple[Place, str]] = [((n,), no_truth(options[n])) for n in wrong]
    rest = {name: value for name, value in options.items() if name not in wrong}
    try:
        made = call(*args, **rest)
    except ValidationError as error:
        # A class with an `__init__` of its own is called where its options are validated, too.
        whole = None if args or kind.__pydantic_custom_init__ else rest
        problems += sentences(kind, error, whole)
    if problems:
        lines: Any = [
            {"type": PydanticCustomError(SENTENCE, "{text}", {"text": text}), "loc": place}
            for place, text in problems
        ]
        raise ValidationError.from_exception_data(kind.__name__, lines, hide_input=True) from None
    return made


def sentences(kind: Any, error: Any, options: Mapping[str, Any] | None) -> list[tuple[Place, str]]:
    """Every problem of the options of a component class, as (place, sentence).

    So are the cross-field rules, which pydantic skips where a field is wrong, but for those about
    a wrong field; None in the place of options leaves them out."""
    from pydantic import ValidationError  # not for the commands that do without it

    found: list[Any] = list(error.errors(include_url=False))
    bad = {str(problem["loc"][0]) for problem in found if problem["loc"]}
    if bad and options is not None:
        try:
            kind.model_validate({name: v for name, v in options.items() if name not in bad})
        except ValidationError as other:
            rules = [problem for problem in other.errors() if not problem["loc"]]
            found += [one for one in rules if not any(name in one["msg"] for name in bad)]
    return [explained(kind, problem) for problem in found]


def truth_for_number(kind: Any, name: str, value: Any) -> bool:
    """Whether a true or false stands where a field takes none: pydantic would read 1 or 0."""
    given = value if isinstance(value, list | tuple) else [value]
    info = kind.model_fields.get(name)
    if info is None or not any(isinstance(one, bool) for one in given):
        return False
    return "bool" not in str(info.annotation) and "Any" not in str(info.annotation)


def no_truth(value: Any) -> str:
    """The sentence about a true or false in the place of a number."""
    return f"must not be true or false (got {value!r})"


def _owners(kind: Any, place: list[str]) -> tuple[list[Any], list[str]]:
    """The component classes that the keys of a place belong to, and the place without tags.

    The tag of a component that a table holds stands in pydantic's path after its field."""
    owners, shown, rest = [kind], list[str](), list(place)
    while rest:
        shown.append(rest.pop(0))
        info = getattr(owners[-1], "model_fields", {}).get(shown[-1])
        if info is None or not rest:
            break
        table = _table_of(info)
        if len(rest) > 1 and rest[0] in table:
            owners.append(table[rest.pop(0)])
        else:
            owners.append(type(info.default))
    return owners, [*shown, *rest]


def _table_of(info: Any) -> dict[str, Any]:
    """The components that a field takes, by their names; empty where it takes other values."""
    waiting, found = [*info.metadata, info.annotation], dict[str, Any]()
    while waiting:
        part = waiting.pop()
        found |= getattr(part, "table", None) or {}
        waiting += get_args(part)
    return found


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
