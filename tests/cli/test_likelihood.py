"""`flowmatch likelihood`, from words to numbers."""

import json
import types

import pytest
import torch

import flowmatch as fm
from flowmatch.config import load_config
from flowmatch.data import Digits
from flowmatch.likelihood import Exact, bits_per_dim, dequantise, log_prob
from flowmatch.report.reading import read_run
from flowmatch.runs import build_trainer
from flowmatch.solvers import Heun

FEW = ("--num-samples", 6, "--solver", "heun:2")

TOY = """
data: {kind: toy, name: moons, samples: 200}
network: {kind: mlp, width: 16, depth: 1}
loss: {kind: flow_matching}
train: {steps: 2, batch: 16, lr: 1.0e-3, sample_every_steps: null}
"""


@pytest.fixture(scope="module")
def points_run(tmp_path_factory):
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    folder = tmp_path_factory.mktemp("points")
    (folder / "toy.yaml").write_text(TOY)
    build_trainer(load_config(folder / "toy.yaml"), folder / "run").run()
    return folder / "run"


def numbers(flowmatch, *arguments):
    code, out, err = flowmatch("likelihood", *arguments)
    assert code == 0, err
    with open(out.splitlines()[-1]) as file:
        return json.load(file), out


def test_a_run_of_images(flowmatch, trained):
    document, out = numbers(flowmatch, trained, *FEW, "--exact", "--seed", 3)
    result, protocol = document["result"], document["protocol"]
    assert protocol["data"]["name"] == "digits"
    assert (protocol["data"]["count"], protocol["data"]["of"]) == (6, 360)
    assert protocol["data"]["levels"] == 17
    assert protocol["labels"] == "of the data"
    assert protocol["dequantisation"] == {"law": "uniform", "draws": 1, "bins": 256, "seed": 3}
    assert protocol["solver"]["steps"] == 2
    assert protocol["model"]["images_seen"] == 96
    assert result["nfe"] == 4
    assert result["bits_per_dim"]["probe_error"] == 0
    assert result["bits_per_dim"]["standard_error"] > 0
    assert 0 < result["round_trip_rms"]["mean"] <= result["round_trip_rms"]["largest"] < 0.5
    assert document["sentence"] in out
    assert "bits/dim " in out
    assert "17 of 256 levels" in out
    assert "4.09" in out


def test_the_number_is_that_of_the_library(flowmatch, trained):
    document, _ = numbers(flowmatch, trained, *FEW, "--exact", "--bspp", 4, "--seed", 2)
    index = torch.linspace(0, 359, 6).round().long()
    batch = Digits().build("test").plain(index)
    x1 = dequantise(batch.x1, seeds=index.tolist(), stream=2)
    flow, solver = fm.load(trained), Heun(steps=2)
    nats = log_prob(flow, x1, solver, batch.cond["label"], divergence=Exact())
    result = document["result"]
    assert result["nats"]["mean"] == pytest.approx(nats.mean().item(), rel=1e-4)
    bits = bits_per_dim(nats, 64)
    assert result["bits_per_dim"]["mean"] == pytest.approx(bits.mean().item(), rel=1e-4)
    error = bits.std().item() / 6**0.5
    assert result["bits_per_dim"]["standard_error"] == pytest.approx(error, rel=1e-3)


def test_probes_say_what_they_are_uncertain_by(flowmatch, trained):
    exact, _ = numbers(flowmatch, trained, *FEW, "--exact")
    probed, out = numbers(flowmatch, trained, *FEW, "--probes", 16)
    error = probed["result"]["nats"]["probe_error"]
    assert 0 < error < probed["result"]["nats"]["standard_error"]
    off = probed["result"]["nats"]["mean"] - exact["result"]["nats"]["mean"]
    assert 0 < abs(off) < 4 * error
    assert "(probes " in out
    assert "rademacher probes: 16" in out
    one, out = numbers(flowmatch, trained, *FEW, "--probes", 1)
    assert one["result"]["nats"]["probe_error"] is None
    assert "(probes " not in out


def test_batches_change_nothing_and_protocols_have_files_of_their_own(flowmatch, trained):
    one, a = numbers(flowmatch, trained, *FEW, "--bspp", 2)
    two, b = numbers(flowmatch, trained, *FEW, "--bspp", 6)
    other, c = numbers(flowmatch, trained, *FEW, "--split", "train", "--dequantisations", 2)
    assert one["result"]["nats"]["mean"] == pytest.approx(two["result"]["nats"]["mean"], rel=1e-4)
    first, second, third = (out.splitlines()[-1] for out in (a, b, c))
    assert first == second != third
    assert other["protocol"]["dequantisation"]["draws"] == 2
    assert other["protocol"]["data"]["split"] == "train"
    assert str(trained / "likelihood" / "step0000006-test-6-") in first
    assert not read_run(trained).unreadable  # the report's folder holds evaluations alone


def test_points_have_nats_and_no_bits(flowmatch, points_run, tmp_path):
    path = tmp_path / "there.json"
    document, out = numbers(
        flowmatch, points_run, "--num-samples", 20, "--solver", "heun:4", "--json", path
    )
    assert out.splitlines()[-1] == str(path)
    assert document["result"]["bits_per_dim"] is None
    assert document["protocol"]["dequantisation"] is None
    assert document["protocol"]["labels"] is None
    assert "bits/dim" not in out
    assert document["result"]["nats"]["mean"] < 0
    code, _, err = flowmatch("likelihood", points_run, "--dequantisations", 2)
    assert code == 2
    assert "points have no bins" in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--exact", "--probes", 2), "give --exact or --probes"),
        (("--solver", "heun:2,4"), "give one number of steps"),
        (("--solver", "euler_maruyama:4"), "adds noise"),
        (("--solver", "ddim:4"), "steps along the path"),
        (("--num-samples", 0), "--num-samples must be at least 1"),
        (("--t1", 0), "0 <= t0 < t1 <= 1"),
        (("--json", "."), "is a folder"),
        (("elsewhere",), "give one run directory"),
    ],
)
def test_mistakes_are_named(flowmatch, trained, words, message):
    code, _, err = flowmatch("likelihood", trained, *words)
    assert code == 2
    assert message in err
    assert "Traceback" not in err


def test_several_processes_are_refused_before_anything_is_written(
    flowmatch, trained, tmp_path, monkeypatch
):
    two = types.SimpleNamespace(num_processes=2)
    monkeypatch.setattr("flowmatch.training.distributed.start_processes", lambda: two)
    path = tmp_path / "a.json"
    code, _, err = flowmatch("likelihood", trained, *FEW, "--json", path)
    assert code == 2
    assert "one process" in err
    assert not path.exists()
