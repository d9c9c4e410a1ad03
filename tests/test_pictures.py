"""Grids put each image where it belongs, unaltered; `look` compares with the right neighbours."""

import numpy as np
import pytest
import torch

from flowmatch.look import _distances, look
from flowmatch.pictures import columns_for, image_grid, scatter


@pytest.mark.parametrize("channels", [1, 3])
def test_a_grid_holds_every_pixel(channels):
    images = torch.randint(0, 255, (7, channels, 16, 16), dtype=torch.uint8)
    sheet = np.asarray(image_grid(images, columns=3, smallest=32, gap=2))
    assert sheet.shape == (3 * 34 + 2, 3 * 34 + 2, 3)
    for i in range(7):
        top, left = 2 + i // 3 * 34, 2 + i % 3 * 34
        cell = sheet[top : top + 32 : 2, left : left + 32 : 2]  # each pixel stands twice
        expected = images[i].expand(3, 16, 16).permute(1, 2, 0).numpy()
        assert np.array_equal(cell, expected)
    assert (sheet[-34:, -34:] == 255).all()  # the empty cells are white


def test_many_classes_do_not_make_a_long_sheet():
    assert columns_for(10) == 10
    assert columns_for(1000) is None
    assert columns_for(None) is None
    sheet = image_grid(torch.zeros(64, 1, 32, 32, dtype=torch.uint8), columns=columns_for(1000))
    assert sheet.size == (8 * 34 + 2, 8 * 34 + 2)


def test_a_scatter_plot_has_its_size():
    assert scatter(torch.randn(50, 2), size=300).size == (300, 300)
    assert scatter(torch.randn(50, 2), labels=torch.arange(50) % 3).size == (512, 512)


def test_distances_are_root_mean_squares_to_the_nearest():
    train = torch.randn(20, 1, 4, 4)
    x = torch.cat([train[3:4] + 0.1, train[7:8]])
    distance, index = _distances(x, train)
    assert index.tolist() == [3, 7]
    torch.testing.assert_close(distance, torch.tensor([0.1, 0.0]), rtol=1e-3, atol=1e-3)


def test_look_refuses_a_run_without_images(flowmatch, tmp_path):
    (tmp_path / "toy.yaml").write_text(
        "{data: {kind: toy, name: moons, samples: 100}, network: {kind: mlp, width: 8},"
        " train: {steps: 1, batch: 8}}"
    )
    flowmatch("train", "-c", tmp_path / "toy.yaml", "-e", tmp_path / "run")
    with pytest.raises(ValueError, match="makes no images"):
        look(tmp_path / "run", tmp_path / "out")
    assert not (tmp_path / "out").exists()
