"""Several averages and their snapshots in a run: kept whole, bit for bit, whenever it stops."""

import os
import signal
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file, save_file

import flowmatch as fm
from flowmatch.config import load_config
from flowmatch.runs import build_trainer
from flowmatch.training.checkpoint import Checkpoints, averages_of, problems
from flowmatch.training.post_hoc import reconstruct
from flowmatch.training.snapshots import PostHoc, Snapshots
from flowmatch.training.weights import read_header

OPTIONS = (
    "train.ema=[{kind: power, std: 0.05}, {decay: 0.9}]",
    "train.post_hoc={stds: [0.05, 0.1], every_steps: 2}",
)


def build(config: Path, run_dir: Path, *overrides: str, resume: str | None = None):
    AcceleratorState._reset_state(reset_partial_state=True)
    return build_trainer(load_config(config, overrides), run_dir, resume=resume)


def files(folder: Path) -> dict[str, bytes]:
    """All weights of a run by path: tensors and what they say of themselves."""
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in sorted(folder.rglob("*.safetensors"))
        if "superseded" not in str(p)
    }


def names(run_dir: Path) -> list[str]:
    return sorted(p.name for p in (run_dir / "ema").iterdir())


ALL = [
    f"snapshot-step{step:07d}-{name}.safetensors"
    for step in (2, 4, 6)
    for name in ("std0.05", "std0.1")
]


@pytest.fixture(scope="module")
def straight(tmp_path_factory, trained) -> Path:
    """A run with two averages, two snapshots at a time, that never stopped."""
    folder = tmp_path_factory.mktemp("straight")
    build(trained.parent / "tiny.yaml", folder / "run", *OPTIONS).run()
    return folder / "run"


def test_a_checkpoint_holds_every_average(straight):
    (newest,) = (p for p in Checkpoints(straight).all() if p.name == "step0000006")
    averages = averages_of(newest)
    assert list(averages) == ["std0.05", "decay0.9", "std0.1"]
    assert [p.name for p in averages.values()] == [
        "model_ema.safetensors",
        "model_ema-decay0.9.safetensors",
        "model_ema-std0.1.safetensors",
    ]
    header = read_header(averages["decay0.9"])
    assert (header["profile"], header["title"]) == ("decay0.9", "EMA decay 0.9")
    assert (header["step"], header["images"]) == ("6", "96")
    live = load_file(newest / "model.safetensors")
    distances = {
        name: sum(float((live[k] - v).norm()) for k, v in load_file(path).items())
        for name, path in averages.items()
    }
    assert 0 < distances["std0.05"] < distances["std0.1"]  # the wider trails farther behind


def test_snapshots_are_the_averages_of_their_steps(straight):
    assert names(straight) == ALL
    kept = Snapshots(straight).all()
    assert [(s.std, s.step, s.images) for s in kept[:2]] == [(0.05, 2, 32), (0.1, 2, 32)]
    average = load_file(straight / "ckpt/step0000006/model_ema-std0.1.safetensors")
    snapshot = load_file(straight / "ema" / ALL[-1])
    assert all(torch.equal(average[k], v) for k, v in snapshot.items())


def test_the_last_step_has_a_snapshot_too(tiny, tmp_path):
    build(tiny, tmp_path / "run", "train.post_hoc={stds: [0.1], every_images: 50}").run()
    assert [s.step for s in Snapshots(tmp_path / "run").all()] == [4, 6]


def test_half_precision_is_loaded_like_any_other(tiny, tmp_path):
    half = "train.post_hoc={stds: [0.1], every_steps: 6, precision: fp16}"
    build(tiny, tmp_path / "run", half).run()
    (snapshot,) = Snapshots(tmp_path / "run").all()
    flow = fm.load(tmp_path / "run", weights=str(snapshot.path))
    exact = fm.load(tmp_path / "run", weights="std0.1")
    for a, b in zip(flow.parameters(), exact.parameters(), strict=True):
        assert a.dtype == torch.float32
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-6)


def test_a_weight_too_large_for_half_precision_is_kept_in_full(tmp_path):
    from flowmatch.training.ema import Power

    module = torch.nn.Linear(2, 1)
    with torch.no_grad():
        module.weight.fill_(1e6)
    kept = Snapshots(tmp_path, PostHoc(stds=(0.1,), every_steps=1, precision="fp16"))
    kept.save({Power(std=0.1): module}, step=1, images=1)
    tensors = load_file(kept.all()[0].path)
    assert (tensors["weight"].dtype, tensors["bias"].dtype) == (torch.float32, torch.float16)
    assert tensors["weight"].eq(1e6).all()


def test_a_run_that_was_stopped_ends_with_the_same_files(tiny, tmp_path, straight):
    trainer = build(tiny, tmp_path / "run", *OPTIONS)
    step = trainer.train_step

    def stop_after_three():
        step()
        if trainer.step == 3:
            signal.raise_signal(signal.SIGTERM)

    trainer.train_step = stop_after_three
    assert trainer.run().stopped
    assert names(tmp_path / "run") == ALL[:2]
    build(tiny, tmp_path / "run", *OPTIONS, resume="latest").run()
    assert files(tmp_path / "run") == files(straight)


class Killed(BaseException):
    """Stands for kill -9: nothing in the program catches it or cleans up after it."""


def test_a_kill_between_snapshots_and_checkpoint(tiny, tmp_path, monkeypatch, straight):
    trainer = build(tiny, tmp_path / "run", *OPTIONS)

    def dies(*arguments, **options):
        raise Killed

    monkeypatch.setattr(Checkpoints, "begin_save", dies)
    with pytest.raises(Killed):
        trainer.run()  # at step 3, with snapshots of step 2 and no checkpoint
    monkeypatch.undo()
    assert names(tmp_path / "run") == ALL[:2]
    trainer = build(tiny, tmp_path / "run", *OPTIONS, resume="latest")
    assert trainer.step == 0
    assert not Snapshots(tmp_path / "run").all()
    trainer.run()
    assert files(tmp_path / "run") == files(straight)


@pytest.mark.parametrize("moment", [2, 3])
def test_a_kill_in_the_midst_of_snapshots(tiny, tmp_path, monkeypatch, straight, moment):
    """Of the two of step 4, one or none got its name; a resumed run makes both."""
    trainer = build(tiny, tmp_path / "run", *OPTIONS)
    replace, left = os.replace, [moment]

    def deadly(source, target):
        if "snapshot" in str(target):
            if not left[0]:
                raise Killed
            left[0] -= 1
        replace(source, target)

    monkeypatch.setattr(os, "replace", deadly)
    with pytest.raises(Killed):
        trainer.run()
    monkeypatch.undo()
    assert [n for n in names(tmp_path / "run") if n[0] != "."] == ALL[:moment]
    build(tiny, tmp_path / "run", *OPTIONS, resume="latest").run()
    assert files(tmp_path / "run") == files(straight)
    assert not list((tmp_path / "run/ema").glob(".partial*"))


def test_going_back_sets_aside_what_came_later(tiny, tmp_path):
    run = tmp_path / "run"
    build(tiny, run, *OPTIONS).run()
    found = reconstruct(run, 0.05)
    found.write(run / "ema" / found.file_name)
    trainer = build(tiny, run, *OPTIONS, resume=str(run / "ckpt/step0000003"))
    assert trainer.step == 3
    assert [s.step for s in Snapshots(run).all()] == [2, 2]
    later = [*ALL[2:], "std0.05-step0000006.safetensors"]
    assert names(run) == sorted([*ALL[:2], *(f"superseded-{n}" for n in later)])
    trainer.run()  # what has been done anew needs no other
    assert names(run) == sorted([*ALL, f"superseded-{later[-1]}"])


def test_an_average_cannot_begin_in_the_midst(tiny, tmp_path):
    run = tmp_path / "run"
    build(tiny, run).run()
    for change in ("train.ema={kind: power, std: 0.1}", "train.post_hoc.every_steps=2"):
        with pytest.raises(
            ValueError, match=r"cannot go on with the average std0\.\d+: .*has decay"
        ):
            build(tiny, run, change, resume="latest")
    with pytest.raises(
        ValueError, match=r"with the average decay0\.5: .*step0000006 has decay0\.9,"
    ):
        build(tiny, run, "train.ema=[{decay: 0.9}, {decay: 0.5}]", resume="latest")


def test_the_own_decay_may_change_and_others_may_end(tiny, tmp_path, straight):
    run = tmp_path / "run"
    build(tiny, run).run()
    trainer = build(tiny, run, "train.ema.decay=0.5", "train.steps=8", resume="latest")
    trainer.run()
    assert list(averages_of(run / "ckpt/step0000008")) == ["decay0.5"]
    kept = str(straight / "ckpt/step0000006")
    trainer = build(tiny, run, "train.steps=8", "train.ema.decay=0.9", resume=kept)
    theirs = load_file(straight / "ckpt/step0000006/model_ema-decay0.9.safetensors")
    ours = trainer.averages.own.network.state_dict()
    assert all(torch.equal(ours[k], v) for k, v in theirs.items())


def test_a_run_from_before_averages_had_names(tiny, tmp_path):
    run = tmp_path / "run"
    build(tiny, run, "train.steps=3").run()
    for name in ("model", "model_ema"):
        path = run / f"ckpt/step0000003/{name}.safetensors"
        save_file(load_file(path), path, {"format": "pt", "step": "3"})
    assert problems(run / "ckpt/step0000003") is None
    fm.load(run)
    with pytest.raises(ValueError, match=r"no weights 'std0\.1': .*step0000003 has ema and model"):
        fm.load(run, weights="std0.1")
    assert build(tiny, run, resume="latest").run().step == 6
    with pytest.raises(ValueError, match=r"has ema \(which is decay0\.9\) and model"):
        fm.load(run, weights="std0.1")


def test_a_checkpoint_that_lost_an_average_is_passed_over(tiny, tmp_path):
    run = tmp_path / "run"
    build(tiny, run, *OPTIONS).run()
    lost = run / "ckpt/step0000006/model_ema-std0.1.safetensors"
    whole = lost.read_bytes()
    lost.write_bytes(whole[: len(whole) // 2])
    assert "truncated" in problems(lost.parent)
    lost.unlink()
    assert problems(lost.parent).endswith("lacks model_ema-std0.1.safetensors")
    assert Checkpoints(run).newest().name == "step0000003"


def test_a_damaged_snapshot_is_named(tmp_path, straight):
    (tmp_path / "ema").mkdir()
    path = tmp_path / "ema" / ALL[0]
    path.write_bytes((straight / "ema" / ALL[0]).read_bytes()[:1000])
    with pytest.raises(ValueError, match=f"{ALL[0]} cannot be read"):
        Snapshots(tmp_path).all()
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="does not say which average it is"):
        Snapshots(tmp_path).all()


def test_the_disk_must_hold_the_snapshots(tiny, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("flowmatch.sketch.require_space", lambda *told: asked.append(told))
    one = "train.post_hoc={stds: [0.1], every_steps: 1}"
    build(tiny, tmp_path / "a")
    build(tiny, tmp_path / "b", one)
    build(tiny, tmp_path / "c", one.replace("1}", "1, precision: fp16}"))
    assert asked[::2] == asked[1::2]  # before and after the data
    (_, none, what), (_, full, more), (_, half, _) = asked[::2]
    parameters = none / 16 / 4
    assert what == "4 checkpoints"
    assert more == "4 checkpoints and 6 snapshots of averages"
    assert full - none == 4 * parameters * (6 + 4)  # and the average in each checkpoint
    assert half - none == 4 * parameters * (6 / 2 + 4)


def test_the_count_of_snapshots_to_come(tiny):
    config = load_config(tiny, ["train.post_hoc={stds: [0.1], every_steps: 4}", "train.steps=10"])
    for step in range(12):
        steps = [s for s in range(step + 1, 11) if config.train.snapshot_at(s)]
        assert config.train.snapshots_after(step) == len(steps)
