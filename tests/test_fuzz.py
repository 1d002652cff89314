"""Some hundred inputs of each kind as attacks; what they are and what must hold is in fuzz.py."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from fuzz import TARGETS, Place, command, fuzz, holds, place_in, state
from fuzz_inputs import BOMB, SCRIPT

from metalearn.errors import ConfigError
from metalearn.storage.yaml import parse_yaml, read_yaml
from metalearn.tasks import store

EXAMPLES = {"run directory": 40, "image folder": 60, "prepared data": 60}  # the others are cheaper


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return place_in(tmp_path_factory.mktemp("fuzz") / "place")


@pytest.mark.parametrize("kind", TARGETS)
def test_no_input_gives_a_traceback_or_changes_what_is_not_its_own(place: Place, kind: str) -> None:
    fuzz(kind, place, EXAMPLES.get(kind, 150))


def test_the_harness_sees_what_it_looks_for(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """A command that changes a file, ends with a traceback, or has no message: each is found."""
    from metalearn.cli import commands

    def changes(*_: object) -> None:
        (place.root / "treasure" / "thesis.txt").write_text("yours now")

    def breaks(*_: object) -> None:
        raise TypeError("unforeseen")

    for wrong, error in ((changes, AssertionError), (breaks, TypeError)):
        monkeypatch.setattr(commands, "resume", wrong)
        with pytest.raises(error):
            holds(place, "resume", "run")
    monkeypatch.undo()
    assert sum(share for _, _, share in TARGETS.values()) == 100


@pytest.mark.parametrize(
    ("text", "word"),
    [
        (BOMB, "expand"),
        ("[" * 5000, "too deep"),
        ("a: &a [*a]", "expand"),
        ("x: " + "9" * 200, "a number of 200"),
        ("x: " + "1:" * 100 + "1", "a number of"),
        ("!!python/object/apply:os.system [exit]", "python/object"),
    ],
)
def test_yaml_that_is_an_attack(text: str, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        parse_yaml(text)


def test_yaml_that_is_none(tmp_path: Path) -> None:
    shared = "base: &b {x: [1, 2]}\na: {<<: *b, y: 1.5e-3}\nb: *b\n"
    expected = {"base": {"x": [1, 2]}, "a": {"x": [1, 2], "y": 1.5e-3}, "b": {"x": [1, 2]}}
    assert parse_yaml(shared) == expected
    assert (
        parse_yaml("") is None and parse_yaml("1e-3") == "1e-3" and parse_yaml("[" * 50 + "]" * 50)
    )
    large = tmp_path / "large.yaml"
    with large.open("wb") as handle:
        handle.truncate(5 << 20)
    with pytest.raises(ConfigError, match=r"large.yaml.*MiB"):
        read_yaml(large)


def test_names_from_files_are_text_in_a_report(place: Place) -> None:
    """A label, an experiment, a source that is a script: escaped wherever the page shows it."""
    folder = place.fresh()
    words = (
        f"experiment={SCRIPT.replace('/', '')}",
        "method.label=<img onerror=alert(1)>",
        "published.value=1",
    )
    source = f"published.source={SCRIPT}"
    code, errors = command(place, "train", "tiny.yaml", *words, source, "--out", "scratch/run")
    assert code == 0, errors
    code, errors = command(place, "report", "scratch/run", "--out", "scratch/page.html")
    page = (folder / "page.html").read_text()
    assert code == 0 and "&lt;img onerror" in page and "&lt;script&gt;" in page
    assert "<script" not in page.lower() and "<img onerror" not in page


def test_nothing_is_fetched_without_https_and_a_checksum(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(store.DataError, match="only https"):
        store.download("http://example.org/a.zip", tmp_path / "a.zip", "0" * 40)
    page = tmp_path / "page"
    page.write_bytes(b"not what was asked for")
    monkeypatch.setattr(store.urllib.request, "urlopen", lambda *_, **__: page.open("rb"))
    with pytest.raises(store.DataError, match="it was discarded"):
        store.download("https://example.org/a.zip", tmp_path / "a.zip", "0" * 40)
    assert {path.name for path in tmp_path.iterdir()} == {"page"}
    assert os.listdir(tmp_path) == ["page"]


def test_state_tells_a_changed_file(place: Place) -> None:
    before = state(place)
    (place.root / "treasure" / "more.txt").write_text("x")
    assert state(place) != before
    (place.root / "treasure" / "more.txt").unlink()
    assert state(place) == before
