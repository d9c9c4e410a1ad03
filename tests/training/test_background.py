"""Work beside the training: one thing at a time, and no error is lost."""

import threading

import pytest
from test_trainer import assert_same_bits, train

from flowmatch.training.background import Background
from flowmatch.training.checkpoint import Checkpoints
from flowmatch.training.trainer import Trainer


def test_what_was_begun_is_waited_for():
    background, go, done = Background(), threading.Event(), []
    background.start(lambda: (go.wait(10), done.append(1)))
    assert done == []
    go.set()
    background.start(lambda: done.append(2))
    assert done[0] == 1  # the second began after the first
    background.finish()
    assert done == [1, 2]
    background.finish()  # nothing is left to wait for


def test_an_error_is_raised_once_where_it_is_waited_for():
    background = Background()
    background.start(lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        background.finish()
    background.finish()


def test_a_checkpoint_is_of_the_step_at_which_it_was_begun(tiny, tmp_path, monkeypatch):
    """However late it is written, and whatever the training has done to the weights by then."""
    train(tiny, tmp_path / "plain")
    save, begun, go = Checkpoints.save, threading.Event(), threading.Event()

    def late(self, step, contents, **options):
        begun.set()
        assert go.wait(20)
        return save(self, step, contents, **options)

    steps = []

    real = Trainer.train_step

    def counted(trainer):
        real(trainer)
        steps.append(trainer.step)
        if trainer.step == 5:
            assert begun.is_set()
            go.set()

    monkeypatch.setattr(Checkpoints, "save", late)
    monkeypatch.setattr(Trainer, "train_step", counted)
    train(tiny, tmp_path / "run")
    assert steps == [1, 2, 3, 4, 5, 6]
    assert_same_bits(tmp_path / "plain/ckpt/step0000003", tmp_path / "run/ckpt/step0000003")
