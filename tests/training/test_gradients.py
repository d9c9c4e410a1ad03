"""The gradients of a step are the same in whatever portions they are computed."""

from pathlib import Path

import pytest
import torch
from test_trainer import assert_same_bits, log_lines, train, weights

from flowmatch.networks import UNet
from flowmatch.training.draws import Split
from flowmatch.training.result import TrainingFailed
from flowmatch.training.settings import TrainConfig
from test_processes import ROOT, TORCHRUN, run
from test_processes import weights as newest_weights

AUTO = "train.micro_batch=auto"


class SmallMemory:
    """A network that runs out of memory with more rows than `holds`, before or in its loss."""

    def __init__(self, holds: int, monkeypatch) -> None:
        self.holds, self.seen = holds, []
        forward = UNet.forward

        def limited(network, x, *rest, **more):
            if torch.is_grad_enabled():
                self.seen.append(len(x))
                if len(x) > self.holds:
                    raise torch.OutOfMemoryError("no room")
            return forward(network, x, *rest, **more)

        monkeypatch.setattr(UNet, "forward", limited)


LEARNED = ("loss.time={kind: stratified, of: {kind: adaptive}}", "loss.weighting.kind=uncertainty")


def test_portions_that_fit_are_found_and_the_run_is_that_of_accumulated_parts(
    tiny, tmp_path, monkeypatch
):
    options = ("train.batch=24", *LEARNED)
    _, split = train(tiny, tmp_path / "split", *options, "train.accumulate=6")
    _, whole = train(tiny, tmp_path / "whole", *options)
    memory = SmallMemory(5, monkeypatch)
    with pytest.warns(UserWarning, match="with the same result") as told:
        _, found = train(tiny, tmp_path / "found", *options, AUTO)
    assert memory.seen[:5] == [24, 12, 8, 6, 4]  # the divisors of 24, each tried once
    assert set(memory.seen[5:]) == {4}
    assert str(told[0].message) == (
        "out of memory with 24 images at once: 12 from now on, with the same result"
    )
    assert_same_bits(split.checkpoint, found.checkpoint)
    ours, theirs = weights(found.checkpoint), weights(whole.checkpoint)
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-3, atol=1e-4)


def test_memory_that_runs_out_in_the_middle_of_a_step_and_of_a_run(tiny, tmp_path, monkeypatch):
    options = ("train.batch=16", *LEARNED)
    _, plain = train(tiny, tmp_path / "plain", *options, "train.micro_batch=8")
    memory = SmallMemory(8, monkeypatch)
    memory.holds = 16

    seen = memory.seen.append

    def shrinking(rows: int) -> None:
        seen(rows)
        if len(memory.seen) == 4:  # the fourth step
            memory.holds = 8

    class Seen(list):
        append = staticmethod(shrinking)

    memory.seen = Seen()
    seen = list.append.__get__(memory.seen)
    with pytest.warns(UserWarning, match="16 images at once: 8"):
        _, found = train(tiny, tmp_path / "found", *options, AUTO)
    ours, theirs = weights(found.checkpoint), weights(plain.checkpoint)
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-3, atol=1e-4)
    a, b = (log_lines(tmp_path / name) for name in ("plain", "found"))
    for one, other in zip(a, b, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-4)
        assert one["loss_t"] == pytest.approx(other["loss_t"], rel=1e-3)


def test_one_image_that_does_not_fit_ends_the_run(tiny, tmp_path, monkeypatch):
    SmallMemory(0, monkeypatch)
    with (
        pytest.warns(UserWarning, match="out of memory"),
        pytest.raises(TrainingFailed, match="one image at once; choose a smaller network"),
    ):
        train(tiny, tmp_path / "run", AUTO)


def test_a_given_portion_is_kept(tiny, tmp_path, monkeypatch):
    memory = SmallMemory(100, monkeypatch)
    train(tiny, tmp_path / "run", "train.batch=16", "train.micro_batch=4")
    assert set(memory.seen) == {4}
    memory.holds = 3
    with pytest.raises(torch.OutOfMemoryError):
        train(tiny, tmp_path / "other", "train.batch=16", "train.micro_batch=4")


def test_the_split_of_a_config():
    config = TrainConfig(steps=1, batch=48, micro_batch=8)
    assert Split.of(config, 2, 1) == Split(48, 3, 2, 1)
    assert Split.of(TrainConfig(steps=1, batch=48, micro_batch="auto"), 2, 0) == Split(48, 1, 2, 0)
    sizes = [48]
    split = Split(48, 1, 1, 0)
    while split.size > 1:
        split = split.smaller()
        sizes.append(split.size)
    assert sizes == [48, 24, 16, 12, 8, 6, 4, 3, 2, 1]
    with pytest.raises(ValueError, match=r"train\.micro_batch=7; make it a multiple of 14"):
        Split.of(TrainConfig(steps=1, batch=48, micro_batch=7), 2, 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"micro_batch": 4, "accumulate": 2}, "not both"),
        ({"micro_batch": 0}, "micro_batch must be at least 1"),
    ],
)
def test_portions_that_cannot_be(options, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(steps=1, **options)


SCRIPT = """
import os, sys
import torch
from flowmatch.networks import UNet
from flowmatch.cli import main

forward = UNet.forward
def limited(network, x, *rest, **more):
    if torch.is_grad_enabled() and os.environ["RANK"] == "1" and len(x) > 4:
        raise torch.OutOfMemoryError("no room")
    return forward(network, x, *rest, **more)
UNet.forward = limited
main(sys.argv[1:])
"""


def test_processes_agree_on_what_fits_all(tiny, tmp_path):
    (tmp_path / "limited.py").write_text(SCRIPT)
    options = ("train.batch=16", *LEARNED)
    train(tiny, tmp_path / "one", *options)
    words = ("train", "-c", tiny, *options, AUTO, "-e", tmp_path / "two")
    two = run(*TORCHRUN, tmp_path / "limited.py", *words, cwd=Path(ROOT))
    assert two.returncode == 0, two.stderr
    assert two.stderr.count("out of memory with 8 images at once: 4 from now on") == 1  # one voice
    ours, theirs = newest_weights(tmp_path / "one"), newest_weights(tmp_path / "two")
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-3, atol=1e-4)
