"""PSNR against its definition and against hand-computed values."""

import math

import pytest
import torch

from flowmatch.metrics.psnr import psnr


def test_known_values():
    truth = torch.zeros(3, 1, 2, 2)
    x = truth.clone()
    x[0] = 0.2  # mse 0.04 of a range of 2: a hundredth
    x[1, 0, 0, 0] = 2.0  # one pixel of four is off by the whole range
    found = psnr(x, truth)
    assert found[:2].tolist() == pytest.approx([20.0, 10 * math.log10(4)])
    assert found[2].item() == math.inf
    assert psnr(x / 2 + 0.5, truth / 2 + 0.5, peak=1.0)[0].item() == pytest.approx(20.0)


def test_mistakes():
    with pytest.raises(ValueError, match="one shape"):
        psnr(torch.zeros(2, 3), torch.zeros(2, 4))
    with pytest.raises(ValueError, match="positive number, got 0"):
        psnr(torch.zeros(2, 3), torch.zeros(2, 3), peak=0)
