"""Task sources: where episodes come from."""

from metalearn.component import TaskComponent
from metalearn.tasks import glyphs, omniglot, store
from metalearn.tasks.alphabets import OmniglotAlphabets
from metalearn.tasks.arrays import Arrays
from metalearn.tasks.digits import Digits
from metalearn.tasks.given import Given
from metalearn.tasks.glyphs import Glyphs
from metalearn.tasks.image_folder import ImageFolder
from metalearn.tasks.landscapes import Landscapes
from metalearn.tasks.logistic import Logistic
from metalearn.tasks.mixture import Mixture
from metalearn.tasks.omniglot import Omniglot
from metalearn.tasks.prepared import cifar100, clinc150, icons, spectra, tides
from metalearn.tasks.prepared.cifar import CIFARFS, FC100
from metalearn.tasks.prepared.clinc150 import Clinc150
from metalearn.tasks.prepared.icons import Icons
from metalearn.tasks.prepared.published_folders import (
    CUB200,
    MiniImageNet,
    TieredImageNet,
    data_set,
)
from metalearn.tasks.prepared.spectra import Spectra
from metalearn.tasks.prepared.tides import Tides
from metalearn.tasks.quadratics import Quadratics
from metalearn.tasks.regression.harmonics import Harmonics
from metalearn.tasks.regression.sinusoid_line import SinusoidLine
from metalearn.tasks.sinusoid import Sinusoid
from metalearn.tasks.tables.real import RealTables
from metalearn.tasks.tables.structural import Tables

TASKS: dict[str, type[TaskComponent]] = {
    "sinusoid": Sinusoid,
    "harmonics": Harmonics,
    "sinusoid_line": SinusoidLine,
    "glyphs": Glyphs,
    "omniglot": Omniglot,
    "omniglot_alphabets": OmniglotAlphabets,
    "image_folder": ImageFolder,
    "digits": Digits,
    "quadratics": Quadratics,
    "landscapes": Landscapes,
    "logistic": Logistic,
    "arrays": Arrays,
    "cifar_fs": CIFARFS,
    "fc100": FC100,
    "mini_imagenet": MiniImageNet,
    "tiered_imagenet": TieredImageNet,
    "cub200": CUB200,
    "icons": Icons,
    "clinc150": Clinc150,
    "tides": Tides,
    "spectra": Spectra,
    "tables": Tables,
    "real_tables": RealTables,
    "mixture": Mixture,
}

DATA_SETS: dict[str, store.DataSet] = {
    "omniglot": omniglot.DATA_SET,
    "glyphs": glyphs.DATA_SET,
    "cifar100": cifar100.DATA_SET,
    "mini_imagenet": data_set(MiniImageNet(), "100 classes of ImageNet, 600 images each"),
    "tiered_imagenet": data_set(TieredImageNet(), "608 classes of ImageNet in 34 categories"),
    "cub200": data_set(CUB200(), "200 species of birds, 11,788 photos"),
    "icons": icons.FILE.data_set("310 concepts drawn by 87 designer families, 64x64"),
    "clinc150": clinc150.FILE.data_set("150 intents of short requests, as sentence vectors"),
    "tides": tides.FILE.data_set("harmonic constants of 3,072 tide stations"),
    "spectra": spectra.FILE.data_set("reflectance curves of 4,161 soils"),
}
# Sources whose images are those of a data set of another name.
DATA_SET_OF = {"omniglot_alphabets": "omniglot", "cifar_fs": "cifar100", "fc100": "cifar100"}

__all__ = [
    "CIFARFS",
    "CUB200",
    "DATA_SETS",
    "DATA_SET_OF",
    "FC100",
    "TASKS",
    "Arrays",
    "Clinc150",
    "Digits",
    "Given",
    "Glyphs",
    "Harmonics",
    "Icons",
    "ImageFolder",
    "Landscapes",
    "Logistic",
    "MiniImageNet",
    "Mixture",
    "Omniglot",
    "OmniglotAlphabets",
    "Quadratics",
    "RealTables",
    "Sinusoid",
    "SinusoidLine",
    "Spectra",
    "Tables",
    "Tides",
    "TieredImageNet",
]
