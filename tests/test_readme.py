"""The commands and examples of the documentation run as they stand, on shortened trainings."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState

from made_data import MAKERS
from test_processes import ENVIRONMENT

ROOT = Path(__file__).parents[1]
SHORT = (
    "train.steps=4 train.batch=8 train.sample_every_steps=4 train.samples=4"
    " network.channels=8 network.heads=2 sample.solver.steps=2"
)
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


def test_the_commands_of_the_readme(workplace, seed_checkpoints):
    for name in ("model_ema.pt", "config.yaml"):
        shutil.copy(seed_checkpoints / "grey28" / name, workplace)
    lines = [line for block in blocks("README.md", "bash") for line in block.splitlines()]
    lines = [line for line in lines if line and not line.startswith("make ")]
    assert len(lines) >= 9
    for line in lines:
        done = subprocess.run(
            command(line),
            cwd=workplace,
            env=ENVIRONMENT,
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
    assert len(list((workplace / "samples/cifar10").glob("0*.png"))) == 64
    names = {p.name for p in (workplace / "runs/digits/look").iterdir()}
    assert names == {"samples.png", "nearest.png", "trajectory.gif", "loss.png"}


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
    for document in ("README.md", "docs/extending.md", "CONTRIBUTING.md"):
        folder = (ROOT / document).parent
        for target in re.findall(r"\]\(([^)#]+)\)", (ROOT / document).read_text()):
            assert target.startswith("http") or (folder / target).exists(), target


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.py")), ids=lambda p: p.stem)
def test_the_examples(path, tmp_path):
    done = subprocess.run(
        [sys.executable, path, "--steps", "5", "--out", tmp_path / "picture.png"],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "picture.png").is_file()


@pytest.mark.parametrize("name", ["train_step", "sampler"])
def test_the_benchmarks_run(name, tmp_path):
    short = ["--rounds", "2", "--batch", "2", "--out", tmp_path / "line.jsonl"]
    done = subprocess.run(
        [sys.executable, ROOT / f"benchmarks/{name}.py", *short],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "line.jsonl").read_text().count("\n") == 1
