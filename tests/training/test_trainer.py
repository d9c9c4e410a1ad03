"""Training: a resumed run is the run that never stopped, and a split changes only who computes."""

import shutil
import signal
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from flowmatch.config import load_config
from flowmatch.randomness import Rows
from flowmatch.runs import build_trainer
from flowmatch.training.checkpoint import Checkpoints, problems, read_state
from flowmatch.training.draws import Split, draw
from flowmatch.training.result import TrainingFailed
from flowmatch.training.tracking import read_metrics
from made_data import make_imagenet


def train(config_file: Path, run_dir: Path, *overrides: str, resume: str | None = None):
    AcceleratorState._reset_state(reset_partial_state=True)
    trainer = build_trainer(load_config(config_file, overrides), run_dir, resume=resume)
    return trainer, trainer.run()


def log_lines(run_dir: Path) -> list[dict]:
    return [r for r in read_metrics(run_dir / "metrics.jsonl") if "loss" in r]


def weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    return {
        f"{name}.{k}": v
        for name in ("model", "model_ema")
        for k, v in load_file(checkpoint / f"{name}.safetensors").items()
    }


def assert_same_bits(a: Path, b: Path) -> None:
    ours, theirs = weights(a), weights(b)
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert torch.equal(ours[name], theirs[name]), name
    one, two = read_state(a)["optimizer"]["state"], read_state(b)["optimizer"]["state"]
    for index, moments in one.items():
        for name, value in moments.items():
            assert torch.equal(value, two[index][name]), (index, name)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_resumed_run_is_the_straight_run_bit_for_bit(tiny, tmp_path, precision):
    same = f"train.precision={precision}"
    _, straight = train(tiny, tmp_path / "straight", same)
    # the schedule's length is part of the run, so the first half stops by a request, not by `steps`
    AcceleratorState._reset_state(reset_partial_state=True)
    trainer = build_trainer(load_config(tiny, [same]), tmp_path / "halves")
    step = trainer.train_step

    def stop_after_three():
        step()
        if trainer.step == 3:
            signal.raise_signal(signal.SIGTERM)

    trainer.train_step = stop_after_three
    first = trainer.run()
    assert (first.step, first.stopped) == (3, True)
    torch.manual_seed(999)  # whatever another process's generator holds
    _, second = train(tiny, tmp_path / "halves", same, resume="latest")
    assert (second.step, second.stopped) == (6, False)
    assert_same_bits(second.checkpoint, straight.checkpoint)
    assert [r["step"] for r in log_lines(tmp_path / "halves")] == [2, 3, 4, 6]


def test_streaming_data_resumes_bit_for_bit_too(tmp_path):
    """Decoded by worker processes, cropped at random and flipped: the same images again."""
    data = make_imagenet(tmp_path / "data")
    config = tmp_path / "stream.yaml"
    config.write_text(
        f"{{data: {{kind: imagenet, root: {data.root}, image_size: 16, crop: random}},"
        " network: {kind: unet, channels: 8, multipliers: [1], attention_resolutions: [],"
        " heads: 2, dropout: 0.2, num_classes: 3}, train: {steps: 6, batch: 8, workers: 2,"
        " save_every_steps: 3}}"
    )
    _, straight = train(config, tmp_path / "straight")
    _, again = train(config, tmp_path / "straight", resume=_copy(straight.checkpoint, 3, tmp_path))
    assert_same_bits(again.checkpoint, tmp_path / "copy/step0000006")


def _copy(newest: Path, step: int, folder: Path) -> str:
    """Keep all checkpoints elsewhere; the path there of an earlier one."""
    shutil.copytree(newest.parent, folder / "copy")
    return str(folder / f"copy/step{step:07d}")


def test_a_changed_optimizer_setting_is_not_lost_on_resume(tiny, tmp_path):
    train(tiny, tmp_path / "run", "train.steps=3")
    options = ("train.optimizer.weight_decay=0.25", "train.optimizer.betas=[0.8,0.9]")
    trainer, result = train(tiny, tmp_path / "run", *options, resume="latest")
    assert result.step == 6
    for group in trainer.optimizer.param_groups:
        assert (group["weight_decay"], tuple(group["betas"])) == (0.25, (0.8, 0.9))


def test_metrics_of_repeated_steps_are_dropped(tiny, tmp_path):
    train(tiny, tmp_path / "run")
    train(tiny, tmp_path / "run", resume=str(tmp_path / "run/ckpt/step0000003"))
    assert [r["step"] for r in log_lines(tmp_path / "run")] == [2, 4, 6]


@pytest.mark.parametrize("parts", [2, 4])
def test_accumulated_parts_give_the_same_run(tiny, tmp_path, parts):
    options = ("network.dropout=0.3", "train.batch=96", "train.steps=4")
    _, whole = train(tiny, tmp_path / "whole", *options)
    _, split = train(tiny, tmp_path / "split", *options, f"train.accumulate={parts}")
    ours, theirs = weights(whole.checkpoint), weights(split.checkpoint)
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-4, atol=1e-5)


def test_a_part_of_the_randomness_is_what_the_whole_draws():
    device = torch.device("cpu")
    whole = draw(Rows((1, 5), 0, 100), (3, 4), batch=100, device=device)
    for start, stop in ((0, 10), (31, 33), (64, 100), (99, 100)):
        part = draw(Rows((1, 5), start, stop), (3, 4), batch=100, device=device)
        for ours, theirs in zip(part, whole, strict=True):
            assert torch.equal(ours, theirs[start:stop])
    other = draw(Rows((1, 6), 0, 100), (3, 4), batch=100, device=device)
    assert not torch.equal(whole.noise, other.noise)
    assert not torch.equal(whole.time, whole.drop)


def test_a_split_deals_each_row_once():
    for processes, accumulate in ((1, 1), (2, 1), (1, 4), (2, 3), (3, 2)):
        splits = [Split(12, accumulate, processes, rank) for rank in range(processes)]
        parts = [part for split in splits for part in split.parts(0, 0)]
        rows = [r for s in parts for r in range(s.start, s.stop)]
        assert sorted(rows) == list(range(12))


def test_a_batch_that_cannot_be_dealt_is_refused():
    with pytest.raises(ValueError, match=r"train\.batch=10 cannot be dealt to 2 process.*of 4"):
        Split(10, 2, 2, 0)


def test_the_loss_falls(tiny, tmp_path):
    train(tiny, tmp_path / "run", "train.steps=150", "train.lr=3e-3", "train.log_every_steps=25")
    losses = [r["loss"] for r in log_lines(tmp_path / "run")]
    assert losses[-1] < 0.6 * losses[0]


def test_only_the_newest_checkpoints_are_kept(tiny, tmp_path):
    options = ("train.save_every_steps=1", "train.keep_last=2")
    _, result = train(tiny, tmp_path / "run", *options)
    assert [p.name for p in Checkpoints(tmp_path / "run").all()] == ["step0000005", "step0000006"]
    assert result.checkpoint.name == "step0000006"


def test_sample_grids_come_from_the_average(tiny, tmp_path):
    train(tiny, tmp_path / "run", "train.sample_every_steps=3")
    assert sorted(p.name for p in (tmp_path / "run/samples").iterdir()) == [
        "step0000003.png",
        "step0000006.png",
    ]


def test_a_two_dimensional_run(tmp_path):
    config = tmp_path / "toy.yaml"
    config.write_text(
        "{data: {kind: toy, name: moons, samples: 500}, network: {kind: mlp, width: 16},"
        " train: {steps: 5, batch: 32, sample_every_steps: 5, log_every_steps: 1}}"
    )
    _, result = train(config, tmp_path / "run")
    assert result.step == 5
    assert (tmp_path / "run/samples/step0000005.png").is_file()


@pytest.mark.parametrize("predict", ["x1", "x0", "score"])
@pytest.mark.parametrize("path", ["linear", "trig", "vp", "polynomial"])
def test_every_path_and_prediction_trains(tmp_path, predict, path):
    config = tmp_path / "toy.yaml"
    config.write_text(
        "{data: {kind: toy, name: 8gaussians, samples: 500}, network: {kind: mlp, width: 16},"
        f" path: {{kind: {path}}}, predict: {predict},"
        " train: {steps: 20, batch: 64, log_every_steps: 20}}"
    )
    _, result = train(config, tmp_path / "run")
    assert problems(result.checkpoint) is None


def test_a_loss_that_turns_nan_names_the_step_and_the_last_good_checkpoint(tiny, tmp_path):
    AcceleratorState._reset_state(reset_partial_state=True)
    trainer = build_trainer(load_config(tiny, ["train.save_every_steps=2"]), tmp_path / "run")
    step = trainer.train_step

    def poison():
        if trainer.step == 2:  # before the third step
            with torch.no_grad():
                next(trainer.flow.parameters()).fill_(float("nan"))
        step()

    trainer.train_step = poison
    with pytest.raises(
        TrainingFailed, match=r"at step 4; .*sent back once, as .* at step 3\..*step0000002"
    ):
        trainer.run()
    # the poisoned weights were not saved
    assert [p.name for p in Checkpoints(tmp_path / "run").all()] == ["step0000002"]


def test_a_damaged_checkpoint_is_passed_over(tiny, tmp_path):
    _, result = train(tiny, tmp_path / "run")
    for name in ("model.safetensors", "state.pt"):
        file = result.checkpoint / name
        whole = file.read_bytes()
        file.write_bytes(whole[: len(whole) // 2])
        assert problems(result.checkpoint) is not None
        assert Checkpoints(tmp_path / "run").newest().name == "step0000003"
        file.write_bytes(whole)
    assert Checkpoints(tmp_path / "run").newest() == result.checkpoint
