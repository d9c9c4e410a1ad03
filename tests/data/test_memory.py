"""Data sets in memory: indexing, flips, and labels that must fit."""

from __future__ import annotations

import pytest
import torch

from flowmatch.data import Batch, MemoryArrays, MemoryImages
from flowmatch.tensors import to_uint8

IMAGES = torch.arange(4 * 3 * 2 * 2, dtype=torch.uint8).reshape(4, 3, 2, 2)


def test_each_image_flips_by_its_own_draw():
    dataset = MemoryImages(IMAGES, flip=True)
    uniforms = torch.tensor([[0.1, 0, 0, 0], [0.9, 0, 0, 0]])
    batch = dataset.batch(torch.tensor([2, 0]), uniforms)
    assert torch.equal(to_uint8(batch.x1), torch.stack([IMAGES[2].flip(-1), IMAGES[0]]))
    assert batch.cond == {}


def test_raw_keeps_bytes_and_floats_come_back_exactly():
    dataset = MemoryImages(IMAGES, torch.tensor([0, 1, 1, 0]), num_classes=2)
    indices = torch.tensor([3, 1])
    raw = dataset.raw(indices, None)
    assert raw.x1.dtype == torch.uint8
    assert torch.equal(to_uint8(raw.as_float().x1), IMAGES[indices])
    assert raw.cond["label"].tolist() == [0, 1]


def test_arrays_pass_through_as_they_are():
    points = torch.randn(5, 2)
    dataset = MemoryArrays(points).to("cpu")
    assert dataset.shape == (2,)
    assert torch.equal(dataset.batch(torch.tensor([4]), torch.zeros(1, 4)).x1, points[4:])


def test_a_batch_moves_with_its_labels():
    batch = Batch(torch.zeros(2, 1), {"label": torch.zeros(2, dtype=torch.int64)}).to("meta")
    assert batch.x1.device.type == batch.cond["label"].device.type == "meta"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_set_on_the_gpu_gives_the_same_images():
    dataset = MemoryImages(IMAGES, torch.tensor([0, 1, 1, 0]), num_classes=2, flip=True)
    request = torch.tensor([3, 0, 1]), torch.tensor([[0.2] * 4, [0.7] * 4, [0.4] * 4])
    here, there = dataset.batch(*request), dataset.to("cuda").batch(*request)
    assert there.x1.is_cuda
    torch.testing.assert_close(there.x1.cpu(), here.x1)
    assert torch.equal(there.cond["label"].cpu(), here.cond["label"])


@pytest.mark.parametrize(
    ("labels", "classes", "message"),
    [
        (torch.zeros(3, dtype=torch.int64), 2, "one int64 label for each of 4 samples"),
        (torch.zeros(4), 2, "one int64 label for each of 4 samples"),
        (torch.tensor([0, 1, 2, 3]), 3, "run from 0 to 3, but must lie in 0 ... 2"),
        (torch.tensor([0, -1, 2, 1]), 3, "run from -1 to 2"),
        (torch.tensor([0, 1, 2, 3]), None, "belong together"),
        (None, 3, "belong together"),
    ],
)
def test_labels_must_fit(labels, classes, message):
    with pytest.raises(ValueError, match=message):
        MemoryImages(IMAGES, labels, num_classes=classes)


def test_only_bytes_of_four_dimensions_are_images():
    with pytest.raises(ValueError, match=r"\[N, C, H, W\], got shape \(4, 3, 2\)"):
        MemoryImages(IMAGES[..., 0])
    with pytest.raises(ValueError, match=r"torch\.uint8 tensor, got shape"):
        MemoryImages(IMAGES.float())
    with pytest.raises(ValueError, match="one or more samples"):
        MemoryImages(IMAGES[:0])
