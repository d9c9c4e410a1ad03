"""A sharded run is the run that is not sharded, in half the memory, and goes on as any other."""

import json
import os
import re
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from test_trainer import log_lines, train

import flowmatch as fm
from flowmatch.training.checkpoint import Checkpoints, export, problems, read_state
from flowmatch.training.sharding import tensors_of
from flowmatch.training.shards import Stored
from flowmatch.training.tracking import read_metrics
from test_processes import TORCHRUN, run, start, wait_for_line

pytestmark = pytest.mark.slow

EVERYTHING = [
    *("train.batch=24", "train.accumulate=2", "train.max_grad_norm=0.5", "train.samples=4"),
    *("train.ema=[{decay: 0.9}, {kind: power, std: 0.2}]", "train.sample_every_steps=3"),
    *("train.post_hoc={stds: [0.1], every_steps: 3}", "train.optimizer.weight_decay=0.01"),
    *("loss.weighting.kind=uncertainty", "loss.time={kind: stratified, of: {kind: adaptive}}"),
]
DIT = [
    "network={kind: dit, patch: 4, width: 24, depth: 4, heads: 2, num_classes: 10,"
    " gradient_checkpointing: true}",
    "train.optimizer={kind: muon, weight_decay: 0.1}",
]
SHARDED = "train.sharding=fsdp"


@pytest.fixture(scope="module")
def runs(made_once, tiny_yaml) -> Path:
    """The runs of one process, and those that two began or went on with in one start."""
    options = dict.fromkeys(("whole", "from-whole", "to-whole"), EVERYTHING)
    options |= {name: [*EVERYTHING, SHARDED] for name in ("sharded", "resumed")}
    options |= {name: ["train.evaluate_every_steps=2", SHARDED] for name in ("eventful", "anew")}
    options |= {name: [*DIT, SHARDED] for name in ("muon-sharded", "muon-resumed")}

    def make(folder: Path) -> None:
        (folder / "tiny.yaml").write_text(tiny_yaml)
        (folder / "options.json").write_text(json.dumps(options))
        train(folder / "tiny.yaml", folder / "whole", *EVERYTHING)
        train(folder / "tiny.yaml", folder / "muon-whole", *DIT)
        done = run(*TORCHRUN, Path(__file__).with_name("sharded_runs.py"), folder)
        assert done.returncode == 0, done.stderr

    return made_once("sharded-runs", make)


def last(run_dir: Path, name: str = "*") -> dict[str, torch.Tensor]:
    """All weights of a run's last checkpoint, as they are exported."""
    files = sorted((run_dir / "ckpt/step0000006").glob(f"{name}.safetensors"))
    assert files
    return {f"{f.stem}.{k}": v for f in files for k, v in load_file(f).items()}


def assert_close(run_dir: Path, other: Path) -> None:
    ours, theirs = last(run_dir), last(other)
    assert ours.keys() == theirs.keys()
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-3, atol=1e-4)


def test_a_sharded_run_is_the_run_that_is_not(runs):
    assert_close(runs / "sharded", runs / "whole")
    assert len([*(runs / "sharded/ckpt/step0000006").glob("*.safetensors")]) == 4
    a, b = (log_lines(runs / name) for name in ("sharded", "whole"))
    for ours, theirs in zip(a, b, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-4)
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-4)
        assert ours["clipped"] == theirs["clipped"] > 0
    one, two = (
        read_state(runs / name / "ckpt/step0000006")["learned"] for name in ("sharded", "whole")
    )
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=1e-3, atol=1e-4)


def test_what_is_shown_and_kept_on_the_way_is_the_same(runs):
    a, b = (
        [r for r in read_metrics(runs / n / "metrics.jsonl") if "grad_norm_t" in r]
        for n in ("sharded", "whole")
    )
    assert len(a) == 2
    for ours, theirs in zip(a, b, strict=True):
        assert ours["grad_norm_t"] == pytest.approx(theirs["grad_norm_t"], rel=1e-3)
        assert ours["curvature"] == pytest.approx(theirs["curvature"], rel=1e-2, abs=1e-6)
    snapshots = sorted(p.name for p in (runs / "whole/ema").iterdir())
    assert snapshots == sorted(p.name for p in (runs / "sharded/ema").iterdir())
    for name in snapshots:
        ours, theirs = (load_file(runs / n / "ema" / name) for n in ("sharded", "whole"))
        for key in theirs:
            torch.testing.assert_close(ours[key], theirs[key], rtol=1e-3, atol=1e-4)


def test_each_process_has_half_of_everything(runs):
    state = read_state(runs / "whole/ckpt/step0000006")
    parameters = sum(v["exp_avg"].nbytes for v in state["optimizer"]["state"].values())
    each = [torch.load(runs / f"found-{rank}.pt")["bytes"] for rank in range(2)]
    for kind, copies in (("parameters", 1), ("gradients", 1), ("moments", 2), ("averages", 3)):
        have = [found[kind] for found in each]
        # the learned uncertainty, 32 numbers, is no part of the averages
        all_of_it = copies * parameters - (3 * 32 * 4 if kind == "averages" else 0)
        assert sum(have) == all_of_it, kind
        assert max(have) < 0.55 * all_of_it, kind


def test_resumed_it_ends_as_if_it_had_never_stopped(runs):
    for name, straight in (("resumed", "sharded"), ("muon-resumed", "muon-sharded")):
        ours, theirs = last(runs / name), last(runs / straight)
        for key in theirs:
            assert torch.equal(ours[key], theirs[key]), key
        a, b = (
            Stored(runs / n / "ckpt/step0000006/optimizer.safetensors") for n in (name, straight)
        )
        for key in b.shapes:
            assert torch.equal(a.read(key), b.read(key)), key


def test_a_whole_checkpoint_goes_on_sharded_and_the_other_way_round(runs, tmp_path):
    assert_close(runs / "from-whole", runs / "whole")
    assert_close(runs / "to-whole", runs / "whole")
    assert (runs / "from-whole/ckpt/step0000006/optimizer").is_dir()
    assert not (runs / "to-whole/ckpt/step0000006/optimizer").exists()
    shutil.copytree(runs / "sharded", tmp_path / "alone")
    shutil.rmtree(tmp_path / "alone/ckpt/step0000006")
    train(runs / "tiny.yaml", tmp_path / "alone", *EVERYTHING, SHARDED, resume="latest")
    assert_close(tmp_path / "alone", runs / "whole")


def test_muon_on_shards_is_muon(runs):
    assert_close(runs / "muon-sharded", runs / "muon-whole")


def test_a_sharded_run_is_evaluated_and_goes_back_together(runs):
    """The number that is not finite was in the shard of the second process alone."""
    records = read_metrics(runs / "eventful/metrics.jsonl")
    found = [r["evaluation"]["metrics"]["size"] for r in records if "evaluation" in r]
    assert len(found) == 3
    assert [r["rolled_back"]["from_step"] for r in records if "rolled_back" in r] == [6]
    assert json.loads((runs / "eventful/skipped_steps.json").read_text()) == [5]
    assert read_state(runs / "eventful/ckpt/step0000006")["skipped"] == [5]
    assert read_state(runs / "anew/ckpt/step0000006")["skipped"] == [1]  # began again
    best = Checkpoints(runs / "eventful").best()
    weights = load_file(best / "model_ema.safetensors")  # exported as the run ended
    size = sum(float(v.square().sum()) for v in weights.values())
    assert size == pytest.approx(min(found), rel=1e-5)


def test_a_sharded_checkpoint_is_read_and_exported(runs, tmp_path, flowmatch):
    """The first one of the run, which nobody put together."""
    shutil.copytree(runs / "sharded", tmp_path / "run")
    folder = tmp_path / "run/ckpt/step0000003"
    assert problems(folder) is None
    assert not list(folder.glob("*.safetensors"))
    flow = fm.load(folder)
    ours, theirs = flow.network.state_dict(), Stored(folder / "model_ema.safetensors")
    for name, value in ours.items():
        assert torch.equal(value, theirs.read(name))
    assert [p.name for p in folder.glob("*.safetensors")] == ["model_ema.safetensors"]
    (folder / "model_ema.safetensors").unlink()
    words = ("--n_samples", 2, "--save_dir", tmp_path / "by-file", "--sampling_steps", 2)
    file = folder / "model_ema.safetensors"
    assert flowmatch("sample", "-c", folder / "config.yaml", "--weights", file, *words)[0] == 0
    code, out, err = flowmatch("export", folder)
    assert code == 0, err
    names = [line.split("/")[-1].split(" ")[0] for line in out.splitlines()]
    assert names == [p.name for p in export(folder)]
    assert sorted(names)[:2] == ["model.safetensors", "model_ema-std0.1.safetensors"]
    words = ("--n_samples", 2, "--save_dir", tmp_path / "samples", "--sampling_steps", 2)
    assert flowmatch("sample", folder, *words)[0] == 0
    assert len(list((tmp_path / "samples").glob("0*.png"))) == 2


def test_a_process_that_cannot_write_is_heard_by_all(runs):
    own = "[Errno 28] No space left on device"
    for rank in range(2):
        said = torch.load(runs / f"found-{rank}.pt")["errors"]
        assert said[rank] == own
        assert said[1 - rank] == f"process {1 - rank} could not write: {own}"


def test_the_header_of_an_exported_average_says_which_it_is(runs):
    ours, theirs = (
        Stored(runs / name / "ckpt/step0000006/model_ema-std0.1.safetensors").header
        for name in ("sharded", "whole")
    )
    assert ours == theirs
    assert ours["title"] == "EMA std 0.1"


def test_a_checkpoint_that_lacks_a_shard_is_passed_over(runs, tmp_path):
    shutil.copytree(runs / "sharded/ckpt/step0000003", tmp_path / "ckpt/step0000003")
    shutil.copytree(tmp_path / "ckpt/step0000003", tmp_path / "ckpt/step0000004")
    next((tmp_path / "ckpt/step0000004/optimizer").glob("shard-00002*")).unlink()
    assert re.search("optimizer has 1 of 2 shards", problems(tmp_path / "ckpt/step0000004"))
    assert Checkpoints(tmp_path).newest().name == "step0000003"
    shutil.rmtree(tmp_path / "ckpt/step0000003/optimizer")
    assert problems(tmp_path / "ckpt/step0000003") is not None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["train.micro_batch=auto"], "give train.micro_batch as a number"),
        (["train.precision=fp16"], "computes in fp32 or bf16"),
    ],
)
def test_what_cannot_be_sharded_is_refused(flowmatch, tiny, tmp_path, options, message):
    code, _, err = flowmatch("train", "-c", tiny, "-e", tmp_path / "run", SHARDED, *options)
    assert code == 2
    assert message in err


def test_one_process_is_not_sharded(tiny, tmp_path):
    trainer, _ = train(tiny, tmp_path / "run", SHARDED)
    assert not trainer.state.is_sharded
    assert tensors_of(trainer.flow.network).keys() == trainer.flow.network.state_dict().keys()
    assert (tmp_path / "run/ckpt/step0000006/model.safetensors").is_file()


def test_three_processes_go_on_with_what_two_began(runs, tmp_path):
    shutil.copytree(runs / "sharded", tmp_path / "three")
    shutil.rmtree(tmp_path / "three/ckpt/step0000006")
    three = (*TORCHRUN[:-1], "3", "train.py", "-e", tmp_path / "three", "--resume")
    done = run(*three)
    assert done.returncode == 0, done.stderr
    assert_close(tmp_path / "three", runs / "whole")


def test_edm2_is_refused(tiny, tmp_path):
    network = "network={kind: edm2, channels: 8, multipliers: [1, 2], blocks: 1, head_channels: 8}"
    words = ("-c", tiny, "-e", tmp_path / "run", SHARDED, network)
    done = run(*TORCHRUN, "train.py", *words)
    assert done.returncode != 0
    assert done.stderr.count("train.sharding=fsdp cannot shard this network: edm2") == 1


def test_a_lost_process_ends_the_run_which_goes_on_from_its_last_checkpoint(tiny, tmp_path):
    long = ("train.steps=4000", "train.log_every_steps=1", "train.save_every_steps=2", SHARDED)
    process = start(tiny, tmp_path / "run", *long, launcher=TORCHRUN, stderr=subprocess.PIPE)
    wait_for_line(process, "step 7/")
    os.kill(process_of_rank(1, process.pid), signal.SIGKILL)
    _, err = process.communicate(timeout=60)
    assert process.returncode != 0
    assert err.count("flowmatch: another process ended") == 1
    assert "in train_step" not in err  # no traceback
    newest = Checkpoints(tmp_path / "run").newest()
    assert int(newest.name[4:]) >= 4
    AcceleratorState._reset_state(reset_partial_state=True)
    step = int(newest.name[4:])
    trainer, _ = train(
        tiny, tmp_path / "run", *long[1:], f"train.steps={step + 2}", resume="latest"
    )
    assert trainer.step == step + 2


def process_of_rank(rank: int, parent: int) -> int:
    """The process that a launcher started as this rank (Linux)."""
    if not Path("/proc").is_dir():
        pytest.skip("finds processes in /proc")
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            started_by = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            variables = (entry / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if started_by == parent and f"RANK={rank}".encode() in variables:
            return int(entry.name)
    pytest.fail(f"no process of rank {rank}")
