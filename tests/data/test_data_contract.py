"""What holds for every family that a config can name."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import get_args

import pydantic
import pytest
import torch

from flowmatch.data import DataConfig, MemoryImages
from made_data import MAKERS

FAMILIES = {
    cls.__dataclass_fields__["kind"].default: cls for cls in get_args(get_args(DataConfig)[0])
}
CONFIGS = pydantic.TypeAdapter(DataConfig)
LENGTHS = {
    "celeba": (5, 3),
    "cifar10": (20, 10),
    "digits": (1437, 360),
    "ffhq": (6, 2),
    "folder": (8, 4),
    "hub": (6, 6),
    "imagenet": (12, 6),
    "latent": (12, 6),
    "mnist": (20, 10),
    "shards": (8, 4),
    "toy": (100, 100),
}


@pytest.fixture(scope="module")
def configs(tmp_path_factory):
    return {kind: make(tmp_path_factory.mktemp(kind)) for kind, make in MAKERS.items()}


@pytest.fixture(scope="module")
def built(configs):
    return {kind: config.build() for kind, config in configs.items()}


def draws(count: int, first: float) -> torch.Tensor:
    """Uniforms whose first column is `first`."""
    uniforms = torch.rand(count, 4)
    uniforms[:, 0] = first
    return uniforms


def test_every_family_is_tested():
    assert FAMILIES.keys() == MAKERS.keys()


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_config_is_its_own_yaml_node(kind, configs):
    node = asdict(configs[kind])
    assert CONFIGS.validate_python(node) == configs[kind]
    with pytest.raises(pydantic.ValidationError, match="no_such_key"):
        CONFIGS.validate_python({**node, "no_such_key": 1})


@pytest.mark.parametrize("kind", FAMILIES)
def test_batches_have_the_declared_shape_range_and_labels(kind, built):
    dataset = built[kind]
    assert len(dataset) == LENGTHS[kind][0]
    indices = torch.arange(min(len(dataset), 64))
    for batch in (dataset.batch(indices, torch.rand(len(indices), 4)), dataset.plain(indices)):
        assert len(batch) == len(indices)
        assert batch.x1.shape == (len(indices), *dataset.shape)
        assert batch.x1.dtype == torch.float32
        if kind not in ("latent", "toy"):
            assert batch.x1.min() >= -1
            assert batch.x1.max() <= 1
            assert batch.x1.max() - batch.x1.min() > 0.5
        assert batch.cond.keys() == (set() if dataset.num_classes is None else {"label"})
        for label in batch.cond.values():
            assert label.dtype == torch.int64
            assert label.shape == (len(indices),)
            assert set(label.tolist()) <= set(range(dataset.num_classes))


@pytest.mark.parametrize("kind", FAMILIES)
def test_the_test_split_is_of_the_same_form(kind, configs, built):
    test = configs[kind].build("test")
    assert len(test) == LENGTHS[kind][1]
    assert (test.shape, test.num_classes) == (built[kind].shape, built[kind].num_classes)


@pytest.mark.parametrize("kind", FAMILIES)
def test_building_again_gives_the_same_samples(kind, configs, built):
    indices = torch.tensor([3, 0, 3])
    uniforms = torch.rand(3, 4)
    again = configs[kind].build().batch(indices, uniforms)
    once = built[kind].batch(indices, uniforms)
    assert torch.equal(once.x1, again.x1)


@pytest.mark.parametrize("kind", sorted(FAMILIES.keys() - {"latent"}))
def test_flips_need_both_the_setting_and_the_draw(kind, configs, built):
    indices = torch.arange(4)
    plain = built[kind].plain(indices).x1
    assert torch.equal(built[kind].batch(indices, draws(4, 0.5)).x1, plain)
    flips = getattr(configs[kind], "flip", False)
    drawn = built[kind].batch(indices, draws(4, 0.499)).x1
    assert torch.equal(drawn, plain.flip(-1) if flips else plain)
    if hasattr(configs[kind], "flip"):
        other = replace(configs[kind], flip=not flips).build()
        drawn = other.batch(indices, draws(4, 0.0)).x1
        assert torch.equal(drawn, plain if flips else plain.flip(-1))


@pytest.mark.parametrize("kind", sorted(FAMILIES.keys() - {"digits", "latent", "toy"}))
def test_streaming_gives_what_memory_gives(kind, configs, built):
    streamed = replace(configs[kind], memory_gib=0).build()
    assert isinstance(built[kind], MemoryImages)
    assert (built[kind].in_memory, streamed.in_memory) == (True, False)
    assert (streamed.shape, len(streamed)) == (built[kind].shape, len(built[kind]))
    indices, uniforms = torch.arange(5), torch.rand(5, 4)
    one, other = built[kind].batch(indices, uniforms), streamed.batch(indices, uniforms)
    assert torch.equal(one.x1, other.x1)
    assert all(torch.equal(one.cond[name], other.cond[name]) for name in one.cond)


@pytest.mark.parametrize("kind", ["celeba", "ffhq", "folder", "hub", "imagenet", "shards"])
def test_small_images_are_refused_unless_upsampled(kind, configs):
    config = configs[kind]
    if kind == "celeba":
        with pytest.raises(ValueError, match="image_size 256 is above the 128 pixels"):
            replace(config, image_size=256)
    else:
        with pytest.raises(
            ValueError, match=r"smaller than image_size 256: .*\(\d+x\d+\).*; lower"
        ):
            replace(config, image_size=256).build()
    large = replace(config, image_size=256, upsample=True).build()
    assert large.plain(torch.tensor([0])).x1.shape == (1, 3, 256, 256)


@pytest.mark.parametrize("key", ["image_size", "memory_gib"])
def test_impossible_sizes_are_refused(key, configs):
    with pytest.raises(ValueError, match=f"{key} must be at least"):
        replace(configs["folder"], **{key: -1})
