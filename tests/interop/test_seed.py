"""Checkpoints of flow-matching-pytorch give the numbers that its own code computed."""

import shutil

import pytest
import torch
import yaml
from safetensors.torch import load_file

import flowmatch as fm
from flowmatch.interop import NoiseAtOne
from flowmatch.interop.seed import convert_weights, network_config, our_config
from flowmatch.runs import open_run

NAMES = ["grey28", "rgb32-attention"]


@pytest.fixture(params=NAMES)
def imported(request, seed_checkpoints, tmp_path, flowmatch):
    source, run = seed_checkpoints / request.param, tmp_path / "run"
    config = ("--config", source / "config.yaml")
    code, _, err = flowmatch("import", source / "model_ema.pt", *config, "-o", run)
    assert code == 0, err
    return run, load_file(source / "io.safetensors")


def test_the_velocity_equals_the_original(imported):
    run, known = imported
    t = 1 - known["t_noise_is_one"].double()
    velocity = fm.load(run)(known["x"], t)
    torch.testing.assert_close(velocity, -known["net_output"], rtol=0, atol=1e-5)


def test_euler_samples_equal_the_original(imported):
    run, known = imported
    x1 = fm.sample(fm.load(run), known["noise"], fm.solvers.Euler(steps=10))
    torch.testing.assert_close(x1, known["euler10"], rtol=0, atol=1e-4)


def test_heun_equals_the_original_only_when_told_to_be_bare(imported):
    run, known = imported
    flow = fm.load(run)
    bare = fm.sample(flow, known["noise"], fm.solvers.Heun(steps=5, safe_end=False))
    torch.testing.assert_close(bare, known["heun5"], rtol=0, atol=1e-4)
    safe = fm.sample(flow, known["noise"], fm.solvers.Heun(steps=5))
    assert (safe - known["heun5"]).abs().max() > 0.01


def test_the_run_samples_and_resumes(imported, flowmatch, tmp_path, data_root):
    run, known = imported
    code, *_ = flowmatch("sample", run, "--n_samples", 2, "--save_dir", tmp_path / "samples")
    assert code == 0
    channels = known["x"].shape[1]
    root = data_root / ("mnist" if channels == 1 else "cifar10-jpeg")
    before = load_file(run / "ckpt/step0000000/model.safetensors")
    short = ("train.steps=2", "train.batch=4", "train.lr=1e-9")
    code, out, err = flowmatch("train", "-e", run, "--resume", f"data.root={root}", *short)
    assert code == 0, err
    assert "resuming at step 0" in out
    after = load_file(run / "ckpt/step0000002/model.safetensors")
    for name, value in before.items():  # it went on from the imported weights
        torch.testing.assert_close(after[name], value, rtol=0, atol=1e-6)


def test_the_config_is_carried_over(seed_checkpoints, tmp_path, flowmatch):
    foreign = yaml.safe_load((seed_checkpoints / "rgb32-attention/config.yaml").read_text())
    foreign["train"] |= {
        "save_freq": 10_000,
        "optim": {"params": {"lr": 5e-4}},
        "sched": {"params": {"warmup_steps": 20_000, "training_steps": 200_000}},
    }
    ours = our_config(foreign)
    assert ours["train"]["lr"] == 5e-4
    assert ours["train"]["schedule"] == {"kind": "linear", "warmup_steps": 20_000}
    assert ours["train"]["ema"]["warmup"] == "crowsonkb"
    inner = network_config(foreign).inner
    assert inner.attention_resolutions == (16, 8)  # rates 2 and 4 of 32 pixels
    assert inner.time_scale == 999
    # the documented quirk: a rate that no level has builds no attention
    foreign["model"]["params"]["attention_resolutions"] = [16]
    assert network_config(foreign).inner.attention_resolutions == ()


def test_import_writes_a_config_that_opens(imported):
    run, known = imported
    config, _ = open_run(run)
    assert config.network.kind == "noise_at_one"
    assert config.data.shape == tuple(known["x"].shape[1:])


def test_mistakes(seed_checkpoints, tmp_path, flowmatch, tiny):
    source = seed_checkpoints / "grey28"
    weights, config, run = source / "model_ema.pt", source / "config.yaml", tmp_path / "run"

    def attempt(weights, config):
        code, _, err = flowmatch("import", weights, "--config", config, "-o", run)
        assert code == 2
        assert not run.exists()
        return err

    assert "there is no weights file" in attempt(tmp_path / "none.pt", config)
    assert "there is no config file" in attempt(weights, tmp_path / "none.yaml")
    assert "no config of flow-matching-pytorch" in attempt(weights, tiny)
    other = seed_checkpoints / "rgb32-attention/model_ema.pt"
    assert "do not fit" in attempt(other, config)
    shutil.copy(weights, tmp_path / "cut.pt")
    with (tmp_path / "cut.pt").open("r+b") as file:
        file.truncate(100_000)
    assert "may be truncated" in attempt(tmp_path / "cut.pt", config)
    foreign = yaml.safe_load(config.read_text())
    foreign["model"]["params"]["num_classes"] = 10
    (tmp_path / "classes.yaml").write_text(yaml.safe_dump(foreign))
    assert "num_classes" in attempt(weights, tmp_path / "classes.yaml")
    run.mkdir()
    code, _, err = flowmatch("import", weights, "--config", config, "-o", run)
    assert code == 2
    assert "exists" in err


def test_code_in_a_pickle_is_never_run(seed_checkpoints, tmp_path, flowmatch):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "owned"), "w"))

    torch.save({"model": Evil()}, tmp_path / "evil.pt")
    config = ("--config", seed_checkpoints / "grey28/config.yaml")
    code, _, err = flowmatch("import", tmp_path / "evil.pt", *config, "-o", tmp_path / "run")
    assert code == 2
    assert "cannot be read as weights" in err
    assert not (tmp_path / "owned").exists()


def test_the_wrapper_turns_time_and_sign():
    class Inner(torch.nn.Module):
        num_classes = 3

        def forward(self, x, t, cond=None):
            return x * t[:, None]

    network = NoiseAtOne(Inner())
    x, t = torch.randn(4, 2), torch.rand(4)
    torch.testing.assert_close(network(x, t), -x * (1 - t[:, None]))
    assert network.num_classes == 3


def test_only_one_dimensional_convolutions_change_shape():
    weights = {"a.qkv.weight": torch.zeros(6, 2, 1), "b.weight": torch.zeros(6, 2, 1, 1)}
    shapes = {k: tuple(v.shape) for k, v in convert_weights(weights).items()}
    assert shapes == {"inner.a.qkv.weight": (6, 2), "inner.b.weight": (6, 2, 1, 1)}
