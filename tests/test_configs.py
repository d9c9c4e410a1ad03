"""The configs of the repository: each is valid, round-trips, and trains on data of its layout."""

from pathlib import Path

import pytest
import torch
import yaml
from accelerate.state import AcceleratorState

from flowmatch.config import load_config, parse_config, to_yaml
from flowmatch.runs import build_flow, build_trainer
from flowmatch.solvers import Dopri5, UniPC
from flowmatch.training.checkpoint import problems
from made_data import MAKERS

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))
every = pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)


SMALL = {
    "unet": ["network.channels=16", "network.heads=null", "network.head_channels=8"],
    "ddpmpp": ["network.channels=16", "network.blocks=1"],
    "edm2": ["network.channels=16", "network.blocks=1", "network.head_channels=16"],
    "dit": ["network.width=32", "network.depth=1", "network.heads=2"],
    "mlp": [],
}


def parameters(config) -> int:
    return sum(p.numel() for p in build_flow(config).parameters())


@every
def test_the_resolved_config_reads_back_to_itself(path):
    config = load_config(path)
    assert parse_config(yaml.safe_load(to_yaml(config))) == config


def test_the_demo_does_not_wait_for_a_compiler():
    digits = load_config(next(path for path in CONFIGS if path.stem == "digits"))
    assert digits.train.compile == "off"


@every
def test_the_first_step_on_data_of_the_right_layout(path, tmp_path, monkeypatch):
    monkeypatch.delenv("FLOWMATCH_DATA", raising=False)
    config = load_config(path)
    made = MAKERS[config.data.kind](tmp_path / "data")
    small = ["train.steps=1", "train.images=null", "train.batch=2", "train.workers=0"]
    small += ["train.precision=fp32", "train.post_hoc=null"]
    small += ["train.evaluate_every_images=null"]  # of so little data no features can be fitted
    small += [f"data.{key}={getattr(made, key)}" for key in ("root", "path") if hasattr(made, key)]
    if config.data.kind in ("folder", "hub", "shards"):  # the made images are small
        small += ["data.image_size=32", "network.attention_resolutions=[8]"]
    small += ["data.stream.lanes=2"] * (config.data.kind == "shards")
    if config.data.kind == "latent":
        small += [f"data.{key}={getattr(made, key)}" for key in ("autoencoder", "cache")]
        small += [f"data.images.root={made.images.root}", "data.images.image_size=32"]
    small += SMALL[config.network.kind]
    if config.data.kind in ("imagenet", "latent"):
        small += ["network.num_classes=3"]
    AcceleratorState._reset_state(reset_partial_state=True)
    trainer = build_trainer(load_config(path, small), tmp_path / "run")
    if config.data.kind not in ("folder", "hub", "latent", "shards"):
        assert trainer.dataset.shape == config.data.shape
    assert problems(trainer.run().checkpoint) is None


def test_every_kind_of_data_has_a_config():
    assert {load_config(p).data.kind for p in CONFIGS} == set(MAKERS)


@pytest.mark.parametrize(
    ("name", "millions", "images"),
    [
        ("cifar10", 55.73, 51_200_000),
        ("cifar10-best", 55.73, 95_000_000),
        ("cifar10-cond", 55.74, 51_200_000),
        ("cifar10-30min", 19.77, 6_000_000),
        ("imagenet64", 280.2, 500_000_000),
    ],
)
def test_a_recipe_is_of_the_size_that_its_head_says(root, name, millions, images):
    config = load_config(root / f"configs/{name}.yaml")
    with torch.device("meta"):
        network = config.network.build(config.data.shape)
    found = sum(p.numel() for p in network.parameters())
    assert found / 1e6 == pytest.approx(millions, rel=1e-3)
    assert 0 <= config.train.total_steps * config.train.batch - images < config.train.batch


def test_mnist_is_of_about_a_million_parameters(root):
    assert 1.0e6 < parameters(load_config(root / "configs/mnist.yaml")) < 1.3e6


@pytest.mark.parametrize(("name", "folder"), [("mnist", "mnist"), ("cifar10", "cifar10-jpeg")])
def test_the_real_sets_train_their_first_steps(root, data_root, tmp_path, name, folder):
    small = ["train.steps=2", "train.images=null", "train.batch=4", "network.channels=32"]
    small += ["train.precision=fp32", "network.blocks=1", f"data.root={data_root / folder}"]
    config = load_config(root / f"configs/{name}.yaml", small)
    AcceleratorState._reset_state(reset_partial_state=True)
    trainer = build_trainer(config, tmp_path / "run")
    assert len(trainer.dataset) == {"mnist": 60_000, "cifar10": 50_000}[name]
    assert problems(trainer.run().checkpoint) is None


def test_another_kind_leaves_behind_what_it_does_not_know():
    def solver(*overrides):
        digits = Path(__file__).parents[1] / "configs/digits.yaml"
        return load_config(digits, overrides).sample.solver

    assert solver("sample.solver.kind=dopri5", "sample.solver.rtol=1e-3") == Dopri5(rtol=1e-3)
    assert solver("sample.solver.kind=unipc") == UniPC(steps=20)
    with pytest.raises(ValueError, match=r"sample\.solver\.steps: unknown key"):
        solver("sample.solver.kind=dopri5", "sample.solver.steps=3")
