"""`flowmatch tune` and the file that it keeps in a run."""

import json
import shutil
import warnings
from dataclasses import replace

import pytest
import torch

import flowmatch as fm
from flowmatch.guidance import CountNFE, Guidance
from flowmatch.paths import Linear
from flowmatch.runs import open_run, weights_file
from flowmatch.sampling import sample
from flowmatch.solvers import ExplicitGrid, GridSolver, Heun, Midpoint
from flowmatch.training.weights import hash_weights
from flowmatch.tuned import TuneJob, network_calls, read_tuned

FEW = ("--num-samples", 2, "--reference-steps", 10, "--solvers", "heun")


@pytest.fixture
def run(trained, tmp_path):
    """A run of its own."""
    return shutil.copytree(trained, tmp_path / "run")


def test_a_budget_is_tuned_written_and_read(flowmatch, run):
    before = (run / "config.yaml").read_bytes()
    code, out, err = flowmatch("tune", run, "--nfe", 4, *FEW)
    assert code == 0, err
    assert "| chosen " in out
    assert "tuned.json" in out
    solver = read_tuned(run, nfe=4)
    assert isinstance(solver, GridSolver)
    assert solver.nfe <= 4
    assert read_tuned(run) == solver  # the only budget
    entry = json.loads((run / "tuned.json").read_text())["4"]
    _, folder = open_run(run)
    assert entry["model"]["hash"] == hash_weights(weights_file(folder, "ema"))
    assert entry["error"] <= min(entry["baselines"].values()) * 1.2
    assert entry["samples"] == entry["held_out"] == 2
    assert entry["clamped"]
    assert entry["reference"]["steps"] == 10
    assert (run / "config.yaml").read_bytes() == before
    assert not list(run.glob(".tuned*"))


def test_the_written_choice_samples_within_its_budget(flowmatch, run):
    assert flowmatch("tune", run, "--nfe", 5, *FEW, "--guidance", 2)[0] == 0
    guidance = Guidance(scale=2.0)
    flow, solver = fm.load(run), read_tuned(run, nfe=5, guidance=guidance)
    counted = CountNFE(flow)
    field = guidance.around(counted, path=flow.path)
    x1 = sample(field, fm.noise(range(2), flow.shape), solver, torch.tensor([3, 4]), path=flow.path)
    assert x1.isfinite().all()
    assert counted.nfe == 4  # two field calls of two evaluations; a third would be six


def test_budgets_lie_side_by_side_and_are_replaced(flowmatch, run):
    for nfe, seed in ((2, 0), (4, 0), (4, 1)):
        assert flowmatch("tune", run, "--nfe", nfe, *FEW, "--seed", seed)[0] == 0
    assert flowmatch("tune", run, "--nfe", 4, *FEW, "--guidance", 1.5)[0] == 0
    content = json.loads((run / "tuned.json").read_text())
    assert list(content) == ["2", "4", "4, guidance scale=1.5"]
    assert content["4"]["seed"] == 1
    with pytest.raises(ValueError, match="tuned for 2, 4 evaluations; say which"):
        read_tuned(run)
    with pytest.raises(ValueError, match=r"not for 7; tune it with .*--nfe 7`"):
        read_tuned(run, nfe=7)
    with pytest.raises(ValueError, match=r"no tuned solver for guidance scale=3.*--guidance 3`"):
        read_tuned(run, guidance=Guidance(scale=3))


def test_the_same_call_writes_the_same_choice(flowmatch, run):
    chosen = []
    for _ in range(2):
        assert flowmatch("tune", run, "--nfe", 4, *FEW)[0] == 0
        chosen.append(read_tuned(run))
    assert chosen[0] == chosen[1]


def test_a_reference_worse_than_the_choice_writes_nothing(flowmatch, run, monkeypatch):
    def with_a_bad_reference(*words, **options):
        found = fm.tune(*words, **options)
        return replace(found, reference_error=2 * found.error)

    monkeypatch.setattr("flowmatch.tuned.run.tune", with_a_bad_reference)
    code, _, err = flowmatch("tune", run, "--nfe", 4, *FEW)
    assert (code, (run / "tuned.json").exists()) == (2, False), err
    assert "the reference is itself off by about" in err
    assert "raise --reference-steps above 10" in err


def test_points_are_tuned_without_clamping(flowmatch, tmp_path):
    config = tmp_path / "points.yaml"
    config.write_text(
        "data: {kind: toy, name: moons}\nnetwork: {kind: mlp, width: 8, depth: 1}\n"
        "train: {steps: 2, batch: 8}\n"
    )
    assert flowmatch("train", "-c", config, "-e", tmp_path / "run")[0] == 0
    code, _, err = flowmatch("tune", tmp_path / "run", "--nfe", 3, *FEW)
    assert code == 0, err
    assert not json.loads((tmp_path / "run/tuned.json").read_text())["3"]["clamped"]
    code, _, err = flowmatch("tune", tmp_path / "run", "--nfe", 4, "--guidance", 2)
    assert code == 2
    assert "conditional" in err


def test_weights_that_changed_since_are_told(flowmatch, run):
    flowmatch("tune", run, "--nfe", 2, *FEW)
    _, folder = open_run(run)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_tuned(run, weights_hash=hash_weights(weights_file(folder, "ema")))
    with pytest.warns(UserWarning, match="tuned on other weights"):
        read_tuned(run, weights_hash="0123456789ab")


@pytest.mark.parametrize(
    "damage",
    [
        "{",
        "[]",
        '{"4": {"nfe": 4}}',
        '{"4": {"nfe": 4, "guidance": {}, "model": {}, "solver": {"kind": "hun"}}}',
        '{"4": {"nfe": 4, "guidance": {}, "model": {}, "solver": {"kind": "heun", "steps": 2,'
        ' "grid": {"kind": "explicit", "values": [0, 0.7, 0.6, 1]}}}}',
    ],
)
def test_a_damaged_file_ends_in_one_sentence_before_the_work(flowmatch, run, damage):
    (run / "tuned.json").write_text(damage)
    with pytest.raises(ValueError, match=r"tuned.json cannot be read .* remove it") as caught:
        read_tuned(run)
    assert "\n" not in str(caught.value)
    code, _, err = flowmatch("tune", run, "--nfe", 4)
    assert code == 2
    assert err.count("\n") == 1
    assert (run / "tuned.json").read_text() == damage


def test_a_grid_by_hand_is_read(run):
    grid = {"kind": "explicit", "values": [0, 0.7, 1]}
    entry = {"nfe": 4, "guidance": {}, "model": {}}
    entry["solver"] = {"kind": "midpoint", "steps": 2, "grid": grid}
    (run / "tuned.json").write_text(json.dumps({"mine": entry}))
    assert read_tuned(run) == Midpoint(steps=2, grid=ExplicitGrid(values=(0.0, 0.7, 1.0)))


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--nfe", 0], "--nfe must be at least 1"),
        (["--nfe", 4, "--num-samples", 1], "--num-samples must be at least 2"),
        (["--nfe", 4, "--bspp", 0], "--bspp must be at least 1"),
        (["--nfe", 4, "--reference-steps", 0], "--reference-steps must be at least 5"),
        (["--nfe", 4, "--solvers", "dopri5"], "chooses its own steps"),
        (["--nfe", 4, "--solvers", "hoin"], "there is no solver 'hoin'"),
        (["--nfe", 3, "--solvers", "rk4"], "too small for one step of rk4"),
        (["--nfe", 1, "--guidance", 2], "too small"),
        (["--nfe", 4, "--guidance", "nan"], "finite number"),
        (["--nfe", 4, "--guidance", 2, "--guidance-interval", "0.5"], "got '0.5'"),
        (["--nfe", 4, "--guidance-interval", "0.2,0.5"], "guidance scale 1 is off"),
        (["--nfe", 4, "--judged", 100], "--judged goes with --judge samples"),
        (["--nfe", 4, "--judge", "samples", "--judged", 5], "--judged must be at least 10"),
        (["--nfe", 4, "--judge", "samples", "--solvers", "ancestral"], "ancestral adds noise"),
    ],
)
def test_mistakes_end_in_one_sentence(flowmatch, trained, words, why):
    code, _, err = flowmatch("tune", trained, *words)
    assert code == 2
    assert why in err
    assert err.startswith("flowmatch: ")
    assert not (trained / "tuned.json").exists()


def test_a_checkpoint_of_another_run_is_refused(flowmatch, run, trained):
    other = trained / "ckpt/step0000006"
    code, _, err = flowmatch("tune", run, "--nfe", 2, "--checkpoint", other)
    assert (code, "is no checkpoint of" in err) == (2, True)
    assert not (run / "tuned.json").exists()


def test_what_is_no_run_is_refused(flowmatch, trained, tmp_path):
    code, _, err = flowmatch("tune", tmp_path, "--nfe", 4)
    assert code == 2
    assert "no run directory" in err
    _, folder = open_run(trained)
    code, _, err = flowmatch("tune", folder, "--nfe", 4)
    assert code == 2
    assert "is a checkpoint; give the run directory" in err
    with pytest.raises(ValueError, match="has no tuned solver; make one with `flowmatch tune"):
        read_tuned(trained, nfe=4)


def test_momentum_has_no_trajectory_to_be_near_to():
    with pytest.raises(ValueError, match="without momentum"):
        TuneJob(nfe=4, guidance=Guidance(scale=2, method="apg", momentum=-0.5))


def test_the_cost_counts_what_is_guided():
    def calls(guidance):
        return network_calls(guidance, Linear())(Heun(steps=4, safe_end=False))

    assert calls(Guidance()) == 8
    assert calls(Guidance(scale=2)) == 16
    # the calls are at 0, 1/4, 1/4, 1/2, 1/2, 3/4, 3/4 and 1
    assert calls(Guidance(scale=2, interval=(0.1, 0.6))) == 12
    assert calls(Guidance(scale=2, method="cfg_zero")) == 14  # the first rests


def test_samples_can_judge_and_then_solvers_that_add_noise_compete(flowmatch, run):
    words = ("--judge", "samples", "--judged", 40, "--solvers", "heun,stochastic_heun,ancestral")
    code, out, err = flowmatch("tune", run, "--nfe", 4, *FEW[:-2], *words)
    assert code == 0, err
    entry = json.loads((run / "tuned.json").read_text())["4"]
    judged = entry["judged"]
    assert {"heun", "stochastic_heun", "ancestral"} <= {j["kind"] for j in judged}
    last = [j["fd_data"] for j in judged if j["samples"] == 40]
    assert last == sorted(last)
    assert judged[0]["samples"] == 40
    assert {j["samples"] for j in judged} == {10, 20, 40}  # half of them leave, twice
    chosen = read_tuned(run, nfe=4)
    assert isinstance(chosen, GridSolver)
    assert chosen.nfe <= 4
    assert {k: judged[0][k] for k in ("kind", "steps")} == {
        "kind": chosen.kind,
        "steps": chosen.steps,
    }
    assert (entry["error"] is None) == chosen.stochastic
    assert "fd_data" in out
    words = (run, "--save_dir", run / "out", "--sampling_method", "auto", "--n_samples", 2)
    code, _, err = flowmatch("sample", *words)
    assert code == 0, err


def test_judged_points_are_ranked_by_their_own_distance(flowmatch, tmp_path):
    config = tmp_path / "points.yaml"
    config.write_text(
        "data: {kind: toy, name: moons}\nnetwork: {kind: mlp, width: 8, depth: 1}\n"
        "train: {steps: 2, batch: 8}\n"
    )
    assert flowmatch("train", "-c", config, "-e", tmp_path / "run")[0] == 0
    code, _, err = flowmatch(
        "tune", tmp_path / "run", "--nfe", 3, *FEW, "--judge", "samples", "--judged", 40
    )
    assert code == 0, err
    entry = json.loads((tmp_path / "run/tuned.json").read_text())["3"]
    assert all(j["w2"] > 0 for j in entry["judged"])


def test_tuning_draws_other_noise_than_sampling_does():
    streams = {TuneJob(nfe=4, seed=seed).stream for seed in range(3)}
    assert len(streams) == 3
    assert not streams & set(range(1000))
