"""A compiled network trains as the other does, is compiled once, and leaves no trace in files."""

import pytest
import torch
from safetensors import safe_open
from test_trainer import train, weights

from flowmatch.config import load_config
from flowmatch.networks import DiTConfig, MLPConfig, UNetConfig
from flowmatch.training.compiling import compile_in_place, repeated_blocks
from flowmatch.training.tracking import read_metrics

CPU = torch.device("cpu")
DIT = DiTConfig(patch=2, width=32, depth=4, heads=2, num_classes=10)
SMALL = (
    "network={kind: dit, patch: 4, width: 16, depth: 4, heads: 2, dropout: 0.1, num_classes: 10}",
    "train.save_every_steps=null",
)


def test_blocks_that_repeat_are_found():
    network = DIT.build((1, 8, 8))
    assert repeated_blocks(network) == [*network.blocks]
    shallow = DiTConfig(patch=2, width=32, depth=3, heads=2)
    assert repeated_blocks(shallow.build((1, 8, 8))) == []
    unet = UNetConfig(channels=32, multipliers=(1, 2, 2, 2), attention_resolutions=())
    assert repeated_blocks(unet.build((1, 32, 32))) == []


def test_off_needs_no_quotes(tiny):
    assert load_config(tiny, ["train.compile=off"]).train.compile == "off"


def test_auto_leaves_a_cpu_alone():
    network = DIT.build((1, 8, 8))
    assert compile_in_place(network, "auto", CPU) == "off"
    assert network._compiled_call_impl is None


def test_a_network_without_equal_blocks_is_refused():
    network = MLPConfig(width=8, depth=2).build((2,))
    with pytest.raises(ValueError, match=r"suits networks that repeat a block 4 times.*=network"):
        compile_in_place(network, "blocks", CPU)


def test_without_a_compiler_it_is_said(monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: None)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ValueError, match=r"train\.compile=network needs a C\+\+ compiler"):
        compile_in_place(DIT.build((1, 8, 8)), "network", CPU)


@pytest.mark.slow
def test_a_run_whose_blocks_are_compiled(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("FLOWMATCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    torch._dynamo.reset()
    _, plain = train(tiny, tmp_path / "plain", *SMALL)
    torch._dynamo.utils.counters.clear()
    _, compiled = train(tiny, tmp_path / "run", *SMALL, "train.compile=blocks")
    counters = torch._dynamo.utils.counters
    assert 0 < counters["stats"]["unique_graphs"] <= 12
    ours, theirs = weights(compiled.checkpoint), weights(plain.checkpoint)
    assert ours.keys() == theirs.keys()
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-3, atol=1e-4)
    (started,) = (
        r["started"] for r in read_metrics(tmp_path / "run/metrics.jsonl") if "started" in r
    )
    assert started["compiled"] == "blocks"
    with safe_open(compiled.checkpoint / "model.safetensors", "pt") as file:
        assert not any("_orig_mod" in name for name in file.keys())  # noqa: SIM118
    assert any((tmp_path / "cache/compiled").iterdir())
