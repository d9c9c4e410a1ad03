"""Samples to features: in order, whole, counted."""

import pytest
import torch

from flowmatch.evaluation.extraction import extract, local_set
from flowmatch.evaluation.sharding import batches_of, evenly, gather_rows
from flowmatch.evaluation.stored import Stored
from flowmatch.evaluation.sweep import FlowSamples, StoredSamples, Sweep
from flowmatch.flow import Flow
from flowmatch.guidance import Guidance
from flowmatch.networks import UNetConfig
from flowmatch.solvers import Euler, Heun
from flowmatch.tensors import to_uint8

SHAPE = (1, 8, 8)


@pytest.fixture
def flow():
    torch.manual_seed(3)
    config = UNetConfig(
        channels=8,
        multipliers=(1,),
        blocks=1,
        attention_resolutions=(),
        heads=2,
        num_classes=3,
    )
    flow = Flow(config.build(SHAPE), shape=SHAPE).eval().requires_grad_(False)
    torch.nn.init.normal_(flow.network.out[-1].weight, std=0.1)  # it starts at zero
    return flow


@pytest.mark.parametrize("batch", [1, 4, 10, 64])
def test_neither_batch_nor_place_changes_a_sample(flow, accelerator, projection, batch):
    subject = FlowSamples(flow, Euler(steps=3), Sweep(10, seed=7), accelerator)
    net = projection(SHAPE)
    whole = extract(subject, range(20), net, accelerator, batch=20)
    part = extract(subject, range(10, 20), net, accelerator, batch=batch)
    torch.testing.assert_close(part.vectors, whole.vectors[10:], rtol=1e-4, atol=1e-2)
    assert (part.samples.int() - whole.samples[10:].int()).abs().max() <= 1
    assert part.labels.tolist() == [i % 3 for i in range(10, 20)]
    assert part.nfe == 3


def test_guidance_counts_twice(flow, accelerator, projection):
    subject = FlowSamples(flow, Heun(steps=2), Sweep(10, guidance=Guidance(scale=2.0)), accelerator)
    assert extract(subject, range(4), projection(SHAPE), accelerator, batch=3).nfe == 8


def test_samples_that_are_not_finite_are_counted_and_stay_as_black_images(accelerator, projection):
    x = torch.rand(6, *SHAPE) * 2 - 1
    x[1, 0, 0, 0], x[4, 0, 2, 2] = torch.nan, -torch.inf
    subject = StoredSamples(Stored(x, None, "made"), accelerator.device)
    found = extract(subject, range(6), projection(SHAPE), accelerator, batch=4)
    assert found.nonfinite == 2
    assert len(found) == 6
    assert found.samples[subject._order == 1][0, 0, 0, 0] == 0
    assert found.vectors.isfinite().all()


def test_clipped_is_the_share_of_values_that_clamping_changes(accelerator, projection):
    x = torch.zeros(4, *SHAPE)
    x[0, 0, 0] = 1.5  # 8 values of 256
    x[1, 0, 0, 0] = 1 + 0.9 / 255  # rounds to white anyway
    subject = StoredSamples(Stored(x, None, "made"), accelerator.device)
    found = extract(subject, range(4), projection(SHAPE), accelerator, batch=4)
    assert found.clipped == pytest.approx(8 / 256)


def test_stored_uint8_images_reach_the_net_unchanged(accelerator, projection):
    x = torch.randint(0, 256, (9, *SHAPE), dtype=torch.uint8)
    subject = StoredSamples(Stored(x, torch.arange(9) % 3, "made"), accelerator.device)
    net = projection(SHAPE)
    found = extract(subject, range(2, 9), net, accelerator, batch=4)
    expected = x[subject._order[2:]]  # in an order of their own
    assert torch.equal(found.samples, expected)
    assert torch.equal(found.labels, subject._order[2:] % 3)
    torch.testing.assert_close(found.vectors, local_set(expected.split(3), net).vectors)
    assert found.clipped is None
    assert torch.equal(to_uint8(x[2:].float() / 127.5 - 1), x[2:])


def test_batches_cover_every_index_once():
    parts = batches_of(range(5, 28), 10)
    assert [list(p) for p in parts] == [
        list(range(5, 15)),
        list(range(15, 25)),
        list(range(25, 28)),
    ]


@pytest.mark.parametrize(("total", "most"), [(10, 3), (1437, 360), (5, 9), (1_000_003, 50_000)])
def test_some_of_a_set_are_from_all_over_it(total, most):
    chosen = evenly(total, most)
    assert len(chosen.unique()) == min(total, most)
    assert chosen[0] == 0
    assert chosen[-1] == total - 1
    gaps = chosen.diff()
    assert gaps.max() - gaps.min() <= 1


def test_rows_come_back_in_order_and_twice_is_once(accelerator):
    rows, index = torch.arange(5.0)[:, None], torch.tensor([3, 0, 2, 1, 0])
    rows[4] = rows[1]
    assert gather_rows(rows, index, accelerator).flatten().tolist() == [1.0, 3.0, 2.0, 0.0]
