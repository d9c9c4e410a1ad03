"""What the tests share: where real data may lie, and a seeded start."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from filelock import FileLock

torch.set_num_threads(1)  # tiny networks gain nothing from more, and threads that spin lose

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository's root."""
    return ROOT


def _beside(name: str) -> Path:
    return ROOT.parent / "shared" / name


@pytest.fixture(scope="session")
def data_root() -> Path:
    """Folder with `mnist/` and `cifar10-jpeg/` as parquet files."""
    path = Path(os.environ.get("FLOWMATCH_DATA") or _beside("data"))
    if not (path / "mnist").is_dir():
        pytest.skip(f"no data sets in {path}; set FLOWMATCH_DATA")
    return path


@pytest.fixture(scope="session")
def seed_checkpoints() -> Path:
    """Folder of checkpoints in the form that flow-matching-pytorch saves."""
    path = _beside("fixtures") / "seed-checkpoint"
    if not path.is_dir():
        pytest.skip(f"no reference checkpoints in {path}")
    return path


TINY = """
data: {kind: digits}
network:
  {kind: unet, channels: 8, multipliers: [1, 2], blocks: 1, attention_resolutions: [4], heads: 2,
   dropout: 0.1, scale_shift: true, num_classes: 10}
loss: {time: {kind: logit_normal}, label_dropout: 0.1, kind: flow_matching}
train:
  {steps: 6, batch: 16, lr: 1.0e-3, log_every_steps: 2, save_every_steps: 3, samples: 10,
   ema: {decay: 0.9}, schedule: {kind: cosine, warmup_steps: 2}}
sample: {solver: {kind: heun, steps: 2}}
"""


@pytest.fixture(scope="session")
def tiny_yaml() -> str:
    """A config that trains in a second."""
    return TINY


@pytest.fixture
def tiny(tmp_path) -> Path:
    """A config file of a run that takes a second."""
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY)
    return path


@pytest.fixture
def flowmatch(capsys):
    """The command, run in this process: arguments -> (exit code, stdout, stderr)."""
    from accelerate.state import AcceleratorState

    from flowmatch.cli import main

    def run(*arguments: object) -> tuple[int, str, str]:
        AcceleratorState._reset_state(reset_partial_state=True)
        capsys.readouterr()
        try:
            main([str(a) for a in arguments])
            code = 0
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        out, err = capsys.readouterr()
        return code, out, err

    return run


@pytest.fixture(scope="session")
def trained(tmp_path_factory) -> Path:
    """A run directory of the tiny config, trained to its end."""
    from accelerate.state import AcceleratorState

    from flowmatch.config import load_config
    from flowmatch.runs import build_trainer

    AcceleratorState._reset_state(reset_partial_state=True)
    folder = tmp_path_factory.mktemp("trained")
    (folder / "tiny.yaml").write_text(TINY)
    build_trainer(load_config(folder / "tiny.yaml"), folder / "run").run()
    return folder / "run"


@pytest.fixture(scope="session")
def made_once(tmp_path_factory) -> Callable[[str, Callable[[Path], None]], Path]:
    """A folder by its name, filled by whoever asks first, of all the processes that run tests."""
    own = tmp_path_factory.getbasetemp()
    shared = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own

    def folder(name: str, make: Callable[[Path], None]) -> Path:
        path, done = shared / name, shared / f"{name}.done"
        with FileLock(shared / f"{name}.lock"):
            if not done.exists():
                path.mkdir()
                make(path)
                done.touch()
        return path

    return folder


@pytest.fixture(scope="session")
def fitted_cache(made_once) -> Path:
    """A cache that holds the features fitted to the digits."""
    from flowmatch.data import Digits
    from flowmatch.features import fitted

    digits = (Digits().build("train"), Digits().build("test"))
    return made_once("fitted", lambda folder: fitted(*digits, cache=folder))


@pytest.fixture(scope="session")
def inception_file(tmp_path_factory) -> Path:
    """Random weights in the form of torch-fidelity's published Inception file."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    class Unloaded(FeatureExtractorInceptionV3):
        def load_state_dict(self, state, **options):
            assert not state

    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    torch.save({}, path)
    torch.manual_seed(0)
    torch.save(Unloaded("inception-v3-compat", ["2048"], str(path)).state_dict(), path)
    return path
