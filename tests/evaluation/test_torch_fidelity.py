"""On the fly and from torch-fidelity's own pipeline: the same numbers from the same images."""

import pytest
import torch
from torch.utils.data import Dataset as TorchDataset
from torch_fidelity import calculate_metrics

from flowmatch.data import MemoryImages
from flowmatch.evaluation.extraction import extract
from flowmatch.evaluation.scores import ImageScores
from flowmatch.evaluation.statistics import compute_statistics
from flowmatch.evaluation.stored import Stored
from flowmatch.evaluation.sweep import StoredSamples
from flowmatch.features import load_inception

COUNT = 12


class Images(TorchDataset):
    def __init__(self, x):
        self.x = x

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        return self.x[index]


@pytest.mark.timeout(600)
def test_fid_kid_is_and_prc_equal_torch_fidelitys(inception_file, accelerator, tmp_path):
    generator = torch.Generator().manual_seed(0)
    real = torch.randint(0, 256, (COUNT, 3, 16, 16), dtype=torch.uint8, generator=generator)
    fake = (real.float() * 0.7 + 40 * torch.rand(real.shape, generator=generator)).to(torch.uint8)

    net = load_inception(inception_file)
    flipping = MemoryImages(real, flip=True)  # the reference must be plain all the same
    statistics = compute_statistics(flipping, net, accelerator, name="made", batch=5)
    subject = StoredSamples(Stored(fake, None, "made"), accelerator.device)
    samples = extract(subject, range(COUNT), net, accelerator, batch=7)
    ours = ImageScores(net, statistics).measure(samples)

    theirs = calculate_metrics(
        input1=Images(fake),
        input2=Images(real),
        feature_extractor="inception-v3-compat",
        feature_extractor_weights_path=str(inception_file),
        fid=True,
        kid=True,
        isc=True,
        prc=True,
        kid_subset_size=COUNT,
        cuda=False,
        cache=False,
        save_cpu_ram=True,  # no worker processes
        verbose=False,
    )
    assert ours["fid"] == pytest.approx(theirs["frechet_inception_distance"], rel=1e-3)
    assert ours["kid"] == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-3)
    assert ours["is"] == pytest.approx(theirs["inception_score_mean"], rel=1e-5)
    assert ours["precision"] == theirs["precision"]
    assert ours["recall"] == theirs["recall"]
    assert ours["fid"] > 0
