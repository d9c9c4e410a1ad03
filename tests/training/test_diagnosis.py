"""Gradients against t, bent paths and clipped pixels: closed forms, and no trace in training."""

import contextlib
import math

import pytest
import torch
from accelerate.state import AcceleratorState
from test_trainer import assert_same_bits, train
from torch import nn

from closed_form import GaussianFlow
from flowmatch.config import load_config
from flowmatch.data import MemoryArrays
from flowmatch.flow import Flow
from flowmatch.losses import FlowMatching
from flowmatch.metrics import curvature
from flowmatch.runs import build_trainer
from flowmatch.sampling import bind, sample
from flowmatch.solvers import Dopri5, Euler, Heun
from flowmatch.training.diagnosis import (
    Probe,
    clip_share,
    evaluation_mode,
    gradient_norms,
    walk,
)
from flowmatch.training.tracking import read_metrics


class Scaled(nn.Module):
    """`a x + b`: a network whose gradient can be written down; dropout would spoil it."""

    num_classes = None

    def __init__(self):
        super().__init__()
        self.a = nn.Parameter(torch.tensor(0.7, dtype=torch.float64))
        self.b = nn.Parameter(torch.tensor(-0.2, dtype=torch.float64))
        self.unused = nn.Parameter(torch.tensor(3.0, dtype=torch.float64))
        self.dropout = nn.Dropout(0.5)

    def forward(self, x, t, cond=None):
        return self.dropout(self.a * x + self.b)


@pytest.fixture
def probe():
    x1, x0 = torch.randn(2, 10, 3, dtype=torch.float64)
    return Probe(x1, x0, None)


@pytest.mark.parametrize("rows", [10, 4, 1])
def test_the_norm_of_a_gradient_that_is_known(probe, rows):
    flow = Flow(Scaled()).train()
    norms = gradient_norms(flow, FlowMatching(), probe, rows=rows)
    x1, x0, _ = probe
    for k, norm in enumerate(norms):
        t = (k + 0.5) / 10
        xt = t * x1 + (1 - t) * x0
        error = 0.7 * xt - 0.2 - (x1 - x0)
        by_a, by_b = 2 * (error * xt).mean(), 2 * error.mean()
        assert norm == pytest.approx(math.hypot(by_a, by_b), rel=1e-12)


def test_scaling_the_loss_changes_no_norm(probe):
    flow = Flow(Scaled())
    ours = gradient_norms(flow, FlowMatching(), probe, rows=4, scale=65536.0)
    assert ours == pytest.approx(gradient_norms(flow, FlowMatching(), probe, rows=4), rel=1e-12)


def test_measuring_gradients_leaves_no_trace(probe):
    flow = Flow(Scaled()).train()
    flow.network.dropout.eval()  # a layer of a mode of its own
    fired = []
    for p in flow.parameters():
        p.grad = torch.full_like(p, 5.0)
        p.register_post_accumulate_grad_hook(fired.append)  # as data-parallel wrappers do
    state = torch.get_rng_state()
    with torch.no_grad():
        gradient_norms(flow, FlowMatching(), probe, rows=4)
        assert not torch.is_grad_enabled()
    assert not fired
    assert all(p.grad.item() == 5 for p in flow.parameters())
    assert torch.equal(torch.get_rng_state(), state)
    assert (flow.training, flow.network.training, flow.network.dropout.training) == (1, 1, 0)


def test_the_mode_comes_back_after_an_error():
    layer = nn.Dropout().train()
    with contextlib.suppress(KeyError), evaluation_mode(layer):
        assert not layer.training
        raise KeyError
    assert layer.training


def test_the_probe_is_the_same_whenever_it_is_made():
    dataset = MemoryArrays(torch.randn(100, 2), torch.arange(100) % 7, num_classes=7)
    options = {"seed": 3, "device": torch.device("cpu")}
    probe = Probe.of(dataset, 256, known=("label",), **options)
    assert torch.equal(probe.x1, dataset.x[:64])
    assert torch.equal(probe.cond["label"], dataset.labels[:64])
    again = Probe.of(dataset, 32, known=(), **options)
    assert torch.equal(again.noise, probe.noise[:32])
    assert again.cond is None
    assert len(Probe.of(MemoryArrays(torch.randn(5, 2)), 32, known=(), **options).x1) == 5


def test_straight_paths_have_no_curvature():
    x0 = torch.randn(8, 3, dtype=torch.float64)
    found = walk(lambda x, t: torch.full_like(x, 2.0), x0, Heun(steps=7))
    torch.testing.assert_close(found.x1, x0 + 2)
    assert found.curvature == pytest.approx(0, abs=1e-12)
    assert walk(lambda x, t: torch.zeros_like(x), x0, Euler(steps=2)).curvature == 0.0


def test_the_curvature_of_a_quarter_circle():
    """At constant speed pi/2 on the unit circle: energy pi^2/4 against a chord of length^2 2."""

    def turn(x, t):
        return torch.stack([-x[:, 1], x[:, 0]], 1) * math.pi / 2

    start = torch.tensor([[1.0, 0.0], [0.6, 0.8]], dtype=torch.float64)
    found = walk(turn, start, Heun(steps=400, safe_end=False))
    assert found.curvature == pytest.approx(1 - 8 / math.pi**2, rel=1e-4)


@pytest.mark.parametrize("solver", [Euler(steps=9), Heun(steps=6)], ids=["euler", "heun"])
def test_the_walk_is_the_sampling_and_its_curvature_that_of_the_trajectory(solver):
    field = GaussianFlow()
    x0 = torch.randn(32, 5, dtype=torch.float64)
    found = walk(bind(field), x0, solver)
    assert torch.equal(found.x1, sample(field, x0, solver))
    steps = [(0.0, x0), *solver.trajectory(bind(field), x0)]
    times = torch.tensor([t for t, _ in steps], dtype=torch.float64)
    whole = curvature(torch.stack([x for _, x in steps]), times)
    assert found.curvature == pytest.approx(whole, rel=1e-9)
    assert 0 < whole < 1


def test_no_curvature_where_there_is_none_to_tell():
    x0 = torch.randn(4, 2)
    adaptive = walk(bind(GaussianFlow()), x0, Dopri5())
    assert adaptive.curvature is None
    assert torch.equal(adaptive.x1, sample(GaussianFlow(), x0, Dopri5()))
    lost = walk(lambda x, t: torch.full_like(x, math.inf), x0, Euler(steps=3))
    assert lost.curvature is None


def test_the_share_of_clipped_pixels():
    images = torch.zeros(2, 1, 5, 10)
    images[0, 0, 0, :3] = torch.tensor([1.5, -1.004, 1.003])  # 1/255 is 0.0039
    images[1, 0, 4, 9] = -7.0
    assert clip_share(images) == pytest.approx(3 / 100)


def test_a_run_that_is_looked_into_is_the_run_that_is_not(tiny, tmp_path):
    options = ("network.dropout=0.3", "train.accumulate=2", "train.steps=4")
    often = ("train.sample_every_steps=2", "train.log_every_steps=1")
    _, plain = train(tiny, tmp_path / "plain", *options)
    trainer, watched = train(tiny, tmp_path / "watched", *options, *often)
    assert_same_bits(watched.checkpoint, plain.checkpoint)
    assert trainer.flow.training
    assert not trainer.averages.own.training
    seen = [r for r in read_metrics(tmp_path / "watched/metrics.jsonl") if "grad_norm_t" in r]
    assert [r["step"] for r in seen] == [2, 4]
    for r in seen:
        assert len(r["grad_norm_t"]) == 10
        assert all(norm > 0 for norm in r["grad_norm_t"])
        assert 0 <= r["curvature"] <= 1
        assert 0 <= r["clip_share"] <= 1
        assert r["images"] == 16 * r["step"]


def test_points_have_no_pixels_to_clip(tmp_path):
    (tmp_path / "toy.yaml").write_text(
        "{data: {kind: toy, name: moons, samples: 500}, network: {kind: mlp, width: 16},"
        " train: {steps: 2, batch: 32, sample_every_steps: 2},"
        " sample: {solver: {kind: dopri5, rtol: 0.01, atol: 0.01}}}"
    )
    train(tmp_path / "toy.yaml", tmp_path / "run")
    (seen,) = (r for r in read_metrics(tmp_path / "run/metrics.jsonl") if "grad_norm_t" in r)
    assert (seen["curvature"], seen["clip_share"]) == (None, None)


def test_a_flow_whose_samples_run_away_is_still_trained(tiny, tmp_path):
    AcceleratorState._reset_state(reset_partial_state=True)
    options = ["train.steps=2", "train.sample_every_steps=2"]
    trainer = build_trainer(load_config(tiny, options), tmp_path / "run")
    with torch.no_grad():
        for p in trainer.averages.own.parameters():
            p.fill_(1e30)
    trainer.averages.update = lambda *step, **images: None
    trainer._require_good = lambda weights=False: trainer._meter.steps()
    trainer.run()
    (seen,) = (r for r in read_metrics(tmp_path / "run/metrics.jsonl") if "grad_norm_t" in r)
    assert seen["curvature"] is None
