"""A step that goes wrong sends the run back once, and is left out; a second one stops it."""

import math
import signal

import pytest
import torch
from accelerate.state import AcceleratorState
from test_trainer import assert_same_bits

from flowmatch.config import load_config
from flowmatch.flow import Flow
from flowmatch.losses import Draws, FlowMatching
from flowmatch.paths import VP
from flowmatch.runs import build_trainer
from flowmatch.training.checkpoint import read_state
from flowmatch.training.result import TrainingFailed
from flowmatch.training.spikes import SpikeWatch, Step
from flowmatch.training.tracking import read_metrics


def steps(losses, start=0, norm=1.0):
    return [Step(start + i, loss, norm) for i, loss in enumerate(losses)]


def test_a_loss_far_above_the_usual_is_a_spike():
    watch = SpikeWatch(10.0, check_gradients=True)
    assert watch.look(steps([1.0] * 60)) is None
    spike = watch.look(steps([1.1, 0.9, 10.5, 1.0], start=60))
    assert (spike.step, str(spike)) == (62, "the loss jumped to 10.5, from about 1 at step 63")


def test_losses_that_jump_by_themselves_are_no_spikes():
    """As those of small batches may: here squares of Student's t with 3 degrees of freedom."""
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(20_000, 4, generator=generator)
    losses = 0.1 + (normal[:, 0] / normal[:, 1:].square().mean(1).sqrt()).square()
    watch = SpikeWatch(5.0, check_gradients=True)
    assert watch.look(steps(losses.tolist()[:2000])) is None
    assert max(losses[:2000]) > 20 * losses[:2000].median()
    assert watch.look(steps([1e5], start=2000)).step == 2000


def test_the_first_losses_are_compared_with_nothing():
    watch = SpikeWatch(10.0, check_gradients=True)
    assert watch.look(steps([1.0] * 49 + [1000.0])) is None


def test_a_falling_loss_is_compared_with_the_recent_ones():
    watch = SpikeWatch(10.0, check_gradients=True)
    assert watch.look(steps([100.0] * 200 + [1.0] * 200)) is None
    assert watch.look(steps([20.0], start=400)).step == 400


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_numbers_that_are_not_finite_are_spikes_from_the_first_step(bad):
    assert SpikeWatch(None, check_gradients=True).look(steps([1.0, bad])).step == 1
    gradient = SpikeWatch(None, check_gradients=True).look(steps([1.0], norm=bad))
    assert "the gradient became NaN or infinite" in str(gradient)
    assert SpikeWatch(None, check_gradients=False).look(steps([1.0], norm=bad)) is None


def test_steps_are_looked_at_once():
    watch = SpikeWatch(2.0, check_gradients=True)
    first = steps([1.0] * 60)
    watch.look(first)
    assert watch.look([*first, *steps([1.5], start=60)]) is None
    watch.restore(())
    assert watch.look(steps([50.0])) is None


def build(config, run_dir, *options, resume=None, poisoned=()):
    """A trainer whose batches of these (zero-based) steps hold an infinite pixel."""
    AcceleratorState._reset_state(reset_partial_state=True)
    trainer = build_trainer(load_config(config, options), run_dir, resume=resume)
    parts = trainer.feed.parts

    def poison(split, step, images):
        for part in parts(split, step, images):
            x1 = part.x1.clone()
            if step in poisoned:
                x1[0, 0, 0, 0] = math.inf
            yield part._replace(x1=x1)

    trainer.feed.parts = poison
    return trainer


@pytest.mark.parametrize("step", [0, 1, 4])
def test_the_run_goes_back_and_leaves_the_batch_out(tiny, tmp_path, capsys, step):
    """From the start where no checkpoint is there yet; otherwise from the checkpoint of step 3."""
    plain = build(tiny, tmp_path / "plain")
    plain.state.skipped.add(step)
    expected = plain.run()
    found = build(tiny, tmp_path / "run", poisoned=[step]).run()
    assert found.step == 6
    assert_same_bits(found.checkpoint, expected.checkpoint)
    assert read_state(found.checkpoint)["skipped"] == [step]
    said = capsys.readouterr().out
    assert f"the loss became NaN or infinite at step {step + 1}: went back from step" in said
    records = read_metrics(tmp_path / "run/metrics.jsonl")
    (record,) = (r for r in records if "rolled_back" in r)
    assert record["step"] == (3 if step > 3 else 0)
    assert records[-1]["skipped_steps"] == 1
    logged = [r["step"] for r in records if "loss" in r]
    assert logged == sorted(set(logged))


def test_what_was_left_out_stays_out_after_a_resume(tiny, tmp_path):
    options = ("train.save_every_steps=2",)
    build(tiny, tmp_path / "straight", *options, poisoned=[1]).run()
    path = str(tmp_path / "straight/ckpt/step0000004")
    again = build(tiny, tmp_path / "straight", *options, resume=path, poisoned=[1])
    assert again.state.skipped == {1}
    assert read_state(again.run().checkpoint)["skipped"] == [1]


def test_a_second_spike_stops_the_run_which_can_be_resumed(tiny, tmp_path):
    trainer = build(tiny, tmp_path / "run", poisoned=[4, 5])
    with pytest.raises(TrainingFailed, match=r"at step 6; .*at step 5\..*step0000003.*--resume"):
        trainer.run()
    resumed = build(tiny, tmp_path / "run", resume="latest", poisoned=[])
    assert resumed.step == 3
    assert resumed.run().step == 6


def test_a_bad_gradient_alone_is_enough(tiny, tmp_path):
    trainer = build(tiny, tmp_path / "run")
    step, parameter = trainer._update, next(trainer.flow.parameters())

    def spoil():
        if trainer.step == 4:
            parameter.grad.fill_(math.nan)
        step()

    trainer._update = spoil
    trainer.run()
    assert trainer.state.skipped == {4}
    assert all(p.isfinite().all() for p in trainer.flow.parameters())


def test_parts_that_learn_go_back_too(tiny, tmp_path):
    options = (
        "loss.weighting.kind=uncertainty",
        "loss.time={kind: stratified, of: {kind: adaptive}}",
    )
    plain = build(tiny, tmp_path / "plain", *options)
    plain.state.skipped.add(1)
    expected = read_state(plain.run().checkpoint)["learned"]
    found = read_state(build(tiny, tmp_path / "run", *options, poisoned=[1]).run().checkpoint)
    assert found["learned"].keys() == expected.keys()
    assert all(torch.equal(v, expected[k]) for k, v in found["learned"].items())
    assert expected["density.counts"].sum() > 0
    assert expected["uncertainty.weight"].abs().max() > 0


def test_two_bad_batches_are_passed_by_resuming(tiny, tmp_path):
    """Both are remembered beside the checkpoints, which are older than either."""
    with pytest.raises(TrainingFailed):
        build(tiny, tmp_path / "run", poisoned=[4, 5]).run()
    again = build(tiny, tmp_path / "run", resume="latest", poisoned=[4, 5])
    assert again.run().step == 6
    assert again.state.skipped == {4, 5}


def test_bad_batches_before_the_first_checkpoint_are_passed_too(tiny, tmp_path):
    with pytest.raises(TrainingFailed, match="No checkpoint was written yet"):
        build(tiny, tmp_path / "run", poisoned=[0, 1]).run()
    again = build(tiny, tmp_path / "run", resume="latest", poisoned=[0, 1])
    assert again.run().step == 6
    assert again.state.skipped == {0, 1}


def test_a_resumed_run_notices_what_the_straight_run_notices(tiny, tmp_path):
    """The losses that others are compared with are part of the state."""
    options = ("train.steps=70", "train.save_every_steps=60", "train.log_every_steps=10")

    def jump(trainer):
        parts = trainer.feed.parts

        def louder(split, step, images):
            for part in parts(split, step, images):
                yield part._replace(x1=part.x1 * (100 if step == 65 else 1))

        trainer.feed.parts = louder
        return trainer

    straight = jump(build(tiny, tmp_path / "run", *options)).run()
    assert read_state(straight.checkpoint)["skipped"] == [65]
    (tmp_path / "run/skipped_steps.json").unlink()
    path = str(tmp_path / "run/ckpt/step0000060")
    resumed = jump(build(tiny, tmp_path / "run", *options, resume=path)).run()
    assert read_state(resumed.checkpoint)["skipped"] == [65]


def test_a_wish_to_stop_outlives_going_back(tiny, tmp_path):
    trainer = build(tiny, tmp_path / "run", poisoned=[4])
    update = trainer._update

    def stop():
        update()
        if trainer.step == 4:
            signal.raise_signal(signal.SIGTERM)

    trainer._update = stop
    result = trainer.run()
    assert (result.stopped, result.step) == (True, 4)


def test_a_checkpoint_without_moments_starts_without_moments(tiny, tmp_path):
    """What the spike did to the optimizer must not outlive going back to imported weights."""
    first = build(tiny, tmp_path / "run", "train.steps=2").run().checkpoint
    state = torch.load(first / "state.pt", weights_only=True)
    torch.save({**state, "optimizer": None}, first / "state.pt")
    options = ("train.save_every_steps=null",)
    trainer = build(tiny, tmp_path / "run", *options, resume="latest", poisoned=[4])
    assert trainer.run().step == 6
    assert all(p.isfinite().all() for p in trainer.flow.parameters())


def test_what_the_loss_learns_cannot_change_on_the_way(tiny, tmp_path):
    options = ("train.steps=2", "loss.time={kind: adaptive, bins: 4}")
    build(tiny, tmp_path / "run", *options).run()
    for other in ("loss.time={kind: adaptive, bins: 8}", "loss.time={kind: uniform}"):
        with pytest.raises(ValueError, match=r"has learned .*density.* this run's learns"):
            build(tiny, tmp_path / "run", other, resume="latest")


def test_a_path_whose_velocity_has_no_bound_is_no_spike(tmp_path):
    """The velocity of vp grows without limit towards t=1: losses keep 1e-4 away from there."""
    x1 = torch.randn(256, 2)
    losses = []
    flow = Flow(Still(), path=VP())
    for step in range(3000):
        draws = Draws.like(x1, torch.Generator().manual_seed(step))
        losses.append(FlowMatching()(flow, x1, draws=draws).item())
    watch = SpikeWatch(5.0, check_gradients=True)
    assert watch.look(steps(losses)) is None


class Still(torch.nn.Module):
    num_classes = None

    def forward(self, x, t, cond=None):
        return torch.zeros_like(x)
