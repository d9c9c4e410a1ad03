"""Evaluation while training: at its times, without a trace, and the best checkpoint kept whole."""

import json
import math
import os
import random
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from test_tracking import scalars
from test_trainer import assert_same_bits, train, weights

from flowmatch.config import load_config, to_yaml
from flowmatch.runs import build_flow
from flowmatch.training import files
from flowmatch.training.checkpoint import Checkpoints, problems, read_evaluation, read_state
from flowmatch.training.distributed import start_processes
from flowmatch.training.evaluating import Evaluated
from flowmatch.training.tracking import read_metrics
from flowmatch.training.trainer import Trainer


class Script:
    """An evaluation that gives the numbers of a list, in turn."""

    def __init__(self, *values, primary="fd_data", num_samples=1000):
        self.values, self.primary, self.num_samples = list(values), primary, num_samples

    def __call__(self, flow):
        metrics = {self.primary: float(self.values.pop(0)), "other": 1.5}
        return Evaluated(metrics, self.primary, self.num_samples, "a protocol")


def build(config_file, run_dir, evaluate, *overrides, every=2, resume=None):
    AcceleratorState._reset_state(reset_partial_state=True)
    config = load_config(config_file, [f"train.evaluate_every_steps={every}", *overrides])
    trainer = Trainer(
        build_flow(config),
        config.loss,
        config.data.build("train"),
        config.train,
        run_dir=run_dir,
        solver=config.sample.solver,
        config_yaml=to_yaml(config),
        accelerator=start_processes(config.train.precision),
        evaluate=evaluate,
    )
    if resume is not None:
        trainer.resume(run_dir / "ckpt" / resume)
    run_dir.mkdir(exist_ok=True)
    trainer.checkpoints.clear_unfinished()
    trainer.checkpoints.set_aside_after(trainer.step)
    return trainer


def evaluations(run_dir: Path) -> list[tuple[int, float | None]]:
    records = [r for r in read_metrics(run_dir / "metrics.jsonl") if "evaluation" in r]
    assert all(r["images"] == 16 * r["step"] for r in records)
    return [(r["step"], r["evaluation"]["metrics"]["fd_data"]) for r in records]


def step_of_best(run_dir: Path) -> int | None:
    best = Checkpoints(run_dir).best()
    return None if best is None else read_state(best)["step"]


def test_the_times_the_record_the_scalars_and_the_line(tiny, tmp_path, capsys):
    run = tmp_path / "run"
    result = build(tiny, run, Script(12.34, 5.0), every=4).run()
    assert evaluations(run) == [(4, 12.34), (6, 5.0)]  # the last step has one too
    record = next(r for r in read_metrics(run / "metrics.jsonl") if "evaluation" in r)
    assert record["evaluation"] == {
        "num_samples": 1000,
        "reduced": True,
        "primary": "fd_data",
        "metrics": {"fd_data": 12.34, "other": 1.5},
        "protocol": "a protocol",
    }
    found = scalars(run)["evaluation-1000-samples/fd_data"]
    assert found == [(4, pytest.approx(12.34)), (6, 5.0)]
    line = "step 4/6  evaluation on 1,000 samples (reduced): fd_data 12.34"
    assert line in capsys.readouterr().out
    assert result.evaluation == Evaluated({"fd_data": 5.0, "other": 1.5}, *result.evaluation[1:])
    assert result.best_step == 6


def test_times_in_images(tiny, tmp_path):
    images = ("train.evaluate_every_images=48", "train.steps=6")
    trainer = build(tiny, tmp_path / "run", Script(2, 1), *images, every="null")
    trainer.run()
    assert evaluations(tmp_path / "run") == [(3, 2.0), (6, 1.0)]


def test_the_best_is_kept_besides_the_newest(tiny, tmp_path):
    run, options = tmp_path / "run", ("train.save_every_steps=1", "train.keep_last=6")
    result = build(tiny, run, Script(5, 3, 4), *options).run()
    assert (result.best_step, result.evaluation.value) == (4, 4.0)
    best = Checkpoints(run).best()
    assert best == run / "ckpt/best"
    assert problems(best) is None
    assert_same_bits(best, run / "ckpt/step0000004")
    assert read_state(best)["step"] == 4
    record = read_evaluation(best)
    assert (record["step"], record["images"]) == (4, 64)
    assert record["evaluation"]["metrics"]["fd_data"] == 3.0
    few = tmp_path / "few"
    build(tiny, few, Script(1, 3, 4), "train.save_every_steps=1", "train.keep_last=1").run()
    assert sorted(p.name for p in (few / "ckpt").iterdir()) == ["best", "step0000006"]
    assert step_of_best(few) == 2
    assert Checkpoints(few).newest().name == "step0000006"


def test_a_number_that_is_not_finite_is_null_and_never_best(tiny, tmp_path):
    result = build(tiny, tmp_path / "run", Script(math.nan, 7, -math.inf)).run()
    assert evaluations(tmp_path / "run") == [(2, None), (4, 7.0), (6, None)]
    assert result.best_step == step_of_best(tmp_path / "run") == 4
    result = build(tiny, tmp_path / "none", Script(*[math.nan] * 3)).run()
    assert (result.best_step, step_of_best(tmp_path / "none")) == (None, None)
    assert "nan" not in (tmp_path / "none/metrics.jsonl").read_text().lower()


def test_an_evaluation_without_manners_changes_nothing(tiny, tmp_path):
    def rude(flow):
        flow.train().requires_grad_(True)
        torch.manual_seed(1)
        np.random.seed(1)
        random.seed(1)
        torch.randn(3)
        torch.set_grad_enabled(False)
        return Evaluated({"x": 1.0}, "x", 10, "")

    options = ("network.dropout=0.3", "train.precision=bf16")
    _, plain = train(tiny, tmp_path / "plain", *options)
    trainer = build(tiny, tmp_path / "rude", rude, *options, every=1)
    result = trainer.run()
    assert_same_bits(result.checkpoint, plain.checkpoint)
    assert torch.is_grad_enabled()
    assert not trainer.averages.own.training
    assert not any(p.requires_grad for p in trainer.averages.own.parameters())


def test_the_average_is_what_is_evaluated(tiny, tmp_path):
    seen = []

    def keep(flow):
        assert not flow.training
        seen.append({k: v.clone() for k, v in flow.network.state_dict().items()})
        return Evaluated({"x": 1.0}, "x", 10, "")

    result = build(tiny, tmp_path / "run", keep, every=6).run()
    saved = weights(result.checkpoint)
    assert all(torch.equal(v, saved[f"model_ema.{k}"]) for k, v in seen[0].items())


def test_the_best_goes_on_after_a_resume(tiny, tmp_path):
    run = tmp_path / "run"
    trainer = build(tiny, run, Script(5))
    stop_after(trainer, 3)
    assert trainer.run().best_step == 2
    trainer = build(tiny, run, Script(6, 5.5), resume="step0000003")
    result = trainer.run()
    assert (result.best_step, result.evaluation.value) == (2, 5.5)
    assert step_of_best(run) == 2
    done = build(tiny, run, Script(), resume="step0000006").run()  # nothing left to do
    assert done == result


def test_a_best_of_steps_made_again_is_set_aside(tiny, tmp_path):
    run = tmp_path / "run"
    build(tiny, run, Script(5, 4, 3)).run()
    result = build(tiny, run, Script(9, 8), resume="step0000003").run()
    assert result.best_step == step_of_best(run) == 6
    names = {p.name for p in (run / "ckpt").iterdir()}
    assert names == {
        *("best", "step0000003", "step0000006"),
        *("superseded-best-step0000006", "superseded-step0000006"),
    }
    assert read_evaluation(run / "ckpt/superseded-best-step0000006")["step"] == 6


def test_a_run_goes_on_from_its_best(tiny, tmp_path):
    run = tmp_path / "run"
    straight = build(tiny, run, Script(9, 4, 8), "train.keep_last=9").run()
    shutil.copytree(straight.checkpoint, tmp_path / "straight")
    result = build(tiny, run, Script(7), "train.keep_last=9", resume="best").run()
    assert_same_bits(result.checkpoint, tmp_path / "straight")
    assert result.best_step == 4


@pytest.mark.parametrize("other", [{"primary": "fid"}, {"num_samples": 50}])
def test_only_evaluations_of_a_kind_are_compared(tiny, tmp_path, other):
    run = tmp_path / "run"
    build(tiny, run, Script(1), "train.steps=3", every=3).run()
    result = build(tiny, run, Script(400, **other), every=6, resume="step0000003").run()
    assert result.best_step == 6


def stop_after(trainer, step):
    one = trainer.train_step

    def train_step():
        one()
        if trainer.step == step:
            signal.raise_signal(signal.SIGTERM)

    trainer.train_step = train_step


def test_a_wish_to_stop_during_an_evaluation_is_heeded_after_it(tiny, tmp_path):
    def interrupted(flow):
        signal.raise_signal(signal.SIGTERM)
        return Script(3)(flow)

    run = tmp_path / "run"
    result = build(tiny, run, interrupted).run()
    assert (result.step, result.stopped, result.best_step) == (3, True, 2)
    assert evaluations(run) == [(2, 3.0)]
    assert result.checkpoint == Checkpoints(run).newest()


def test_who_asks_to_stop_does_not_wait_for_an_evaluation_and_misses_none(tiny, tmp_path):
    run = tmp_path / "run"
    trainer = build(tiny, run, Script())
    stop_after(trainer, 2)
    assert trainer.run().stopped
    result = build(tiny, run, Script(5, 6, 7), resume="step0000002").run()
    assert evaluations(run) == [(2, 5.0), (4, 6.0), (6, 7.0)]
    assert result.best_step == 2


class Killed(BaseException):
    """Stands for kill -9: nothing in the program catches it or cleans up after it."""


def test_a_kill_between_a_checkpoint_and_its_evaluation_misses_none(tiny, tmp_path):
    def killed(flow):
        raise Killed

    run = tmp_path / "run"
    with pytest.raises(Killed):
        build(tiny, run, killed, every=6).run()
    result = build(tiny, run, Script(5), every=6, resume="step0000006").run()
    assert evaluations(run) == [(6, 5.0)]
    assert (result.step, result.best_step, result.evaluation.value) == (6, 6, 5.0)


@pytest.mark.parametrize("moment", [0, 4, 8, 9, 10, 11, 12, 13])
def test_a_kill_while_the_best_is_replaced_leaves_a_best(tiny, tmp_path, monkeypatch, moment):
    """Dies just before one of the disk operations of the second best, each in its turn."""
    calls = {"armed": False, "left": moment}

    def deadly(real):
        def operation(*arguments, **options):
            if calls["armed"]:
                if calls["left"] == 0:
                    raise Killed
                calls["left"] -= 1
            return real(*arguments, **options)

        return operation

    save_best = Checkpoints.save_best

    def armed_save_best(self, evaluation, contents):
        self.finish()  # what is written beside it is not what dies
        calls["armed"] = evaluation["step"] == 4
        save_best(self, evaluation, contents)
        calls["armed"] = False

    run, options = tmp_path / "run", ("train.steps=4", "train.save_every_steps=4")
    trainer = build(tiny, run, Script(5, 3), *options)
    monkeypatch.setattr(Checkpoints, "save_best", armed_save_best)
    for module, name in (
        (files, "save_file"),
        (torch, "save"),
        (os, "fsync"),
        (Path, "rename"),
        (shutil, "rmtree"),
    ):
        monkeypatch.setattr(module, name, deadly(getattr(module, name)))
    died = False
    try:
        trainer.run()
    except Killed:
        died = True
    monkeypatch.undo()
    # 3 writes of tensors, 6 flushes, two renames, one more flush, and the old best's removal
    assert died == (moment < 13)
    assert step_of_best(run) == (2 if moment < 11 else 4)
    result = build(tiny, run, Script(3), *options, resume="step0000004").run()
    assert result.best_step == step_of_best(run) == 4
    assert sorted(p.name for p in (run / "ckpt").iterdir()) == ["best", "step0000004"]
    assert evaluations(run) == [(2, 5.0), (4, 3.0)]


def test_the_time_of_evaluations_is_not_training_time(tiny, tmp_path):
    def slow(flow):
        time.sleep(0.2)
        return Script(1)(flow)

    trainer = build(tiny, tmp_path / "run", slow, every=1)
    began = time.perf_counter()
    trainer.run()
    wall = time.perf_counter() - began
    records = read_metrics(tmp_path / "run/metrics.jsonl")
    last = [r["seconds"] for r in records if "seconds" in r][-1]
    assert 0 < last < wall - 6 * 0.2


def test_evaluations_asked_for_and_given_belong_together(tiny, tmp_path):
    for evaluate, every in ((None, 2), (Script(1), "null")):
        with pytest.raises(ValueError, match=r"evaluate_every_steps .* give both or neither"):
            build(tiny, tmp_path / "run", evaluate, every=every)


def test_a_metric_that_is_not_there_cannot_decide(tiny, tmp_path):
    def odd(flow):
        return Evaluated({"kid": 1.0, "fid": 2.0}, "fd_data", 10, "")

    with pytest.raises(ValueError, match="judged by 'fd_data', but gave only kid, fid"):
        build(tiny, tmp_path / "run", odd).run()


@pytest.mark.parametrize("content", ["", "[1]", '{"step": 3}'])
def test_a_record_that_cannot_be_read_says_what_to_do(tmp_path, content):
    (tmp_path / "evaluation.json").write_text(content)
    with pytest.raises(ValueError, match=r"evaluation\.json .* move .* away"):
        read_evaluation(tmp_path)


def test_a_record_is_read_back_as_it_was():
    found = Evaluated({"a": 1.0, "b": math.inf}, "a", 10, "how")
    back = Evaluated.of(json.loads(json.dumps(found.record(), allow_nan=False)))
    assert back[1:] == found[1:]
    assert back.value == 1.0
    assert math.isnan(back.metrics["b"])
