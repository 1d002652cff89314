"""Omniglot (Lake et al., Science 350, 2015): 1,623 characters of 50 alphabets, 20 drawings each."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from PIL import Image
from pydantic import model_validator

from metalearn import rng
from metalearn.component import option
from metalearn.errors import ConfigError, DataError
from metalearn.tasks import images, store

FILE = "omniglot28.npz"
CLASSES, BACKGROUND, DRAWINGS, SIZE = 1623, 964, 20, 28
IMAGES_SHA256 = (
    "6dfd492ef340d25783f1b7457d92c74311ca80afdb18d95de9094f9345689912"  # of `images` in C order
)
# of the 105x105 drawings, packed
INK_SHA256 = "75a36f7ce605ee617d0c45021613841aec979e079f71594e885aba52a7c003ce"
PUBLISHER = "https://raw.githubusercontent.com/brendenlake/omniglot/057f034baf2ecb8530bc5710e5a23584d2a519cc/python/"
# name at the publisher: git blob id in that commit, by which what was fetched is known to be whole
ARCHIVES = {
    "images_background.zip": "71fd167eb6fdd312049395fbd247147a4b234231",
    "images_evaluation.zip": "8ccde0ed1565641f1fa8c57cdc6ff634e15fc5c1",
}
LAKE_SEED = (
    0  # of the tenth of the background classes that stands in for Lake's missing validation classes
)
_SIZES = {  # classes of train, valid, test
    "vinyals": (1028, 172, 423),
    "lake": (BACKGROUND - BACKGROUND // 10, BACKGROUND // 10, CLASSES - BACKGROUND),
    "random": (1100, 100, 423),
}

_PUBLISHED_SIZE = 105
_MEMBER = re.compile(r"([^/]+)/character(\d+)/(\d+)_(\d+)\.png")
_VINYALS_VALID = ("Armenian", "Bengali", "Early_Aramaic", "Hebrew", "Mkhedruli_(Georgian)")
_VINYALS_TEST = (
    *("Kannada", "Keble", "Malayalam", "Manipuri", "Mongolian", "Old_Church_Slavonic_(Cyrillic)"),
    *("Oriya", "Sylheti", "Syriac_(Serto)", "Tengwar", "Tibetan", "ULOG"),
)

Rotations = Literal["none", "per_task", "per_task_train", "classes_train", "classes"]


class Omniglot(images.ImageTask):
    """Handwritten characters of 50 alphabets, 28x28, after Lake et al. 2015.

    Splits: `vinyals` 1028 / 172 / 423 classes, the published list of Vinyals et al. 2016; `lake`
    background / evaluation alphabets, 868 / 96 / 659, validation being a tenth of the background
    classes drawn with seed 0; `random` 1100 / 100 / 423 characters drawn with `split_seed`, as
    cbfinn/maml does. Under `random` without a `split_seed` build's seed is used, so give every
    split of one run the same one; `resolve(seed)` writes it down.

    Rotations, conventions in which published figures differ: `per_task` a random multiple of 90
    degrees for each class of each task, in training and test (MAML, iMAML); `per_task_train` the
    same in training only (MAML++); `classes_train` each rotation is a separate class, in training
    only (Reptile); `classes` in every split (ProtoNet).

    `train_on_valid` trains on the validation classes too, as the last run of Snell et al. 2017 and
    Nichol et al. 2018 does: the number of steps is then fixed before, and `evaluate.checkpoint` is
    `last`.

    Images are [1, 28, 28] in 0..1, ink bright. Raises ConfigError, DataError.

    >>> source = ml.tasks.Omniglot(ways=5, shots=1).build()
    >>> source.sample(ml.fold_in(0), num_tasks=4).support.x.shape
    torch.Size([4, 5, 1, 28, 28])
    """

    split_fields: ClassVar[tuple[str, ...]] = ("split_scheme", "split_seed")
    source: Literal["omniglot"] = option("omniglot", "The task source.")
    split_scheme: Literal["vinyals", "lake", "random"] = option(
        "vinyals", "Split of the characters into training, validation and test."
    )
    split_seed: int | None = option(
        None, "Seed of the random split; null: 0 in every run, whatever its seed.", ge=0
    )
    train_on_valid: bool = option(
        False,
        "Also train on the validation classes, which are then not used for selection.",
        acts="train",
        later=True,
    )
    rotations: Rotations = option(
        "none", "Augmentation by quarter turns (published protocols differ)."
    )

    @model_validator(mode="after")
    def _check_turns(self) -> Omniglot:
        images.check_turned_classes(self.rotations, self.augment)
        return self

    @property
    def trains_on_validation(self) -> bool:
        return self.train_on_valid

    def resolve(self, seed: int) -> Omniglot:
        """The task with an explicit split seed, for a resolved config."""
        if self.split_scheme != "random" or self.split_seed is not None:
            return self
        return self.model_copy(update={"split_seed": seed})

    def build(
        self,
        split: str = "train",
        seed: int = 0,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> images.ImageSource:
        """The source of one split; its `facts` hold the scheme and the seed of the split."""
        turned_classes = self.rotations == "classes" or (
            self.rotations == "classes_train" and split == "train"
        )
        self._check(split, turned_classes)
        data = load()
        rows = self._rows(data, split, self.resolve(seed).split_seed or 0)
        pool = torch.from_numpy(data["images"][rows]).unsqueeze(2)
        source = images.image_source(
            images.four_rotations(pool) if turned_classes else pool,
            self,
            split=split,
            device=device,
            dtype=dtype,
            rotate_per_task=self.rotations == "per_task"
            or (self.rotations == "per_task_train" and split == "train"),
            data_sha256=str(data["sha256"]),
        )
        source.facts["split_scheme"] = self.split_scheme
        if self.split_scheme != "vinyals":
            split_seed = (
                self.resolve(seed).split_seed if self.split_scheme == "random" else LAKE_SEED
            )
            source.facts["split_seed"] = int(split_seed or 0)
        if self.train_on_valid:
            source.facts["train_on_valid"] = True
        return source

    def _pools(self, split: str) -> tuple[str, ...]:
        """Return the splits whose classes `split` uses."""
        return ("train", "valid") if self.train_on_valid and split == "train" else (split,)

    def _rows(self, data: Any, split: str, seed: int) -> Any:
        """Return the rows of the prepared file that `split` uses, sorted."""
        parts = split_classes(data, self.split_scheme, seed)
        return np.sort(np.concatenate([parts[name] for name in self._pools(split)]))

    def _check(self, split: str, turned_classes: bool) -> None:
        """Raise all problems at once; the sizes are known without the file."""
        problems = images.split_problem(split)
        if not problems:
            sizes = dict(zip(images.SPLITS, _SIZES[self.split_scheme]))
            classes = sum(sizes[name] for name in self._pools(split)) * (4 if turned_classes else 1)
            problems = images.episode_problems(
                self.ways, self.shots, self.queries, classes, DRAWINGS, split
            )
        if not prepared_path().exists():
            raise DataError(*problems, *store.missing(FILE, "omniglot").problems)
        if problems:
            raise ConfigError(*problems)


def prepared_path() -> Path:
    """Return the path of the prepared file."""
    return store.data_root() / FILE


def load() -> dict[str, Any]:
    """Return the arrays of the prepared file and the `sha256` of its images; raises DataError."""
    path = prepared_path()
    if not path.exists():
        raise store.missing(FILE, "omniglot")
    arrays = store.load_npz(path)
    return {**arrays, "sha256": _check_arrays(path, arrays)}


def _check_arrays(path: Path, arrays: Any) -> str:
    """Return the SHA-256 of the images; raises DataError for a file with other arrays."""
    expected = {
        "images": ((CLASSES, DRAWINGS, SIZE, SIZE), np.dtype(np.uint8)),
        "is_evaluation": ((CLASSES,), np.dtype(bool)),
        "vinyals_split": ((CLASSES,), np.dtype(np.int8)),
    }
    for name, (shape, dtype) in expected.items():
        array = arrays.get(name)
        if array is None or array.shape != shape or array.dtype != dtype:
            form = "missing" if array is None else f"{array.dtype} {array.shape}"
            text = f"array {name!r} is {form}, must be {dtype} {shape}; prepare omniglot again"
            raise DataError((str(path), text))
    return store.sha256_of_arrays(arrays["images"])


def split_classes(data: Any, scheme: str, seed: int) -> dict[str, Any]:
    """Return sorted rows of the prepared file by split: {"train": [classes], "valid": ..., ...}."""
    if scheme == "vinyals":
        return {
            name: np.flatnonzero(data["vinyals_split"] == code)
            for code, name in enumerate(images.SPLITS)
        }
    if scheme == "lake":
        background = np.flatnonzero(~data["is_evaluation"])
        order = rng.permutation(rng.fold_in(LAKE_SEED, "omniglot lake"), len(background)).numpy()
        num_valid = len(background) // 10
        return {
            "train": np.sort(background[order[num_valid:]]),
            "valid": np.sort(background[order[:num_valid]]),
            "test": np.flatnonzero(data["is_evaluation"]),
        }
    order = rng.permutation(rng.fold_in(seed, "omniglot random"), CLASSES).numpy()
    train, valid, _ = _SIZES["random"]
    parts = np.split(order, [train, train + valid])
    return {name: np.sort(part) for name, part in zip(images.SPLITS, parts, strict=True)}


class Drawings(NamedTuple):
    """One character as published."""

    is_evaluation: bool
    alphabet: str
    character: int  # 1-based, inside its alphabet
    file_number: int
    ink: store.Array  # bool [drawers, 105, 105], True where there is ink


def prepare() -> list[str]:
    """Make the prepared file from the publisher's archives; returns lines for the user.

    Archives that are missing are downloaded."""
    target = prepared_path()
    if target.exists():
        return [f"{target} is already there; nothing was fetched", *verify()]
    archives = [target.parent / name for name in ARCHIVES]
    lines = []
    for archive in archives:
        if not archive.exists():
            store.download(PUBLISHER + archive.name, archive, ARCHIVES[archive.name])
            lines.append(f"fetched {archive}")
    published = all(store.git_blob_id(archive) == ARCHIVES[archive.name] for archive in archives)
    arrays, ink_sha256 = convert(read_archives(*archives))
    if not published and ink_sha256 != INK_SHA256:
        text = f"{' and '.join(ARCHIVES)} are not the publisher's; move them away and prepare"
        raise DataError((str(target.parent), f"{text} omniglot again"))
    try:
        store.write_npz(target, arrays)
    except OSError as error:
        raise store.unwritable(target, error) from error
    return [*lines, f"wrote {target}", *verify()]


def verify() -> list[str]:
    """Check the prepared file's form, class counts and pixels; lines for the user, or DataError."""
    data = load()
    counts = {name: len(rows) for name, rows in split_classes(data, "vinyals", 0).items()}
    if (
        tuple(counts.values()) != _SIZES["vinyals"]
        or int(data["is_evaluation"].sum()) != CLASSES - BACKGROUND
    ):
        why = f"classes of the splits are {counts}; prepare omniglot again"
        raise DataError((str(prepared_path()), why))
    if data["sha256"] != IMAGES_SHA256:
        text = f"pixels have sha256 {data['sha256']}, must be {IMAGES_SHA256}; move the file"
        raise DataError((str(prepared_path()), f"{text} away and prepare omniglot"))
    return [
        f"{prepared_path()}: {CLASSES} classes of {DRAWINGS} drawings, pixels as published "
        f"(sha256 {IMAGES_SHA256})",
        f"file sha256 {store.sha256_of_file(prepared_path())}",
    ]


def read_archives(background: Path, evaluation: Path) -> list[Drawings]:
    """The characters of the two zip archives, sorted: background first; raises DataError."""
    all_characters = []
    for is_evaluation, path in enumerate((background, evaluation)):
        characters: dict[tuple[str, int, int], dict[int, store.Array]] = {}
        for name, content in store.archive_members(path, ".png"):
            parsed = _MEMBER.fullmatch("/".join(name.parts[-3:]))
            if parsed is None:
                text = f"contains {str(name)!r}, not ALPHABET/characterNN/NNNN_NN.png"
                raise DataError((str(path), text))
            alphabet, character, file_number, drawer = parsed.groups()
            character_key = (alphabet, int(character), int(file_number))
            characters.setdefault(character_key, {})[int(drawer)] = _ink(path, str(name), content)
        for character_key, drawings in sorted(characters.items()):
            ink = np.stack([drawings[drawer] for drawer in sorted(drawings)])
            all_characters.append(Drawings(bool(is_evaluation), *character_key, ink))
    return all_characters


def _ink(path: Path, name: str, content: bytes) -> store.Array:
    """One drawing as bool [105, 105], True where there is ink, which is black in the files."""
    try:
        with Image.open(io.BytesIO(content), formats=("PNG",)) as image:
            grey = np.asarray(image.convert("L"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError((str(path), f"{name}: not a readable PNG ({error})")) from error
    if grey.shape != (_PUBLISHED_SIZE, _PUBLISHED_SIZE):
        raise DataError((str(path), f"{name}: {grey.shape[1]}x{grey.shape[0]}, must be 105x105"))
    return np.asarray(grey < 128)


def shrink(ink: store.Array) -> store.Array:
    """bool [A, 105, 105] -> uint8 [A, 28, 28], ink bright, by Pillow's Lanczos filter.

    The filter acts on 8-bit grey. Older code resizes the one-bit file, which Pillow does by nearest
    neighbour, with other pixels."""
    grey = ink.astype(np.uint8) * 255
    small = [
        Image.fromarray(drawing).resize((SIZE, SIZE), Image.Resampling.LANCZOS) for drawing in grey
    ]
    return np.stack([np.asarray(image, dtype=np.uint8) for image in small])


def convert(characters: list[Drawings]) -> tuple[dict[str, store.Array], str]:
    """The arrays of the prepared file, and the SHA-256 of the packed drawings; raises DataError."""
    short = [
        f"{c.alphabet} {c.character} ({len(c.ink)})" for c in characters if len(c.ink) != DRAWINGS
    ]
    if short:
        text = f"{len(short)} characters without their {DRAWINGS} drawings: {', '.join(short[:5])}"
        raise DataError(("archives", text))
    evaluation = sum(c.is_evaluation for c in characters)
    if (len(characters), evaluation) != (CLASSES, CLASSES - BACKGROUND):
        text = f"{len(characters) - evaluation} background and {evaluation} evaluation"
        raise DataError(("archives", f"{text} characters, must be 964 and 659"))
    alphabets = list(dict.fromkeys(c.alphabet for c in characters))
    packed = np.stack([np.packbits(c.ink.reshape(DRAWINGS, -1), axis=-1) for c in characters])
    arrays = {
        "images": np.stack([shrink(c.ink) for c in characters]),
        "alphabets": np.array(alphabets),
        "alphabet_index": np.array(
            [alphabets.index(c.alphabet) for c in characters], dtype=np.int16
        ),
        "character": np.array([c.character for c in characters], dtype=np.int16),
        "file_number": np.array([c.file_number for c in characters], dtype=np.int16),
        "is_evaluation": np.array([c.is_evaluation for c in characters]),
        "drawer": np.arange(1, DRAWINGS + 1, dtype=np.uint8),
        "vinyals_split": np.array(
            [vinyals_code(c.alphabet, c.character) for c in characters], dtype=np.int8
        ),
    }
    return arrays, store.sha256_of_arrays(packed)


def vinyals_code(alphabet: str, character: int) -> int:
    """0 train, 1 validation, 2 test, by alphabet; the last four of Gurmukhi are test classes."""
    if alphabet in _VINYALS_VALID:
        return 1
    return 2 if alphabet in _VINYALS_TEST or (alphabet == "Gurmukhi" and character > 41) else 0


DATA_SET = store.DataSet(
    "1,623 handwritten characters of 50 alphabets, 20 drawings each, 28x28 (Lake et al. 2015)",
    files=FILE,
    absent="not prepared; run `metalearn data prepare omniglot`",
    on_use=False,
    prepare=prepare,
    verify=verify,
)
