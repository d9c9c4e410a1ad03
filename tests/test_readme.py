"""The commands and examples of the documentation run as they stand, on shortened trainings."""

import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState

from made_data import MAKERS
from test_processes import ENVIRONMENT, run

ROOT = Path(__file__).parents[1]
SHORT = (
    "train.steps=4 train.batch=8 train.sample_every_steps=4 train.samples=4"
    " network.channels=8 network.heads=2 sample.solver.steps=2 train.evaluate_samples=20"
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
PROGRAMS = {
    "flowmatch": "-m flowmatch",
    "accelerate launch": "-m accelerate.commands.launch",
    "torchrun": "-m torch.distributed.run",
}


def blocks(document: str, language: str) -> list[str]:
    text = (ROOT / document).read_text()
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def command(line: str) -> list[str]:
    """A documented line as words for this Python, made short where it trains."""
    for name, module in PROGRAMS.items():
        if line.startswith(name):
            words = [sys.executable, *module.split(), *shlex.split(line)[len(name.split()) :]]
            if "-c" in words:
                words += [w for w in SHORT.split() if w.split("=")[0] not in line]
            if "evaluate" in words:
                words = [FEWER.get(w, w) for w in words]
            return [w.replace("step0200000", "step0000004") for w in words]
    raise AssertionError(f"a documented command that no test runs: {line}")


@pytest.fixture(scope="module")
def workplace(tmp_path_factory) -> Path:
    """A folder like a fresh clone, with small data where the documentation says."""
    folder = tmp_path_factory.mktemp("clone")
    for name in ("configs", "train.py", "sample.py"):
        (folder / name).symlink_to(ROOT / name)
    MAKERS["cifar10"](folder / "data")
    return folder


def test_the_commands_of_the_documentation(workplace, seed_checkpoints, fitted_cache, monkeypatch):
    monkeypatch.setitem(ENVIRONMENT, "FLOWMATCH_CACHE", str(fitted_cache))
    for name in ("model_ema.pt", "config.yaml"):
        shutil.copy(seed_checkpoints / "grey28" / name, workplace)
    found = [*blocks("README.md", "bash"), *blocks("docs/evaluation.md", "bash")]
    lines = [line for block in found for line in block.splitlines()]
    lines = [line for line in lines if line and not line.startswith("make ")]
    assert len(lines) >= 9
    for line in lines:
        done = run(*command(line), cwd=workplace)
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
    assert len(list((workplace / "samples/cifar10").glob("0*.png"))) == 64
    names = {p.name for p in (workplace / "runs/digits/look").iterdir()}
    assert names == {"samples.png", "nearest.png", "trajectory.gif", "loss.png"}
    assert (workplace / "runs/digits/report.html").stat().st_size > 10_000


@pytest.mark.parametrize("document", ["README.md", "docs/extending.md"])
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
    for document in ("README.md", "docs/extending.md", "docs/evaluation.md", "CONTRIBUTING.md"):
        folder = (ROOT / document).parent
        for target in re.findall(r"\]\(([^)#]+)\)", (ROOT / document).read_text()):
            assert target.startswith("http") or (folder / target).exists(), target


SCRIPTS = {
    "examples/toys.py": ["--steps", "5"],
    "benchmarks/train_step.py": ["--rounds", "2", "--batch", "2"],
    "benchmarks/sampler.py": ["--rounds", "2", "--batch", "2", "--steps", "2", "--loop-steps", "4"],
    "benchmarks/solvers.py": ["--samples", "20", "--nfe", "2", "4", "--picture", "/dev/null"],
    "benchmarks/evaluation.py": ["--images", "100", "--samples", "20", "--nfe", "2"],
    "benchmarks/output.py": ["--images", "200", "--rounds", "2"],
}


def test_every_script_is_run():
    found = [*(ROOT / "examples").glob("*.py"), *(ROOT / "benchmarks").glob("*.py")]
    names = {f"{p.parent.name}/{p.name}" for p in found if "__main__" in p.read_text()}
    assert names == set(SCRIPTS)


@pytest.mark.parametrize(("script", "short"), SCRIPTS.items(), ids=SCRIPTS.keys())
def test_the_scripts_run(script, short, tmp_path):
    out = tmp_path / ("out.png" if script.startswith("examples") else "out.jsonl")
    done = run(sys.executable, ROOT / script, *short, "--out", out)
    assert done.returncode == 0, done.stderr
    assert out.stat().st_size > 0
