"""On a GPU: CUDA graphs and the batch that fills the memory give the samples of plain calls."""

import numpy as np
import pytest
import torch

import flowmatch as fm
from flowmatch.generation import generate

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("options", [{"compile": "step"}, {"compile": "grid"}, {"batch": "auto"}])
def test_the_same_samples(trained, job, one, options):
    one.device = torch.device("cuda")
    stored = []
    for name, given in (("plain", {}), ("other", options)):
        made = job(name, format="npz", solver=fm.solvers.Heun(steps=3), **{"batch": 10, **given})
        generate(fm.load(trained), made, one)
        stored.append(np.load(made.save_dir / "samples.npz")["samples"].astype(int))
    assert abs(stored[0] - stored[1]).max() <= 2
