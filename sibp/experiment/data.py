"""The built-in data sets, held in memory, with splits that do not depend on a run's seed.

digits         scikit-learn's 1,797 embedded 8 x 8 images, pixel / 16; 1,297 train, 250 validation, 250 test
mnist          pixel / 255; 55,000 train, the last 5,000 training images for validation, 10,000 test
fashion_mnist  as mnist
cifar10        pixel / 255, then each channel standardised by its mean and standard deviation over the training
               part; 45,000 train, the last 5,000 training images for validation, 10,000 test
python_docs    the text of `sibp.experiment.characters`, windows of 64 characters; 7,173 train, 398 validation, 398 test
"""

import hashlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sibp.experiment import characters
from sibp.experiment.seeding import derived_seed
from sibp.experiment.settings import known_builder
from sibp.runs.errors import UserError

VALIDATION = 5000
DIGITS_SPLIT_SEED = 20200206  # fixed, so that every run of every seed has the same digits in each part

IDX_FILES = tuple(f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1"))
CIFAR_FILES = ("batches.meta", *(f"data_batch_{i}" for i in range(1, 6)), "test_batch")
FILES = {
    "mnist": [f"MNIST/raw/{file}" for file in IDX_FILES],
    "fashion_mnist": [f"FashionMNIST/raw/{file}" for file in IDX_FILES],
    "cifar10": [f"cifar-10-batches-py/{file}" for file in CIFAR_FILES],
}
MNIST_MD5 = {
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}
FASHION_MNIST_MD5 = {
    "train-images-idx3-ubyte": "f4a8712d7a061bf5bd6d2ca38dc4d50a",
    "train-labels-idx1-ubyte": "9018921c3c673c538a1fc5bad174d6f9",
    "t10k-images-idx3-ubyte": "8181f5470baa50b63fa0f6fddb340f0a",
    "t10k-labels-idx1-ubyte": "15d484375f8d13e6eb1aabb0c3f46965",
}


@dataclass(frozen=True)
class Split:
    """Inputs and labels of the same samples.

    Images (N, channels, height, width) or (N, pixels), float32, with labels (N,), int64; or windows of a text
    (N, characters), int64, whose labels, of the same shape, are the next characters.
    """

    inputs: torch.Tensor
    labels: torch.Tensor

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Data:
    """A data set in memory: its three splits, one image's shape, the number of classes and a digest of the raw bytes.

    For a text, `letters` is the alphabet, `classes` its size and `shape` that of a window.
    """

    train: Split
    val: Split
    test: Split
    shape: tuple[int, ...]
    classes: int
    sha256: str
    letters: str = ""

    def prepared(self, flat: bool, device: torch.device) -> "Data":
        """The same data in a model's input form and on its device.

        Args:
            flat: whether to flatten images to (pixels,).
            device: where to put them.

        Returns:
            A new data set; ``shape`` remains that of an unflattened image.
        """

        def move(split: Split) -> Split:
            inputs = split.inputs.flatten(1) if flat else split.inputs
            return Split(inputs.to(device), split.labels.to(device))

        return replace(self, train=move(self.train), val=move(self.val), test=move(self.test))

    def first(self, count: int | None) -> "Data":
        """The same data with only the first training samples.

        Args:
            count: their number; None for all.

        Returns:
            Itself for None, else a copy.

        Raises:
            UserError: there are fewer.
        """
        if count is None:
            return self
        if count > len(self.train):
            raise UserError(f"train_limit={count} is more than the {len(self.train)} training samples: give fewer.")
        return replace(self, train=Split(self.train.inputs[:count], self.train.labels[:count]))

    def with_label_noise(self, fraction: float, seed: int) -> "Data":
        """The same data with some wrong training labels, selected and drawn by the seed.

        Args:
            fraction: of the training images, rounded to a whole number.
            seed: the run's.

        Returns:
            A new data set; validation and test labels are unchanged.

        Raises:
            UserError: the data are a text.
        """
        if fraction and self.letters:
            raise UserError(f"label_noise={fraction} is for labels of images: leave it out for a text.")
        generator = torch.Generator().manual_seed(derived_seed(seed, "label noise"))
        count = len(self.train)
        wrong = torch.randperm(count, generator=generator)[: round(fraction * count)]
        labels = self.train.labels.clone()
        shift = torch.randint(1, self.classes, labels[wrong].shape, generator=generator)
        labels[wrong] = (labels[wrong] + shift) % self.classes
        return replace(self, train=Split(self.train.inputs, labels))


Builder = Callable[[Path, bool], Data]


def load_data(config: dict[str, Any], data_root: str, download: bool) -> Data:
    """Load the data set named in a config.

    Args:
        config: the ``dataset`` group: ``name``.
        data_root: a folder in torchvision's layout (``MNIST/raw``, ``cifar-10-batches-py``, ...).
        download: fetch missing files.

    Returns:
        The data, on the CPU, images of shape (channels, height, width).

    Raises:
        UserError: unknown data set, missing or corrupted files.
    """
    builder = known_builder("dataset", DATASETS, config)
    files = [Path(data_root).resolve() / file for file in FILES.get(config["name"], ())]
    stamps = tuple((stat.st_size, stat.st_mtime_ns) for stat in (f.stat() for f in files if f.is_file()))
    return _load(builder, Path(data_root), download, (*files, *stamps))


@lru_cache(maxsize=1)
def _load(builder: Builder, data_root: Path, download: bool, files: tuple[object, ...]) -> Data:
    """The builder's result, cached so that a sweep's runs read their files once unless these change."""
    return builder(data_root, download)


def _digits(data_root: Path, download: bool) -> Data:
    """The digits of scikit-learn; they need neither a folder nor a network."""
    rows = np.loadtxt(_digits_file(), delimiter=",")
    images, labels = torch.from_numpy(rows[:, :-1].reshape(-1, 8, 8).copy()), torch.from_numpy(rows[:, -1]).long()
    generator = torch.Generator().manual_seed(DIGITS_SPLIT_SEED)
    order = torch.randperm(len(labels), generator=generator)
    pixels = (images / 16).float().unsqueeze(1)
    parts = [Split(pixels[part], labels[part]) for part in order.split([1297, 250, 250])]
    return Data(*parts, shape=(1, 8, 8), classes=10, sha256=digest(images, labels))


def _digits_file() -> Path:
    """Scikit-learn's file, located without importing scikit-learn, which would dominate the time of a short run."""
    spec = importlib.util.find_spec("sklearn")
    folders = spec.submodule_search_locations if spec else None
    path = Path(next(iter(folders or ["sklearn"]))) / "datasets" / "data" / "digits.csv.gz"
    if not path.is_file():
        raise UserError(f"The digits are missing: {path} comes with scikit-learn; reinstall scikit-learn.")
    return path


def _mnist(data_root: Path, download: bool) -> Data:
    """MNIST."""
    return _idx("MNIST", data_root, download, MNIST_MD5)


def _fashion_mnist(data_root: Path, download: bool) -> Data:
    """Fashion-MNIST."""
    return _idx("FashionMNIST", data_root, download, FASHION_MNIST_MD5)


def _idx(name: str, data_root: Path, download: bool, md5: dict[str, str]) -> Data:
    folder = data_root / name / "raw"

    def read(train: bool) -> tuple[torch.Tensor, torch.Tensor]:
        datasets = _torchvision()
        if download:
            getattr(datasets, name)(str(data_root), train=train, download=True)
        images, labels = (folder / file for file in (IDX_FILES[:2] if train else IDX_FILES[2:]))
        # torchvision's class would prefer unchecked files of old versions in processed/.
        return datasets.mnist.read_image_file(str(images)).unsqueeze(1), datasets.mnist.read_label_file(str(labels))

    (x, y), (x_test, y_test) = _read_parts(name, folder, IDX_FILES, md5, read, download, (60000, 10000), (1, 28, 28))
    parts = [Split(images.float() / 255, labels) for images, labels in _split(x, y, x_test, y_test)]
    return Data(*parts, shape=tuple(x.shape[1:]), classes=10, sha256=digest(x, y, x_test, y_test))


def _cifar10(data_root: Path, download: bool) -> Data:
    """CIFAR-10; torchvision checks the published MD5 sums before reading."""
    folder = data_root / "cifar-10-batches-py"

    def read(train: bool) -> tuple[torch.Tensor, torch.Tensor]:
        part = _torchvision().CIFAR10(str(data_root), train=train, download=download)
        images = torch.from_numpy(np.ascontiguousarray(part.data.transpose(0, 3, 1, 2)))
        return images, torch.tensor(part.targets)

    (x, y), (x_test, y_test) = _read_parts(
        "CIFAR-10", folder, CIFAR_FILES, {}, read, download, (50000, 10000), (3, 32, 32)
    )
    raw = _split(x, y, x_test, y_test)
    pixels = raw[0][0].float() / 255
    std, mean = torch.std_mean(pixels, dim=(0, 2, 3), correction=0, keepdim=True)
    parts = [Split((images.float() / 255 - mean) / std, labels) for images, labels in raw]
    return Data(*parts, shape=(3, 32, 32), classes=10, sha256=digest(x, y, x_test, y_test))


def _python_docs(data_root: Path, download: bool) -> Data:
    """The text included in the package."""
    text = characters.read_text()
    letters = "".join(sorted(set(text)))
    codes = characters.encode(text, letters)
    seen, following = characters.windows(codes)
    train, val, test = (Split(seen[part], following[part]) for part in characters.parts(len(seen)))
    return Data(train, val, test, (characters.WINDOW,), len(letters), digest(codes), letters)


DATASETS: dict[str, Builder] = {
    "digits": _digits,
    "mnist": _mnist,
    "fashion_mnist": _fashion_mnist,
    "cifar10": _cifar10,
    "python_docs": _python_docs,
}

Part = tuple[torch.Tensor, torch.Tensor]


def _read_parts(
    name: str,
    folder: Path,
    files: tuple[str, ...],
    md5: dict[str, str],
    read: Callable[[bool], Part],
    download: bool,
    counts: tuple[int, int],
    shape: tuple[int, ...],
) -> tuple[Part, Part]:
    """Read the training and test parts, or say in one sentence which file is at fault."""
    if not download:
        for file in files:
            if not (folder / file).is_file():
                raise UserError(
                    f"{name} is missing: {folder} lacks {file} (it needs {', '.join(files)}); "
                    "set data_root=... to the folder that holds them, or add download=true to fetch them."
                )
    for file, expected in md5.items():
        path = folder / file
        if path.is_file() and hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest() != expected:
            raise UserError(_corrupted(path, "it does not have its published MD5 sum"))
    parts = []
    for train, count in zip((True, False), counts, strict=True):
        try:
            images, labels = read(train)
        except UserError:
            raise
        except Exception as error:  # on a bad file, torchvision passes on any error of its reader
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UserError(_corrupted(folder, reason)) from error
        if problem := _problem(images, labels, count, shape):
            raise UserError(_corrupted(folder, problem))
        parts.append((images, labels))
    return parts[0], parts[1]


def _problem(images: torch.Tensor, labels: torch.Tensor, count: int, shape: tuple[int, ...]) -> str | None:
    """The fault of a part of an image set, or None."""
    if len(images) != count or len(labels) != count:
        return f"it does not hold {count} images with a label each"
    if tuple(images.shape[1:]) != shape:
        return f"its images are {' x '.join(map(str, images.shape[1:]))}, not {' x '.join(map(str, shape))}"
    if not 0 <= int(labels.min()) <= int(labels.max()) <= 9:
        return "its labels are not all from 0 to 9"
    if images.min() == images.max():
        return "all its pixels are the same"
    return None


def _torchvision() -> Any:
    """Torchvision's data sets, imported lazily, since the installed torchvision may not match torch.

    Raises:
        UserError: it cannot be imported.
    """
    try:
        from torchvision import datasets
    except Exception as error:  # a build for another torch fails with various errors
        reason = " ".join(str(error).split())
        raise UserError(
            f"torchvision reads this data set and cannot be imported ({reason}): install the version that matches "
            f"torch {torch.__version__}, or choose dataset=digits."
        ) from error
    return datasets


def _corrupted(path: Path, reason: str) -> str:
    return (
        f"{path} cannot be read ({reason}): delete it, then put the original back or add download=true to "
        "fetch it again."
    )


def _split(x: torch.Tensor, y: torch.Tensor, x_test: torch.Tensor, y_test: torch.Tensor) -> list[Part]:
    return [(x[:-VALIDATION], y[:-VALIDATION]), (x[-VALIDATION:], y[-VALIDATION:]), (x_test, y_test)]


def digest(*tensors: torch.Tensor) -> str:
    """A digest of raw data, by which reports check that runs used the same data.

    Args:
        *tensors: images and labels as read, on the CPU.

    Returns:
        SHA-256 in hexadecimal.
    """
    found = hashlib.sha256()
    for tensor in tensors:
        found.update(np.ascontiguousarray(tensor.numpy()).tobytes())
    return found.hexdigest()
