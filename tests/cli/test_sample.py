"""`flowmatch sample`: files that depend on (seed, index) alone, and one sentence a mistake."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import flowmatch as fm
from flowmatch.evaluation.stored import load_stored
from flowmatch.tensors import to_uint8


def images(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.glob("[0-9]*.png"))}


@pytest.fixture
def weights(trained) -> Path:
    return trained / "ckpt/step0000006/model_ema.safetensors"


def test_both_doors_and_their_defaults(flowmatch, trained, weights, tmp_path):
    config = trained / "config.yaml"
    code, out, _ = flowmatch(
        *("sample", "-c", config, "--weights", weights),
        *("--n_samples", 3, "--save_dir", tmp_path / "a"),
    )
    assert code == 0
    assert "contact-sheet.png" in out
    record = json.loads((tmp_path / "a/sampling.json").read_text())
    assert record["solver"] == {"kind": "euler", "steps": 100, "safe_end": True}
    assert (record["seed"], record["nfe"], record["count"]) == (8888, 100, 3)
    assert sorted(images(tmp_path / "a")) == ["00000.png", "00001.png", "00002.png"]
    code, *_ = flowmatch("sample", trained, "--n-samples", 3, "--save-dir", tmp_path / "b")
    assert code == 0
    record = json.loads((tmp_path / "b/sampling.json").read_text())
    assert record["solver"]["kind"] == "heun"
    assert record["nfe"] == 4


def test_another_field_of_the_same_weights_is_another_setting(
    flowmatch, trained, weights, tmp_path
):
    out = ("--sampling_method", "euler", "--sampling_steps", 2, "--save_dir", tmp_path / "a")
    assert flowmatch("sample", trained, "--n_samples", 2, *out)[0] == 0
    code, _, err = flowmatch("sample", trained, "--n_samples", 3, *out, "path={kind: trig}")
    assert code == 2
    assert "holds samples of another setting (field was" in err
    doors = ("-c", trained / "config.yaml", "--weights", weights)
    assert flowmatch("sample", *doors, "--n_samples", 3, *out, "train.lr=1")[0] == 0


def test_a_sample_depends_on_seed_and_index_alone(flowmatch, trained, tmp_path):
    flowmatch("sample", trained, "--n_samples", 7, "--save_dir", tmp_path / "a", "--bspp", 3)
    flowmatch("sample", trained, "--n_samples", 5, "--save_dir", tmp_path / "b", "--bspp", 2)
    a, b = images(tmp_path / "a"), images(tmp_path / "b")
    pixels = [np.asarray(Image.open(tmp_path / d / "00004.png")).astype(int) for d in "ab"]
    assert abs(pixels[0] - pixels[1]).max() <= 1  # the batch may round the last bit
    assert len(a) == 7
    assert len(b) == 5
    other = ("--n_samples", 5, "--save_dir", tmp_path / "c", "--seed", 1)
    flowmatch("sample", trained, *other)
    assert images(tmp_path / "c")["00000.png"] != b["00000.png"]


def test_the_files_hold_what_the_library_draws(flowmatch, trained, tmp_path):
    flowmatch("sample", trained, "--n_samples", 4, "--save_dir", tmp_path / "a")
    flow = fm.load(trained)
    x0 = fm.noise(range(4), flow.shape, stream=8888)
    x1 = fm.sample(flow, x0, fm.solvers.Heun(steps=2), torch.arange(4))
    for i, image in enumerate(to_uint8(x1)):
        stored = np.asarray(Image.open(tmp_path / f"a/{i:05d}.png"))
        assert np.array_equal(stored, image[0].numpy())


def test_it_continues_where_it_stopped(flowmatch, trained, tmp_path):
    arguments = ("sample", trained, "--n_samples", 6, "--save_dir", tmp_path / "a", "--bspp", 2)
    flowmatch(*arguments)
    whole = images(tmp_path / "a")
    (tmp_path / "a/00003.png").unlink()
    times = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "a").glob("0000[0145].png")}
    assert flowmatch(*arguments)[0] == 0
    assert images(tmp_path / "a") == whole
    after = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "a").glob("0000[0145].png")}
    assert after == times
    more = ("sample", trained, "--n_samples", 8, "--save_dir", tmp_path / "a", "--bspp", 2)
    assert flowmatch(*more)[0] == 0
    assert len(images(tmp_path / "a")) == 8


def test_npz(flowmatch, trained, tmp_path):
    arguments = ("--n_samples", 5, "--save_dir", tmp_path / "a", "--format", "npz", "--bspp", 2)
    assert flowmatch("sample", trained, *arguments)[0] == 0
    archive = np.load(tmp_path / "a/samples.npz")
    assert archive["samples"].shape == (5, 8, 8, 1)
    assert archive["samples"].dtype == np.uint8
    assert archive["labels"].tolist() == [0, 1, 2, 3, 4]
    flowmatch("sample", trained, "--n_samples", 5, "--save_dir", tmp_path / "b", "--bspp", 2)
    first = np.asarray(Image.open(tmp_path / "b/00003.png"))
    assert np.array_equal(archive["samples"][3, :, :, 0], first)
    assert not (tmp_path / "a/.parts").exists()


def test_asking_for_fewer_loses_nothing(flowmatch, trained, tmp_path):
    for kind in ("png", "npz"):
        for count, held in ((5, 5), (3, 5), (7, 7), (7, 7)):
            out = ("--save_dir", tmp_path / kind, "--format", kind, "--bspp", 2)
            assert flowmatch("sample", trained, "--n_samples", count, *out)[0] == 0
            record = json.loads((tmp_path / kind / "sampling.json").read_text())
            assert record["count"] == held
    archive = np.load(tmp_path / "npz/samples.npz")
    assert archive["labels"].tolist() == [0, 1, 2, 3, 4, 5, 6]
    for i, image in enumerate(archive["samples"]):
        stored = np.asarray(Image.open(tmp_path / f"png/{i:05d}.png")).astype(int)
        assert abs(stored - image[:, :, 0]).max() <= 1


def test_a_damaged_record(flowmatch, trained, tmp_path):
    arguments = ("sample", trained, "--n_samples", 2, "--save_dir", tmp_path / "a")
    flowmatch(*arguments)
    for content in ("", "[]"):
        (tmp_path / "a/sampling.json").write_text(content)
        code, _, err = flowmatch(*arguments)
        assert code == 2
        assert "sampling.json is damaged" in err


def test_class_and_guidance(flowmatch, trained, tmp_path):
    arguments = ("--n_samples", 2, "--class", 7, "--guidance", 2, "--save_dir", tmp_path / "a")
    assert flowmatch("sample", trained, *arguments)[0] == 0
    record = json.loads((tmp_path / "a/sampling.json").read_text())
    assert (record["label"], record["guidance"]["scale"], record["nfe"]) == (7, 2.0, 8)


def test_exactly_these_seeds(flowmatch, trained, tmp_path):
    out = ("--save_dir", tmp_path / "a")
    assert flowmatch("sample", trained, "--seeds", "17,3,4-5", *out)[0] == 0
    names = ["00003.png", "00004.png", "00005.png", "00017.png"]
    assert sorted(images(tmp_path / "a")) == names
    record = json.loads((tmp_path / "a/sampling.json").read_text())
    assert (record["seeds"], record["count"]) == ("3-5,17", 4)
    flowmatch("sample", trained, "--n_samples", 6, "--save_dir", tmp_path / "b")
    pixels = [np.asarray(Image.open(tmp_path / d / "00005.png")).astype(int) for d in "ab"]
    assert abs(pixels[0] - pixels[1]).max() <= 1
    assert flowmatch("sample", trained, "--n_samples", 4, "--seeds", "0-3", *out)[0] == 0
    record = json.loads((tmp_path / "a/sampling.json").read_text())
    assert (record["seeds"], record["count"]) == ("0-5,17", 7)


def test_classes_in_turn(flowmatch, trained, tmp_path):
    out = ("--seeds", "4-9", "--format", "npz", "--save_dir")
    for classes, labels in (("0,3,7", [3, 7, 0, 3, 7, 0]), ("all", [4, 5, 6, 7, 8, 9])):
        assert flowmatch("sample", trained, *out, tmp_path / classes, "--classes", classes)[0] == 0
        with np.load(tmp_path / classes / "samples.npz") as archive:
            assert archive["labels"].tolist() == labels
            assert archive["seeds"].tolist() == [4, 5, 6, 7, 8, 9]
    flowmatch("sample", trained, "--n_samples", 5, "--classes", "0,3", "--save_dir", tmp_path / "p")
    assert load_stored(tmp_path / "p").labels.tolist() == [0, 3, 0, 3, 0]


def test_every_flag_at_once(flowmatch, trained, tmp_path):
    arguments = ("sample", trained, "--n_samples", 12, "--save_dir", tmp_path / "a")
    arguments += ("--format", "webdataset", "--shard-size", 5, "--bspp", "auto")
    arguments += ("--guidance", 1.5, "--guidance-interval", "0.1,0.9", "--trajectory", "gif")
    arguments += ("--guidance-schedule", "linear", "--autoguide", "model")
    code, out, err = flowmatch(*arguments)
    assert code == 0, err
    assert "(--bspp auto)" in out
    names = {p.name for p in (tmp_path / "a").iterdir()}
    shards = {f"shard-00000{i}.tar" for i in range(3)}
    assert names == shards | {"contact-sheet.png", "sampling.json", "trajectory.gif"}
    record = json.loads((tmp_path / "a/sampling.json").read_text())
    assert record["guidance"]["interval"] == [0.1, 0.9]
    assert record["autoguide"] not in (None, record["weights"])
    assert record["nfe"] == 7  # Heun in two steps: at 0 one, at 0.5, 0.5 and 0.75 two each
    before = {p.name: p.read_bytes() for p in (tmp_path / "a").glob("*.tar")}
    assert flowmatch(*arguments)[0] == 0
    assert {p.name: p.read_bytes() for p in (tmp_path / "a").glob("*.tar")} == before
    assert json.loads((tmp_path / "a/sampling.json").read_text())["nfe"] == 7


def test_autoguidance_by_another_checkpoint(flowmatch, trained, tmp_path):
    arguments = ("sample", trained, "--n_samples", 2, "--guidance", 2, "--autoguide")
    weak = trained / "ckpt/step0000003"
    assert flowmatch(*arguments, weak, "--save_dir", tmp_path / "a")[0] == 0
    assert json.loads((tmp_path / "a/sampling.json").read_text())["nfe"] == 8
    code, _, err = flowmatch(*arguments, tmp_path / "no", "--save_dir", tmp_path / "b")
    assert code == 2
    assert "is no run directory" in err


def test_overrides(flowmatch, trained, tmp_path):
    arguments = ("--n_samples", 2, "--save_dir", tmp_path / "a", "sample.solver.steps=3")
    assert flowmatch("sample", trained, *arguments)[0] == 0
    assert json.loads((tmp_path / "a/sampling.json").read_text())["nfe"] == 6
    kind = ("sample.solver.kind=dopri5", "sample.solver.rtol=1e-3")
    arguments = ("--n_samples", 2, "--save_dir", tmp_path / "b", *kind)
    assert flowmatch("sample", trained, *arguments)[0] == 0
    solver = json.loads((tmp_path / "b/sampling.json").read_text())["solver"]
    assert (solver["kind"], solver["rtol"], "steps" in solver) == ("dopri5", 1e-3, False)
    code, _, err = flowmatch("sample", trained, *arguments, "--sampling_steps", 5)
    assert code == 2
    assert "sample.solver.kind=dopri5 and --sampling_steps both say which solver" in err
    code, _, err = flowmatch("sample", trained, "other", *arguments)
    assert code == 2
    assert "one run directory" in err


def test_an_adaptive_solver_reports_what_it_spent(flowmatch, trained, tmp_path):
    arguments = ("--n_samples", 2, "--sampling_method", "dopri5", "--save_dir", tmp_path / "a")
    assert flowmatch("sample", trained, *arguments)[0] == 0
    record = json.loads((tmp_path / "a/sampling.json").read_text())
    assert record["nfe"] > 10


MISTAKES = {
    "none": (["--n_samples", "0"], "must be at least 1, got 0"),
    "batch": (["--n_samples", "1", "--bspp", "0"], "--bspp must be at least 1"),
    "steps": (["--n_samples", "1", "--sampling_steps", "0"], "at least 1 step"),
    "solver": (
        ["--n_samples", "1", "--sampling_method", "eular"],
        "did you mean euler? Known: euler, midpoint, heun",
    ),
    "class": (["--n_samples", "1", "--class", "10"], "outside the model's classes 0 to 9"),
    "adaptive": (
        ["--n_samples", "1", "--sampling_method", "dopri5", "--sampling_steps", "5"],
        "chooses its own steps",
    ),
    "guidance": (["--n_samples", "1", "--guidance", "nan"], "finite number"),
    "batch word": (["--n_samples", "1", "--bspp", "big"], "a number or auto, got 'big'"),
    "neither": ([], "--n_samples N, or which: --seeds"),
    "both": (["--n_samples", "2", "--seeds", "4"], "--n_samples 2 and --seeds 4 disagree"),
    "twice": (["--seeds", "4,3-5"], "--seeds names 4 twice"),
    "reversed": (["--seeds", "9-3"], "range 9-3 reversed"),
    "garbage": (["--seeds", "x"], "--seeds cannot read 'x'"),
    "classes": (["--n_samples", "1", "--classes", "3,10"], "outside the model's classes 0 to 9"),
    "one or several": (["--n_samples", "1", "--class", "1", "--classes", "all"], "not both"),
    "shards": (["--n_samples", "1", "--shard-size", "5"], "is for --format webdataset, not png"),
    "no shard": (
        ["--n_samples", "1", "--shard-size", "0", "--format", "webdataset"],
        "--shard-size must be at least 1",
    ),
    "interval": (["--n_samples", "1", "--guidance-interval", "1"], "is two times, e.g. 0.2,0.8"),
    "backward": (
        ["--n_samples", "1", "--guidance", "2", "--guidance-interval", "0.8,0.2"],
        "0 <= lo < hi <= 1",
    ),
    "method alone": (["--n_samples", "1", "--guidance-method", "apg"], "scale 1 is off"),
    "weak alone": (["--n_samples", "1", "--autoguide", "model"], "with --autoguide"),
    "weak and apg": (
        [
            *("--n_samples", "1", "--guidance", "2"),
            *("--autoguide", "model", "--guidance-method", "apg"),
        ],
        "does not use a weak model",
    ),
    "grid": (
        ["--n_samples", "1", "--sampling_method", "dopri5", "--compile", "grid"],
        "use --compile step",
    ),
    "two doors": (["--n_samples", "1", "-c", "x.yaml"], "not both"),
}


@pytest.mark.parametrize(("arguments", "expected"), MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_is_one_sentence_and_writes_nothing(
    flowmatch, trained, tmp_path, arguments, expected
):
    code, _, err = flowmatch("sample", trained, "--save_dir", tmp_path / "a", *arguments)
    assert code == 2
    assert expected in err
    assert "Traceback" not in err
    assert not (tmp_path / "a").exists()


def test_a_folder_of_other_samples_is_refused(flowmatch, trained, tmp_path):
    arguments = ("sample", trained, "--n_samples", 2, "--save_dir", tmp_path / "a")
    flowmatch(*arguments)
    before = images(tmp_path / "a")
    code, _, err = flowmatch(*arguments, "--seed", 1)
    assert code == 2
    assert "seed was 8888, is 1" in err
    assert images(tmp_path / "a") == before
    (tmp_path / "a/sampling.json").unlink()
    code, _, err = flowmatch(*arguments)
    assert code == 2
    assert "no sampling.json" in err


def test_weights_that_do_not_fit(flowmatch, trained, weights, tmp_path):
    out = ("--n_samples", 1, "--save_dir", tmp_path / "a")
    config = ("-c", trained / "config.yaml", "--weights")
    values = load_file(weights)
    wide = values | {"time_embed.0.weight": torch.zeros(3, 3), "surplus": torch.zeros(1)}
    del wide["out.2.bias"]
    save_file(wide, tmp_path / "other.safetensors")
    code, _, err = flowmatch("sample", *config, tmp_path / "other.safetensors", *out)
    assert code == 2
    assert "1 missing (out.2.bias)" in err
    assert "1 unknown (surplus)" in err
    assert "time_embed.0.weight is [3, 3]" in err
    shutil.copy(weights, tmp_path / "cut.safetensors")
    with (tmp_path / "cut.safetensors").open("r+b") as file:
        file.truncate(1000)
    code, _, err = flowmatch("sample", *config, tmp_path / "cut.safetensors", *out)
    assert code == 2
    assert "truncated" in err
    code, _, err = flowmatch("sample", *config, tmp_path / "nothing.safetensors", *out)
    assert code == 2
    assert "there is no weights file" in err
    assert not (tmp_path / "a").exists()


def test_a_directory_that_is_no_run(flowmatch, tmp_path):
    code, _, err = flowmatch("sample", tmp_path, "--n_samples", 1, "--save_dir", tmp_path / "a")
    assert code == 2
    assert "is no run directory" in err


def test_no_space(flowmatch, trained, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10))
    code, _, err = flowmatch("sample", trained, "--n_samples", 9, "--save_dir", tmp_path / "a")
    assert code == 2
    assert "no space left" in err


def test_points_go_to_an_npz(flowmatch, tmp_path):
    (tmp_path / "toy.yaml").write_text(
        "{data: {kind: toy, name: moons, samples: 100}, network: {kind: mlp, width: 8},"
        " train: {steps: 1, batch: 8}}"
    )
    assert flowmatch("train", "-c", tmp_path / "toy.yaml", "-e", tmp_path / "run")[0] == 0
    out = ("sample", tmp_path / "run", "--n_samples", 10, "--save_dir", tmp_path / "a")
    code, _, err = flowmatch(*out)
    assert code == 2
    assert "--format npz" in err
    code, _, err = flowmatch(*out, "--format", "npz", "--classes", "all")
    assert code == 2
    assert "takes no class label" in err
    assert flowmatch(*out, "--format", "npz")[0] == 0
    assert np.load(tmp_path / "a/samples.npz")["samples"].shape == (10, 2)
    assert (tmp_path / "a/contact-sheet.png").is_file()


def test_a_job_that_failed_before_its_first_sample_leaves_the_folder_free(
    flowmatch, trained, tmp_path
):
    draw = ("sample", trained, "--n_samples", 2, "--save_dir", tmp_path / "a")
    tight = ("sample.solver.kind=dopri5", "sample.solver.rtol=1e-30", "sample.solver.atol=1e-30")
    code, _, err = flowmatch(*draw, *tight)
    assert (code, "stalled at t=0" in err) == (1, True)
    assert flowmatch(*draw, "--sampling_steps", 2)[0] == 0
    assert len(images(tmp_path / "a")) == 2


def test_auto_is_what_tune_found(flowmatch, trained, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    draw = ("sample", tmp_path / "run", "--n_samples", 2, "--sampling_method", "auto")
    code, _, err = flowmatch(*draw, "--save_dir", tmp_path / "a")
    assert (code, "make one with `flowmatch tune" in err) == (2, True)
    tune = ("tune", tmp_path / "run", "--num-samples", 4, "--reference-steps", 8)
    for nfe in (2, 4):
        assert flowmatch(*tune, "--nfe", nfe, "--solvers", "heun,unipc")[0] == 0
    code, _, err = flowmatch(*draw, "--save_dir", tmp_path / "a")
    assert (code, "tuned for 2, 4 evaluations; say which" in err) == (2, True)
    assert flowmatch(*draw, "--nfe", 4, "--save_dir", tmp_path / "a")[0] == 0
    newest = tmp_path / "run/ckpt/step0000006"
    by_checkpoint = ("sample", newest, *draw[2:], "--nfe", 4, "--save_dir", tmp_path / "b")
    assert flowmatch(*by_checkpoint)[0] == 0
    assert images(tmp_path / "b") == images(tmp_path / "a")
    record = json.loads((tmp_path / "a/sampling.json").read_text())
    tuned = json.loads((tmp_path / "run/tuned.json").read_text())["4"]["solver"]
    assert record["nfe"] == 4
    assert record["solver"]["kind"] == tuned["kind"]
    for wrong, message in (
        (("--nfe", 4, "--sampling_steps", 3), "say the budget with --nfe"),
        (("--nfe", 4, "--grid", "edm:7"), "say the budget with --nfe"),
        (
            ("--nfe", 4, "--guidance", 2, "--autoguide", "model"),
            "nothing is tuned for autoguidance",
        ),
    ):
        code, _, err = flowmatch(*draw, *wrong, "--save_dir", tmp_path / "b")
        assert (code, message in err) == (2, True), err
    code, _, err = flowmatch(
        *("sample", trained, "--n_samples", 2, "--nfe", 4, "--save_dir", tmp_path / "b")
    )
    assert (code, "--nfe is the budget" in err) == (2, True)


def test_a_grid_from_the_command_line(flowmatch, trained, tmp_path):
    draw = ("sample", trained, "--n_samples", 2, "--save_dir", tmp_path / "a")
    grid = ("--sampling_method", "unipc", "--grid", "0,0.2,0.5,1")
    assert flowmatch(*draw, *grid)[0] == 0
    record = json.loads((tmp_path / "a/sampling.json").read_text())
    assert record["nfe"] == 3
    assert record["solver"]["grid"]["values"] == [0, 0.2, 0.5, 1]
    for wrong in ("0.1,1", "0,0.5,0.4,1", "bent"):
        assert flowmatch(*draw, "--grid", wrong)[0] == 2
