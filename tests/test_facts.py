"""The hash of a field: what changes samples changes it, nothing else does."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace

from flowmatch.config import parse_config
from flowmatch.data import Latent
from flowmatch.data.statistics import LatentStatistics
from flowmatch.facts import field_hash
from flowmatch.networks import MLPConfig
from flowmatch.paths import Linear

CONFIG = {
    "data": {"kind": "digits"},
    "network": {"kind": "mlp", "width": 8, "num_classes": 10},
    "train": {"steps": 1},
}


def of(*overrides: str) -> str:
    return field_hash(parse_config(CONFIG, overrides))


def test_what_makes_the_field_makes_its_hash():
    others = [
        "path={kind: trig}",
        "path={kind: vp}",
        "path={kind: polynomial}",
        "predict=x1",
        "predict={kind: edm, sigma_data: 0.5}",
        "predict={kind: edm, sigma_data: 0.6}",
        "network.time_scale=20",
        "network.num_classes=11",
        "network.conditions={age: {kind: scalar}}",
        "data={kind: toy, name: moons}",
    ]
    assert len({of(), *map(of, others)}) == 1 + len(others)


def test_what_does_not_make_it_leaves_it():
    assert of("train.lr=1", "train.seed=5", "sample.solver.kind=euler") == of()
    assert of("path.kind=linear", "network.time_scale=10", "network.conditions={}") == of()


def test_a_setting_that_a_later_version_adds_changes_nothing():
    @dataclass(frozen=True)
    class Later(MLPConfig):
        tricks: Mapping[str, float] = field(default_factory=dict)
        norm: bool = False

    def hashed(network):
        data = SimpleNamespace(shape=(2,))
        return field_hash(SimpleNamespace(path=Linear(), predict="x1", network=network, data=data))

    assert hashed(Later(width=8)) == hashed(MLPConfig(width=8))
    assert hashed(Later(width=8, norm=True)) != hashed(MLPConfig(width=8))


def test_latents_are_told_by_their_statistics(monkeypatch):
    monkeypatch.setattr(Latent, "shape", (1, 2, 2))

    def hashed(**overrides):
        config = parse_config(
            CONFIG | {"data": {"kind": "latent", "images": {"kind": "digits"}, "autoencoder": "a"}}
        )
        statistics = LatentStatistics(mean=(0.0,), std=(1.0,), weights="abc")
        values = vars(config.data) | {"statistics": statistics} | overrides
        parts = vars(config) | {"data": Latent(**values)}
        return field_hash(type(config)(**parts))

    other = LatentStatistics(mean=(0.0,), std=(2.0,), weights="abc")
    assert hashed(memory_gib=0.0, cache="x") == hashed() != hashed(statistics=other)
