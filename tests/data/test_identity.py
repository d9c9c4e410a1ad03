"""A data set's identity follows from its plain samples and labels, and from nothing else."""

from __future__ import annotations

import os
import re

import numpy as np
import pytest
import torch

import made_data
from flowmatch.data import (
    ArraySource,
    DecodedImages,
    FileSource,
    Hub,
    ImageFolder,
    MemoryArrays,
    MemoryImages,
    Toy,
)
from flowmatch.data.dataset import digest
from flowmatch.data.transforms import AdmCentre, ShortSide
from made_data import MAKERS, encoded, picture, save, write_parquet

IMAGES = torch.arange(4 * 3 * 2 * 2, dtype=torch.uint8).reshape(4, 3, 2, 2)
LABELS = torch.tensor([0, 1, 1, 0])
SHAPE = ShortSide(size=8, upsample=True)


@pytest.mark.parametrize("kind", sorted(MAKERS))
def test_every_family_is_told_apart_by_split_and_known_again(kind, tmp_path):
    config = MAKERS[kind](tmp_path)
    train, test = config.build("train").identity(), config.build("test").identity()
    assert re.fullmatch("[0-9a-f]{12}", train)
    same = kind == "hub"  # the same images were written into both files
    assert (train == test) is same
    assert config.build("train").identity() == train


@pytest.mark.parametrize("kind", sorted(set(MAKERS) - {"digits", "latent", "toy"}))
def test_sets_that_are_decoded_on_use_have_one_too(kind, tmp_path):
    config = MAKERS[kind](tmp_path)
    made_again = type(config)(**{**vars(config), "memory_gib": 0.0})
    train, test = made_again.build("train"), made_again.build("test")
    assert isinstance(train, DecodedImages)
    assert train.identity() == made_again.build("train").identity() != test.identity()


def test_of_a_set_in_memory_every_byte_and_label_counts():
    def identity(images=IMAGES, labels=LABELS, classes=2, **options):
        return MemoryImages(images, labels, num_classes=classes, **options).identity()

    changed = IMAGES.clone()
    changed[3, 2, 1, 1] += 1
    others = [
        identity(changed),
        identity(IMAGES.reshape(4, 3, 4, 1)),
        identity(labels=1 - LABELS),
        identity(labels=None, classes=None),
        identity(IMAGES[:3], LABELS[:3]),
    ]
    assert len({identity(), *others}) == 6
    assert identity(flip=True) == identity()
    strided = IMAGES.contiguous(memory_format=torch.channels_last)
    assert not strided.is_contiguous()
    assert identity(strided) == identity()


def test_dtype_and_place_of_parts_count():
    bytes_of_ones = torch.tensor([1.0]).view(torch.int32)
    assert digest(torch.tensor([1.0])) != digest(bytes_of_ones)
    assert digest("ab", "c") != digest("a", "bc")
    assert digest(None, LABELS) != digest(LABELS, None) != digest(LABELS)
    assert digest(torch.tensor(3)) != digest(torch.tensor([3]))


def test_points_follow_their_seed():
    first, again, other = (Toy(name="moons", samples=9, seed=s).build() for s in (1, 1, 2))
    assert isinstance(first, MemoryArrays)
    assert first.identity() == again.identity() != other.identity()


def test_of_files_names_sizes_times_and_labels_count(tmp_path):
    for name in ("a.png", "b.png"):
        save(tmp_path / name, picture(8, 8))

    def stamp(files=("a.png", "b.png"), labels=(0, 1)):
        return FileSource(tmp_path, files, labels).stamp()

    before = stamp()
    assert stamp() == before
    assert len({before, stamp(("b.png", "a.png")), stamp(labels=(1, 0)), stamp(labels=None)}) == 4
    os.utime(tmp_path / "b.png", ns=(1, 1))
    touched = stamp()
    assert touched != before
    save(tmp_path / "b.png", picture(9, 9))
    os.utime(tmp_path / "b.png", ns=(1, 1))
    assert stamp() != touched
    (tmp_path / "b.png").unlink()
    with pytest.raises(ValueError, match=r"b\.png is unreadable \(No such file"):
        stamp()


def test_a_folder_that_moved_is_still_the_same(tmp_path):
    made_data.make_folder(tmp_path / "here")
    before = ImageFolder(root=str(tmp_path / "here"), image_size=32, memory_gib=0).build()
    identity = before.identity()
    (tmp_path / "here").rename(tmp_path / "there")
    after = ImageFolder(root=str(tmp_path / "there"), image_size=32, memory_gib=0).build()
    assert after.identity() == identity


def test_of_a_decoded_set_transform_and_channels_count_but_flips_do_not():
    arrays = np.arange(2 * 9 * 9 * 3, dtype=np.uint8).reshape(2, 9, 9, 3)
    source = ArraySource(arrays, None, "made")

    def identity(transform=SHAPE, channels=3, **options):
        return DecodedImages(source, transform, channels=channels, **options).identity()

    others = [identity(AdmCentre(size=8)), identity(channels=1), identity(ShortSide(size=7))]
    assert len({identity(), *others}) == 4
    assert identity(flip=True) == identity()
    assert ArraySource(arrays + 1, None, "made").stamp() != source.stamp()
    assert ArraySource(arrays, None, "of another name").stamp() == source.stamp()


def test_of_rows_the_table_and_the_columns_count(tmp_path):
    def identity(name, **options):
        path = str(tmp_path / name)
        hub = Hub(path=path, image_size=8, upsample=True, memory_gib=0, **options)
        return hub.build().identity()

    images = [encoded(picture(8, 8, key=k)) for k in range(3)]
    write_parquet(tmp_path / "a.parquet", images, fine=[0, 1, 2], coarse=[0, 1, 0])
    write_parquet(tmp_path / "b.parquet", images[::-1], fine=[0, 1, 2], coarse=[0, 1, 0])
    found = [
        identity("a.parquet"),
        identity("b.parquet"),
        identity("a.parquet", label_column="fine"),
        identity("a.parquet", label_column="coarse"),
    ]
    assert len(set(found)) == 4
    assert identity("a.parquet") == found[0]
