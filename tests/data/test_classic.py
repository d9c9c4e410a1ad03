"""MNIST and CIFAR-10: each place they may come from, and the real ones where they are at hand."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch

from flowmatch import data
from made_data import (
    encoded,
    make_cifar10,
    make_mnist,
    make_unpacked_cifar10,
    make_unpacked_mnist,
    picture,
    write_parquet,
)


@pytest.mark.parametrize(
    "place",
    ["train.parquet", "data/train-00000-of-00002.parquet", "mnist/train.parquet",
     "mnist/data/train.parquet", "mnist/mnist/../train-0.parquet"],
)  # fmt: skip
def test_parquet_is_found_in_each_usual_place(tmp_path, place):
    (tmp_path / "mnist/mnist").mkdir(parents=True)
    images = [encoded(picture(28, 28, key=k, mode="L")) for k in range(3)]
    write_parquet(tmp_path / place, images, label=[7, 0, 9])
    dataset = data.MNIST(root=str(tmp_path)).build()
    assert dataset.raw(torch.tensor([0, 2]), None).cond["label"].tolist() == [7, 9]


def test_the_environment_is_the_second_root(tmp_path, monkeypatch):
    make_mnist(tmp_path / "elsewhere")
    monkeypatch.setenv("FLOWMATCH_DATA", str(tmp_path / "elsewhere"))
    assert len(data.MNIST(root=str(tmp_path / "nothing")).build()) == 20


def test_torchvision_mnist(tmp_path):
    images = make_unpacked_mnist(tmp_path)
    dataset = data.MNIST(root=str(tmp_path)).build()
    raw = dataset.raw(torch.arange(12), None)
    assert np.array_equal(raw.x1[:, 0], images)
    assert raw.cond["label"].tolist() == [k % 10 for k in range(12)]


def test_torchvision_cifar10(tmp_path, monkeypatch):
    images = make_unpacked_cifar10(tmp_path)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    dataset = data.CIFAR10(root=str(tmp_path)).build()
    raw = dataset.raw(torch.arange(20), None)
    assert np.array_equal(raw.x1.permute(0, 2, 3, 1), images)
    assert raw.cond["label"].tolist() == [0, 1, 2, 9] * 5
    assert len(data.CIFAR10(root=str(tmp_path)).build("test")) == 4


def test_pickles_that_are_not_the_published_ones_are_never_opened(tmp_path):
    make_unpacked_cifar10(tmp_path)
    with pytest.raises(ValueError, match=r"cifar-10-batches-py are incomplete or damaged .*unpack"):
        data.CIFAR10(root=str(tmp_path)).build()


def test_each_way_out_is_named_when_nothing_is_found(tmp_path):
    with pytest.raises(ValueError, match="no mnist") as caught:
        data.MNIST(root=str(tmp_path)).build("test")
    for part in (str(tmp_path), "test.parquet", "MNIST/raw", "download: true", "FLOWMATCH_DATA"):
        assert part in str(caught.value)


def test_another_data_set_is_not_taken_for_mnist(tmp_path):
    make_cifar10(tmp_path)
    with pytest.raises(ValueError, match="is 32x32, but the images of mnist are 28x28; check root"):
        data.MNIST(root=str(tmp_path)).build()


@pytest.mark.parametrize("make", [data.MNIST, data.CIFAR10])
def test_enlarging_must_be_asked_for(make, tmp_path):
    with pytest.raises(ValueError, match=r"image_size 64 is above the .* set upsample: true"):
        make(image_size=64)
    assert make(image_size=64, upsample=True).image_size == 64


def test_smaller_and_larger_sizes(tmp_path):
    make_cifar10(tmp_path)
    for size in (16, 48):
        dataset = data.CIFAR10(root=str(tmp_path), image_size=size, upsample=True).build()
        assert dataset.shape == (3, size, size)


def test_a_file_that_is_not_parquet(tmp_path):
    (tmp_path / "train.parquet").write_text("no table")
    with pytest.raises(ValueError, match=r"cannot read .*train.parquet as parquet .*; replace"):
        data.MNIST(root=str(tmp_path)).build()


def test_download_asks_the_hub(tmp_path, monkeypatch):
    asked = []

    def load(path, name, split):
        asked.append((path, split))
        raise ConnectionError("offline")

    monkeypatch.setattr("datasets.load_dataset", load)
    with pytest.raises(ValueError, match=r"'ylecun/mnist' from the Hugging Face hub \(offline\)"):
        data.MNIST(root=str(tmp_path), download=True).build("test")
    assert asked == [("ylecun/mnist", "test")]


def test_real_mnist(data_root):
    dataset = data.MNIST(root=str(data_root)).build("test")
    assert (len(dataset), dataset.shape) == (10_000, (1, 28, 28))
    counts = torch.bincount(dataset.plain(torch.arange(10_000)).cond["label"], minlength=10)
    assert counts.tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert 0.13 < (dataset.plain(torch.arange(10_000)).x1.mean() + 1) / 2 < 0.14


def test_real_cifar10(data_root, tmp_path):
    shutil.copy(data_root / "cifar10-jpeg/test.parquet", tmp_path / "train.parquet")
    dataset = data.CIFAR10(root=str(tmp_path)).build()
    assert (len(dataset), dataset.shape, dataset.flip) == (10_000, (3, 32, 32), True)
    batch = dataset.plain(torch.arange(10_000))
    assert torch.bincount(batch.cond["label"]).tolist() == [1000] * 10
    means = (batch.x1.mean(dim=(0, 2, 3)) + 1) / 2
    torch.testing.assert_close(means, torch.tensor([0.494, 0.485, 0.450]), atol=0.01, rtol=0)
