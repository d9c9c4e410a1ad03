"""The commands and examples of the documentation run as they stand, on shortened trainings."""

import re
import shlex
import shutil
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState

from made_data import MAKERS
from test_processes import ENVIRONMENT, run

ROOT = Path(__file__).parents[1]
SHORT = (
    "train.steps=4 train.images=null train.batch=8 train.sample_every_steps=4"
    " train.samples=4 network.channels=8 network.blocks=1 network.heads=2 sample.solver.steps=2"
    " train.evaluate_samples=20 train.post_hoc=null train.sample_every_images=null"
    " train.save_every_images=null train.precision=fp32"
)
FEWER = {  # in commands that evaluate
    "5000": "20",
    "1000": "20",
    "heun:5,20": "heun:1",
    "euler:10,100,1000": "euler:1,2",
    "heun:5,50,500": "heun:1",
    "euler:10,100": "euler:1,2",
    "heun:5,50": "heun:1",
}
QUICK = {  # in commands that take long for what they are
    "tune": ("--num-samples", "4", "--reference-steps", "20", "--solvers", "heun,unipc"),
    "likelihood": ("--num-samples", "4", "--solver", "heun:2"),
    "edit": ("--steps", "4"),
}
PROGRAMS = {
    "flowmatch": "-m flowmatch",
    "accelerate launch": "-m accelerate.commands.launch",
    "torchrun": "-m torch.distributed.run",
}


DOCUMENTS = [
    *("README.md", "CONTRIBUTING.md", "benchmarks/README.md"),
    *("docs/extending.md", "docs/evaluation.md", "docs/sampling.md"),
    *("docs/training.md", "docs/scaling.md"),
]


def blocks(document: str, language: str) -> list[str]:
    text = (ROOT / document).read_text()
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def command(line: str) -> list[str]:
    """A documented line as words for this Python, made short where it trains."""
    for name, module in PROGRAMS.items():
        if line.startswith(name):
            words = [sys.executable, *module.split(), *shlex.split(line)[len(name.split()) :]]
            words = [
                "2" if before == "--sampling_steps" else w for before, w in pairwise(["", *words])
            ]
            if "-c" in words:
                short = [w for w in SHORT.split() if w.split("=")[0] not in line]
                words += [w for w in short if "sampling" not in line or "solver" not in w]
            if "evaluate" in words:
                words = [FEWER.get(w, w) for w in words]
            words += [w for name, extra in QUICK.items() if name in words[:4] for w in extra]
            words += ["--judged", "20"] if "--judge" in words else []
            return [w.replace("step0200000", "step0000004") for w in words]
    raise AssertionError(f"a documented command that no test runs: {line}")


@pytest.fixture
def workplace(tmp_path, monkeypatch, fitted_cache) -> Path:
    """A folder like a fresh clone, with small data where the documentation says."""
    for name in ("configs", "train.py", "sample.py"):
        (tmp_path / name).symlink_to(ROOT / name)
    MAKERS["cifar10"](tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FLOWMATCH_CACHE", str(fitted_cache))
    monkeypatch.setitem(ENVIRONMENT, "FLOWMATCH_CACHE", str(fitted_cache))
    return tmp_path


def do(document, flowmatch):
    """Run a document's commands: our own in this process, others as they stand."""
    lines = [line for block in blocks(document, "bash") for line in block.splitlines()]
    lines = [line for line in lines if line and not line.startswith("make ")]
    assert len(lines) >= 5
    for line in lines:
        words = command(line)
        if words[1:3] == ["-m", "flowmatch"]:
            code, out, err = flowmatch(*words[3:])
        else:
            done = run(*words, cwd=Path.cwd())
            code, out, err = done.returncode, done.stdout, done.stderr
        assert code == 0, f"{line}\n{out}\n{err}"


def test_the_commands_of_the_readme(workplace, seed_checkpoints, flowmatch):
    for name in ("model_ema.pt", "config.yaml"):
        shutil.copy(seed_checkpoints / "grey28" / name, workplace)
    do("README.md", flowmatch)
    assert len(list((workplace / "samples/cifar10").glob("0*.png"))) == 64
    names = {p.name for p in (workplace / "runs/digits/look").iterdir()}
    assert names == {"samples.png", "nearest.png", "trajectory.gif", "loss.png"}
    assert (workplace / "runs/digits/report.html").stat().st_size > 10_000


@pytest.mark.parametrize("document", ["docs/evaluation.md", "docs/sampling.md", "docs/training.md"])
def test_the_commands_of_the_documentation(document, workplace, trained, flowmatch):
    shutil.copytree(trained, workplace / "runs/digits")
    do(document, flowmatch)


@pytest.mark.parametrize(
    "document", ["README.md", "docs/extending.md", "docs/sampling.md", "docs/training.md"]
)
def test_the_python_of_the_documentation(document, tmp_path, monkeypatch, trained):
    AcceleratorState._reset_state(reset_partial_state=True)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/digits").symlink_to(trained)
    monkeypatch.chdir(tmp_path)
    found = blocks(document, "python")
    assert found
    for block in found:
        exec(compile(block.replace("2_000", "20"), document, "exec"), {"__name__": "readme"})


def test_links_and_pictures_exist():
    for document in DOCUMENTS:
        folder = (ROOT / document).parent
        for target in re.findall(r"\]\(([^)#]+)\)", (ROOT / document).read_text()):
            assert target.startswith("http") or (folder / target).exists(), target


FEW = ["--images", "32", "--samples", "20"]
SCRIPTS = {
    "benchmarks/ablations.py": ["--size", "8", "--only", "draws", "--seeds", "1", *FEW],
    "benchmarks/recipe.py": ["--seeds", "1", *FEW, "data={kind: digits}", "train.batch=16"],
    "examples/toys.py": ["--steps", "5"],
    "benchmarks/train_step.py": ["--rounds", "2", "--batch", "2", "--no-memory"],
    "benchmarks/sampler.py": ["--rounds", "2", "--batch", "2", "--steps", "2", "--loop-steps", "4"],
    "benchmarks/solvers.py": ["--samples", "20", "--nfe", "2", "4", "--picture", "/dev/null"],
    "benchmarks/draw_quality.py": ["docs/numbers/digits-solvers.json"],
    "benchmarks/scaling.py": [
        *("--processes", "1", "2", "--batch", "4", "--steps", "2", "--rounds", "1"),
    ],
    "benchmarks/speedrun.py": [
        *("--minutes", "0.2", "--samples", "20", "-c", "configs/digits.yaml"),
        *("--results", "/dev/null", "network.channels=8", "train.batch=8"),
    ],
    "benchmarks/evaluation.py": ["--images", "100", "--samples", "20", "--nfe", "2"],
    "benchmarks/data.py": [
        *("--images", "80", "--size", "16", "--batch", "16", "--lanes", "4"),
        *("--workers", "1", "--rounds", "1"),
    ],
    "benchmarks/plan.py": ["network.depth=2", "--gpus", "8", "64", "--shape", "4", "32", "32"],
    "benchmarks/output.py": ["--images", "200", "--rounds", "2"],
}


def test_every_script_is_run():
    found = [*(ROOT / "examples").glob("*.py"), *(ROOT / "benchmarks").glob("*.py")]
    names = {f"{p.parent.name}/{p.name}" for p in found if "__main__" in p.read_text()}
    assert names == set(SCRIPTS)


BY_SPEED = [
    pytest.param(*item, marks=[pytest.mark.slow] * item[0].startswith("benchmarks/"), id=item[0])
    for item in SCRIPTS.items()
]


@pytest.mark.parametrize(("script", "short"), BY_SPEED)
def test_the_scripts_run(script, short, tmp_path, fitted_cache):
    draws = script.startswith(("examples/", "benchmarks/draw"))
    out = tmp_path / ("out.png" if draws else "out.jsonl")
    environment = {**ENVIRONMENT, "FLOWMATCH_CACHE": str(fitted_cache)}
    words = (sys.executable, ROOT / script, *short, "--out", out)
    done = run(*words, environment=environment)
    assert done.returncode == 0, done.stderr
    assert out.stat().st_size > 0
