"""The numbers of a log line: the loss against t, over parts and processes, and the clock."""

import time

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from flowmatch.config import load_config
from flowmatch.data import ShuffledOrder
from flowmatch.losses import SampleLosses
from flowmatch.randomness import Rows
from flowmatch.runs import build_trainer
from flowmatch.training.bins import bin_of, centres
from flowmatch.training.draws import draw
from flowmatch.training.meter import Meter
from flowmatch.training.tracking import read_metrics


@pytest.fixture
def accelerator():
    AcceleratorState._reset_state(reset_partial_state=True)
    return Accelerator(cpu=True)


class Together:
    """Stands for an Accelerator: what a process asks to reduce is kept, or joined with what is."""

    device = torch.device("cpu")

    def __init__(self):
        self.before = []

    def reduce(self, tensor, reduction):
        both = [t for t in self.before if t.shape == tensor.shape] + [tensor.clone()]
        self.before.append(tensor.clone())
        total = torch.stack(both)
        return total.mean(0) if reduction == "mean" else total.sum(0)


def plain(losses, t):
    return SampleLosses(losses, losses, t, torch.ones_like(losses))


def read(meter, images):
    return meter.read(images, meter.steps())


def test_the_parts_of_time_hold_their_lower_end_and_the_last_holds_one():
    t = torch.tensor([0.0, 0.05, 0.1, 0.19999, 0.3, 0.7, 0.95, 0.9999999, 1.0])
    assert bin_of(t).tolist() == [0, 0, 1, 1, 3, 7, 9, 9, 9]
    assert centres() == pytest.approx([0.05, 0.15, 0.25, 0.35, 0.45, 0.55, 0.65, 0.75, 0.85, 0.95])
    assert bin_of(torch.tensor(centres())).tolist() == list(range(10))


def test_the_loss_against_t_is_the_mean_in_each_part(accelerator):
    meter = Meter(accelerator)
    t = torch.tensor([0.01, 0.02, 0.55, 0.59, 0.51, 1.0])
    losses = torch.tensor([1.0, 3.0, 6.0, 9.0, 3.0, 0.5])
    meter.add(0, plain(losses[:3], t[:3]), parts=2)
    meter.add(0, plain(losses[3:], t[3:]), parts=2)
    metrics = read(meter, 6)
    assert metrics["loss"] == pytest.approx(losses.mean().item())
    none = [None] * 4
    assert metrics["loss_t"] == [2.0, *none, 6.0, None, None, None, 0.5]
    meter.add(1, plain(losses[:1], t[:1]))
    assert read(meter, 7)["loss_t"] == [1.0, *[None] * 9]  # of the new step alone


def test_two_processes_tell_the_loss_against_t_of_one():
    losses, t = torch.rand(64), torch.rand(64)
    alone, together = Meter(Together()), Together()
    first, second = Meter(together), Meter(together)
    alone.add(0, plain(losses, t))
    for meter, part in zip((first, second), (slice(0, 32), slice(32, 64)), strict=True):
        meter.add(0, plain(losses[part], t[part]))
    read(first, 64)
    ours, theirs = read(second, 64), read(alone, 64)
    assert ours["loss_t"] == pytest.approx(theirs["loss_t"])
    assert ours["loss"] == pytest.approx(theirs["loss"])


def test_what_is_done_in_a_pause_does_not_count(accelerator, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    meter = Meter(accelerator)
    meter.start(1000, seconds=40.0)  # a run that goes on
    now[0] += 2
    with meter.paused():
        now[0] += 1000
    now[0] += 3
    metrics = read(meter, 1050)
    assert (metrics["seconds"], metrics["images_per_second"]) == (45.0, 10.0)
    now[0] += 1
    metrics = read(meter, 1070)
    assert (metrics["seconds"], metrics["images_per_second"]) == (46.0, 20.0)


def test_the_loss_against_t_of_a_run_is_that_of_its_batch(tiny, tmp_path):
    """Drawn again by hand: the same data, noise and times give the same ten numbers."""
    AcceleratorState._reset_state(reset_partial_state=True)
    options = ["train.steps=1", "network.dropout=0", "train.batch=64", "train.accumulate=2"]
    config = load_config(tiny, options)
    trainer = build_trainer(config, tmp_path / "run")
    images = trainer.dataset.plain(ShuffledOrder(len(trainer.dataset), 0).indices(0, 64))
    draws = draw(Rows((0, 0), 0, 64), (1, 8, 8), batch=64, device=torch.device("cpu"))
    with torch.no_grad():
        drawn = config.loss.drawn(trainer.flow, images.x1, images.cond, draws=draws)
        losses, t = drawn.loss, drawn.t
        whole = config.loss(trainer.flow, images.x1, images.cond, draws=draws)
    assert torch.equal(losses.mean(), whole)
    trainer.run()
    (record,) = (r for r in read_metrics(tmp_path / "run/metrics.jsonl") if "loss" in r)
    for k, found in enumerate(record["loss_t"]):
        inside = losses[(t >= k / 10) & (t < (k + 1) / 10)]
        assert found == (pytest.approx(inside.mean().item(), rel=1e-5) if len(inside) else None)
    assert record["loss"] == pytest.approx(losses.mean().item(), rel=1e-5)


def test_the_seconds_go_on_after_a_resume(tiny, tmp_path):
    def train(*overrides, resume=None):
        AcceleratorState._reset_state(reset_partial_state=True)
        build_trainer(load_config(tiny, overrides), tmp_path / "run", resume=resume).run()
        return [r["seconds"] for r in read_metrics(tmp_path / "run/metrics.jsonl") if "loss" in r]

    before = train("train.sample_every_steps=1")
    after = train("train.steps=8", resume="latest")
    assert after[: len(before)] == before
    assert sorted(set(after)) == after
    again = train("train.steps=8", resume=str(tmp_path / "run/ckpt/step0000003"))
    assert again[0] == before[0]  # the line of step 2; the others belong to steps made again
    assert sorted(set(again)) == again


def test_weighted_losses_count_by_their_weights(accelerator):
    """Of an adaptive density: a mean under the plain one, and a mean of losses in each part."""
    meter = Meter(accelerator)
    loss, t = torch.tensor([1.0, 4.0, 9.0]), torch.tensor([0.05, 0.06, 0.95])
    weight = torch.tensor([0.5, 1.5, 2.0])
    meter.add(0, SampleLosses(loss, loss, t, weight))
    metrics = read(meter, 3)
    assert metrics["loss"] == pytest.approx((0.5 + 6 + 18) / 3)
    assert metrics["loss_t"][0] == pytest.approx((0.5 + 6) / 2)
    assert metrics["loss_t"][9] == pytest.approx(9)


def test_the_share_of_clipped_steps(accelerator):
    meter = Meter(accelerator, max_grad_norm=1.0)
    for step, norm in enumerate([0.5, 2.0, 3.0, 1.0]):
        meter.add(step, plain(torch.ones(2), torch.rand(2)))
        meter.add_gradient(step, torch.tensor(norm))
    metrics = read(meter, 8)
    assert (metrics["clipped"], metrics["grad_norm"]) == (0.5, 1.0)
