"""Data sets: split sizes, scaling, and one sentence for every faulty file."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sibp.experiment.data import CIFAR_FILES, DATASETS, IDX_FILES, Split, load_data
from sibp.experiment.runner import run
from sibp.runs.errors import UserError


def load(name: str, root: Path):
    return load_data({"name": name}, str(root), download=False)


def write_files(folder: Path, files: tuple[str, ...]) -> None:
    folder.mkdir(parents=True)
    for file in files:
        (folder / file).write_bytes(b"not a data set")


def test_digits_have_a_fixed_split(tmp_path):
    data, again = load("digits", tmp_path), load("digits", tmp_path / "elsewhere")  # not from a cache
    assert [len(part) for part in (data.train, data.val, data.test)] == [1297, 250, 250]
    assert data.train.inputs.shape[1:] == data.shape == (1, 8, 8)
    assert data.train.inputs.dtype == torch.float32
    assert (data.train.inputs.min(), data.train.inputs.max()) == (0, 1)
    assert torch.equal(data.val.inputs, again.val.inputs)
    whole = torch.cat([part.inputs.flatten(1) for part in (data.train, data.val, data.test)])
    assert len(whole.unique(dim=0)) == 1797  # no image is in two parts: all of the originals differ
    assert data.test.labels.unique().tolist() == list(range(10))


def test_flat_images_are_vectors_of_the_same_pixels(tmp_path):
    data = load("digits", tmp_path)
    flat = data.prepared(flat=True, device=torch.device("cpu"))
    assert flat.train.inputs.shape == (1297, 64)
    assert torch.equal(flat.train.inputs[5].view(1, 8, 8), data.train.inputs[5])
    assert flat.shape == data.shape


def test_training_can_be_limited_to_the_first_samples(tmp_path):
    data = load_data({"name": "digits"}, str(tmp_path), False)
    few = data.first(30)
    assert torch.equal(few.train.inputs, data.train.inputs[:30])
    assert torch.equal(few.train.labels, data.train.labels[:30])
    assert (len(few.val), len(few.test)) == (250, 250)
    assert len(data.first(None).train) == 1297
    with pytest.raises(UserError, match="train_limit=1298 is more than the 1297 training samples"):
        data.first(1298)


def test_a_part_without_samples_is_refused_by_name_where_it_is_evaluated(make_config, monkeypatch):
    digits = DATASETS["digits"]
    for part, name in (("val", "validation"), ("test", "test")):

        def empty(*args, part=part):
            data = digits(*args)
            return replace(data, **{part: Split(data.val.inputs[:0], data.val.labels[:0])})

        monkeypatch.setitem(DATASETS, "digits", empty)
        outcome = run(make_config())
        assert (outcome.wrong_input, outcome.folder.path.exists()) == (True, False)
        assert f"dataset=digits has no {name} samples" in outcome.message
    assert run(make_config(evaluate_test=False, max_steps=1)).status == "completed"


def test_label_noise_changes_the_given_fraction_of_training_labels_only(tmp_path):
    data = load("digits", tmp_path)
    noisy, again, other = (data.with_label_noise(0.4, seed) for seed in (7, 7, 8))
    wrong = noisy.train.labels != data.train.labels
    assert wrong.sum() == round(0.4 * 1297)
    assert set(noisy.train.labels[wrong].tolist()) == set(range(10))
    assert torch.equal(noisy.train.labels, again.train.labels)
    assert not torch.equal(wrong, other.train.labels != data.train.labels)
    for part in ("val", "test"):
        assert torch.equal(getattr(noisy, part).labels, getattr(data, part).labels)
    assert torch.equal(noisy.train.inputs, data.train.inputs)
    assert torch.equal(data.with_label_noise(0.0, 7).train.labels, data.train.labels)


def test_a_sweep_reads_the_files_once_unless_they_change(tmp_path, monkeypatch):
    file = tmp_path / "MNIST" / "raw" / IDX_FILES[0]
    file.parent.mkdir(parents=True)
    file.write_text("first")
    read = []
    monkeypatch.setitem(DATASETS, "mnist", lambda root, download: read.append((root / file).read_text()) or len(read))
    assert [load("mnist", tmp_path) for _ in range(3)] == [1, 1, 1]
    file.write_text("second, and longer")
    assert [load("mnist", tmp_path) for _ in range(2)] == [2, 2]
    assert read == ["first", "second, and longer"]


@pytest.mark.parametrize(
    ("name", "folder", "missing"),
    [
        ("mnist", "MNIST/raw", IDX_FILES[0]),
        ("fashion_mnist", "FashionMNIST/raw", IDX_FILES[0]),
        ("cifar10", "cifar-10-batches-py", CIFAR_FILES[0]),
    ],
)
def test_missing_files_are_named_with_the_way_out(tmp_path, name, folder, missing):
    with pytest.raises(UserError) as error:
        load(name, tmp_path)
    for part in (str(tmp_path / folder), missing, "data_root=", "download=true"):
        assert part in str(error.value)


def test_a_single_missing_file_is_named(tmp_path):
    write_files(tmp_path / "MNIST/raw", IDX_FILES[:-1])
    with pytest.raises(UserError, match=f"lacks {IDX_FILES[-1]}"):
        load("mnist", tmp_path)


@pytest.mark.parametrize(
    ("name", "folder", "files"),
    [
        ("mnist", "MNIST/raw", IDX_FILES),
        ("fashion_mnist", "FashionMNIST/raw", IDX_FILES),
        ("cifar10", "cifar-10-batches-py", CIFAR_FILES),
    ],
)
def test_damaged_files_are_named_with_the_way_out(tmp_path, name, folder, files):
    write_files(tmp_path / folder, files)
    with pytest.raises(UserError, match="cannot be read") as error:
        load(name, tmp_path)
    assert folder in str(error.value)
    assert "delete it" in str(error.value)


def test_a_single_wrong_byte_of_mnist_is_detected(tmp_path, data_root):
    folder = tmp_path / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for file in IDX_FILES:
        (folder / file).write_bytes((data_root / "MNIST" / "raw" / file).read_bytes())
    content = bytearray((folder / IDX_FILES[2]).read_bytes())
    content[5000] ^= 1
    (folder / IDX_FILES[2]).write_bytes(content)
    with pytest.raises(UserError, match=f"{IDX_FILES[2]} cannot be read"):
        load("mnist", tmp_path)


def test_mnist_is_split_by_its_own_order(data_root):
    from torchvision.datasets import MNIST

    data = load("mnist", data_root)
    assert [len(part) for part in (data.train, data.val, data.test)] == [55000, 5000, 10000]
    original = MNIST(str(data_root), train=True)
    assert torch.equal(data.val.inputs[:, 0] * 255, original.data[55000:].float())
    assert torch.equal(data.val.labels, original.targets[55000:])
    assert data.shape == (1, 28, 28)


def test_cifar10_is_standardised_by_its_training_part(data_root):
    data = load("cifar10", data_root)
    assert [len(part) for part in (data.train, data.val, data.test)] == [45000, 5000, 10000]
    assert data.train.inputs.shape[1:] == data.shape == (3, 32, 32)
    std, mean = torch.std_mean(data.train.inputs, dim=(0, 2, 3))
    assert mean.abs().max() < 1e-3
    assert (std - 1).abs().max() < 1e-3
    assert data.test.inputs.mean().abs() > 1e-4


def test_cifar10_s_validation_images_do_not_influence_the_scaling(tmp_path, monkeypatch):
    """Made-up images, of which the last 5,000, the validation part, are brighter."""
    random = torch.Generator().manual_seed(0)
    images = torch.randint(0, 100, (5300, 3, 32, 32), dtype=torch.uint8, generator=random)
    images[-5000:] += 100
    labels = torch.arange(5300) % 10
    monkeypatch.setattr("sibp.experiment.data._read_parts", lambda *_: ((images, labels), (images[:10], labels[:10])))
    data = DATASETS["cifar10"](tmp_path, False)
    assert (len(data.train), len(data.val)) == (300, 5000)
    std, mean = torch.std_mean(data.train.inputs, dim=(0, 2, 3))
    assert mean.abs().max() < 1e-3
    assert (std - 1).abs().max() < 1e-3
    assert (data.val.inputs.mean() - 100 / (100 / 12**0.5)).abs() < 0.1  # brighter by 100; uniform, 100 values wide


def test_an_incompatible_torchvision_is_one_sentence_and_digits_do_not_need_it(tmp_path, monkeypatch):
    """Fails as torchvision does with a torch that it was not built for."""
    write_files(tmp_path / "cifar-10-batches-py", CIFAR_FILES)
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(UserError, match=r"^torchvision reads this data set and cannot be imported \(.*\): install the"):
        load("cifar10", tmp_path)
    assert len(load("digits", tmp_path).train) == 1297
