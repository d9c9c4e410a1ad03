"""Latents: encoded once, normalised, drawn from the encoder's Gaussian, and decoded."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from flowmatch.config import parse_data
from flowmatch.data import (
    Digits,
    ImageFolder,
    ImageNet,
    Latent,
    Latents,
    LatentStatistics,
    MemoryLatents,
    autoencoder,
    decoded_data,
    latents,
    shards,
)
from flowmatch.data.autoencoder import Autoencoder, Pretrained, latent_shape, load
from flowmatch.data.latents import measure
from flowmatch.data.shards import Shard
from made_data import make_autoencoder, make_folder


@pytest.fixture(scope="module")
def grey(tmp_path_factory):
    return make_autoencoder(tmp_path_factory.mktemp("grey"), channels=1)


@pytest.fixture(scope="module")
def colour(tmp_path_factory):
    return make_autoencoder(tmp_path_factory.mktemp("colour"))


@pytest.fixture(scope="module")
def digits(grey, tmp_path_factory):
    cache = tmp_path_factory.mktemp("cache")
    return Latent(images=Digits(image_size=8), autoencoder=str(grey), cache=str(cache))


@pytest.fixture(scope="module")
def flipped(colour, tmp_path_factory):
    """Eight flipped colour images and their latents."""
    root = tmp_path_factory.mktemp("folder")
    return Latent(
        images=make_folder(root / "images"), autoencoder=str(colour), cache=str(root / "cache")
    )


@pytest.fixture
def encodes(monkeypatch):
    """How many images were encoded."""
    counted = []
    true = Autoencoder.encode

    def encode(self, images):
        counted.append(len(images))
        return true(self, images)

    monkeypatch.setattr(Autoencoder, "encode", encode)
    return counted


def model_of(folder):
    from diffusers import AutoencoderKL

    return AutoencoderKL.from_pretrained(folder).eval()


def normalise(latents, statistics):
    mean, std = (torch.tensor(v)[:, None, None] for v in (statistics.mean, statistics.std))
    return (latents - mean) / std


def draws(count, first=0.9):
    uniforms = torch.rand(count, 4)
    uniforms[:, 0] = first
    return uniforms


def test_the_shape_follows_from_the_settings_alone(grey, tmp_path):
    (tmp_path / "config.json").write_text((grey / "config.json").read_text())
    config = Latent(images=Digits(image_size=32), autoencoder=str(tmp_path))
    assert config.shape == (2, 16, 16)
    assert replace(config, images=Digits(image_size=8)).shape == (2, 4, 4)


def test_plain_latents_are_the_encoders_means(digits, grey):
    dataset, images = digits.build("test"), digits.images.build("test")
    some = torch.tensor([5, 0, 359])
    with torch.no_grad():
        mean = model_of(grey).encode(images.plain(some).x1).latent_dist.mean
    batch = dataset.plain(some)
    assert (len(dataset), dataset.shape, dataset.num_classes) == (360, (2, 4, 4), 10)
    assert batch.x1.dtype == torch.float32
    torch.testing.assert_close(batch.x1, normalise(mean, dataset.statistics), atol=2e-3, rtol=0)
    assert torch.equal(batch.cond["label"], images.plain(some).cond["label"])


def test_draws_are_of_the_encoders_gaussian_and_follow_from_the_uniforms(digits, grey):
    dataset = digits.build()
    index = torch.zeros(4000, dtype=torch.int64)
    with torch.no_grad():
        law = model_of(grey).encode(digits.images.build().plain(index[:1]).x1).latent_dist
    std = torch.tensor(dataset.statistics.std)[:, None, None]
    x = dataset.batch(index, draws(4000)).x1
    expected = normalise(law.mean, dataset.statistics)[0]
    torch.testing.assert_close(x.mean(0), expected, atol=0.08, rtol=0)
    torch.testing.assert_close(x.std(0), (law.std / std)[0], atol=0.06, rtol=0)
    assert torch.corrcoef((x - expected).flatten(1).T).triu(1).abs().max() < 0.08


def test_a_sample_depends_on_its_own_uniforms_alone(digits):
    dataset, uniforms = digits.build(), draws(6)
    index = torch.arange(6)
    together = dataset.batch(index, uniforms).x1
    apart = [dataset.batch(index[k : k + 1], uniforms[k : k + 1]).x1 for k in range(6)]
    assert torch.equal(together, torch.cat(apart))
    other = uniforms.clone()
    other[:, 3] += 2**-24
    assert not torch.isclose(dataset.batch(index, other).x1, together).any()


def test_means_alone_draw_nothing(digits):
    dataset = replace(digits, sample_posterior=False).build()
    index = torch.arange(50)
    assert torch.equal(dataset.batch(index, draws(50)).x1, dataset.plain(index).x1)
    assert max(dataset.statistics.std) < min(digits.build().statistics.std)


@pytest.mark.parametrize("sample_posterior", [True, False])
def test_the_statistics_are_those_of_the_set_in_float64(flipped, sample_posterior):
    config = replace(flipped, sample_posterior=sample_posterior)
    dataset = config.build()
    (mirrored,) = Path(config.cache).rglob("mirrored-*")
    stored = [load_file(p)["moments"] for p in sorted(mirrored.parent.iterdir())]
    moments = torch.cat(stored).double().numpy()
    assert moments.shape == (16, 2, 2, 16, 16)
    mean = moments[:, 0].mean((0, 2, 3))
    variance = moments[:, 0].var((0, 2, 3))
    if sample_posterior:
        variance = variance + (moments[:, 1] ** 2).mean((0, 2, 3))
    np.testing.assert_allclose(dataset.statistics.mean, mean, rtol=1e-10)
    np.testing.assert_allclose(dataset.statistics.std, variance**0.5, rtol=1e-10)


def test_training_draws_have_mean_0_and_std_1(digits):
    dataset = digits.build()
    x = dataset.batch(torch.arange(len(dataset)), draws(len(dataset))).x1
    assert x.mean((0, 2, 3)).abs().max() < 0.02
    assert (x.std((0, 2, 3)) - 1).abs().max() < 0.02


def test_sums_of_shards_are_those_of_the_whole():
    moments = torch.randn(40, 2, 3, 4, 4).abs()
    whole = Shard.of(moments).sums
    parts = Shard.of(moments[:17]).sums + Shard.of(moments[17:]).sums
    one, other = (measure(s, sample_posterior=True, weights="") for s in (whole, parts))
    np.testing.assert_allclose((one.mean, one.std), (other.mean, other.std), rtol=1e-12)


def test_flips_are_encodings_of_the_mirrored_image(flipped, colour):
    dataset, images = flipped.build(), flipped.images.build()
    index = torch.arange(8)
    config = replace(flipped, sample_posterior=False, statistics=dataset.statistics)
    means = config.build()
    model = model_of(colour)
    plain = images.plain(index).x1
    for first, shown in ((0.5, plain), (0.499, plain.flip(-1))):
        with torch.no_grad():
            expected = normalise(model.encode(shown).latent_dist.mean, dataset.statistics)
        found = means.batch(index, draws(8, first)).x1
        torch.testing.assert_close(found, expected, atol=4e-3, rtol=0)
    assert not torch.allclose(
        means.plain(index).x1.flip(-1), means.batch(index, draws(8, 0)).x1, atol=1e-2
    )


def test_mirror_images_are_encoded_for_training_only(colour, tmp_path, encodes):
    images = make_folder(tmp_path / "images")
    config = Latent(images=images, autoencoder=str(colour), cache=str(tmp_path / "cache"))
    statistics = config.build().statistics
    assert sum(encodes) == 16
    replace(config, statistics=statistics).build("test")
    assert sum(encodes) == 20
    replace(config, images=replace(images, flip=False)).build()  # has the plain ones already
    assert sum(encodes) == 20


def test_the_decoder_is_the_autoencoders(digits, grey):
    dataset = digits.build()
    decoder = digits.settled(dataset).decoder()
    images = digits.images.build().plain(torch.arange(3)).x1
    model = model_of(grey)
    with torch.no_grad():
        code = model.encode(images).latent_dist.mean
        expected = model.decode(code).sample
    assert decoder.shape == (1, 8, 8)
    found = decoder(normalise(code, dataset.statistics))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    stored = decoder(dataset.plain(torch.arange(3)).x1)
    torch.testing.assert_close(stored, expected, atol=1e-2, rtol=0)


def test_images_are_coded_a_few_at_a_time(digits, monkeypatch):
    decoder = digits.settled(digits.build()).decoder()
    x = torch.randn(7, 2, 4, 4)
    whole = decoder(x)
    monkeypatch.setattr(autoencoder, "_PIXELS_AT_ONCE", 3 * 64)
    torch.testing.assert_close(decoder(x), whole, atol=1e-6, rtol=1e-5)


def test_decoding_is_in_the_precision_of_autocast_but_never_in_fp16(digits, monkeypatch):
    decoder = digits.settled(digits.build()).decoder()
    x = torch.randn(2, 2, 4, 4)
    full = decoder(x)
    for dtype, same in ((torch.bfloat16, False), (torch.float16, True)):
        with torch.autocast("cpu", dtype=dtype):
            half = decoder(x)
        assert half.dtype == torch.float32
        assert torch.equal(half, full) is same
        torch.testing.assert_close(half, full, atol=0.05, rtol=0)


def test_what_is_cached_is_not_encoded_again(digits, encodes):
    first = digits.build()
    encodes.clear()
    again = digits.build()
    assert not encodes
    index, uniforms = torch.arange(30), torch.rand(30, 4)
    assert torch.equal(first.batch(index, uniforms).x1, again.batch(index, uniforms).x1)
    assert first.statistics == again.statistics


def test_after_a_kill_it_goes_on(grey, tmp_path, monkeypatch, encodes):
    for room in (shards, latents):
        monkeypatch.setattr(room, "SHARD", 400)
    config = Latent(images=Digits(), autoencoder=str(grey), cache=str(tmp_path))
    true = Shard.write

    def killed(self, path):
        if "00002" in path.name:
            raise KeyboardInterrupt
        true(self, path)

    monkeypatch.setattr(Shard, "write", killed)
    with pytest.raises(KeyboardInterrupt):
        config.build()
    monkeypatch.setattr(Shard, "write", true)
    (folder,) = (tmp_path / "latents").iterdir()
    assert sorted(p.name for p in folder.iterdir()) == [
        f"plain-0000{k}.safetensors" for k in (0, 1)
    ]
    (folder / "plain-00000.safetensors").write_bytes(b"damaged")
    encodes.clear()
    mapped = replace(config, memory_gib=0).build()
    assert sum(encodes) == 1437 - 400
    assert len(list(folder.iterdir())) == 4
    index, uniforms = torch.randperm(1437)[:200], torch.rand(200, 4)
    held = config.build()
    assert torch.equal(mapped.batch(index, uniforms).x1, held.batch(index, uniforms).x1)
    assert torch.equal(mapped.plain(index).cond["label"], held.plain(index).cond["label"])


def test_processes_share_the_encoding(grey, tmp_path, monkeypatch, encodes):
    for room in (shards, latents):
        monkeypatch.setattr(room, "SHARD", 400)
    config = Latent(images=Digits(), autoencoder=str(grey), cache=str(tmp_path))
    spent = []

    def wait():
        """The other process starts where the first one waits for it."""
        spent.append(sum(encodes))
        monkeypatch.setattr(shards.dist, "barrier", lambda: spent.append(sum(encodes)))
        monkeypatch.setattr(shards, "_place", lambda: (1, 2))
        config.build()

    monkeypatch.setattr(shards, "_place", lambda: (0, 2))
    monkeypatch.setattr(shards.dist, "barrier", wait)
    assert len(config.build()) == 1437
    assert spent == [800, 1437]
    assert sum(encodes) == 1437


def test_large_sets_are_mapped(digits, flipped):
    for config in (digits, flipped):
        held, mapped = config.build(), replace(config, memory_gib=0.0).build()
        assert (type(held), type(mapped)) == (MemoryLatents, Latents)
        assert (held.in_memory, mapped.in_memory) == (True, False)
        index, uniforms = torch.randperm(len(held))[:8], torch.rand(8, 4)
        assert torch.equal(mapped.batch(index, uniforms).x1, held.batch(index, uniforms).x1)
        assert torch.equal(held.to("cpu").batch(index, uniforms).x1, held.batch(index, uniforms).x1)


def test_identity(digits, grey, tmp_path):
    train, test = digits.build(), digits.build("test")
    assert train.identity() == digits.build().identity()
    other = make_autoencoder(tmp_path / "other", channels=1, key=1)
    elsewhere = replace(digits, autoencoder=str(other)).build()
    means = replace(digits, sample_posterior=False).build()
    larger = replace(digits, images=Digits(image_size=16)).build()
    assert len({d.identity() for d in (train, test, elsewhere, means, larger)}) == 5
    assert train.statistics == test.statistics


def test_the_weights_name_the_autoencoder_wherever_it_lies(grey, tmp_path):
    copied = make_autoencoder(tmp_path / "copied", channels=1)
    assert load(Pretrained(str(copied))).weights == load(Pretrained(str(grey))).weights
    assert load(Pretrained(str(tmp_path), "copied")).weights == load(Pretrained(str(grey))).weights


def test_samples_are_compared_with_the_images(digits):
    assert decoded_data(digits) == Digits(image_size=8)
    assert decoded_data(Digits()) == Digits()


def test_an_encoder_without_a_gaussian_gives_its_code(tmp_path):
    from diffusers import AutoencoderTiny

    model = AutoencoderTiny(
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
    )
    model.save_pretrained(tmp_path / "tiny")
    images = make_folder(tmp_path / "images")
    config = Latent(
        images=images, autoencoder=str(tmp_path / "tiny"), cache=str(tmp_path / "cache")
    )
    dataset = config.build()
    index = torch.arange(8)
    assert dataset.shape == config.shape == (4, 16, 16)
    assert torch.equal(dataset.batch(index, draws(8)).x1, dataset.plain(index).x1)
    with torch.no_grad():
        code = model.eval().encode(images.build().plain(index).x1).latents
    expected = normalise(code, dataset.statistics)
    torch.testing.assert_close(dataset.plain(index).x1, expected, atol=4e-3, rtol=4e-3)


class TestMistakes:
    def test_no_diffusers(self, grey, monkeypatch):
        monkeypatch.setitem(sys.modules, "diffusers", None)
        with pytest.raises(ValueError, match=r"pip install 'flowmatch\[latent\]'"):
            latent_shape.__wrapped__(Pretrained(str(grey)), (1, 8, 8))

    def test_no_folder(self, tmp_path):
        with pytest.raises(ValueError, match=r"there is no folder .*nowhere; data\.autoencoder is"):
            latent_shape(Pretrained(str(tmp_path / "nowhere")), (1, 8, 8))

    def test_a_folder_without_an_autoencoder(self, tmp_path):
        with pytest.raises(ValueError, match=r"holds no autoencoder.*data\.subfolder"):
            latent_shape(Pretrained(str(tmp_path)), (1, 8, 8))

    def test_no_weights(self, grey, tmp_path):
        (tmp_path / "config.json").write_text((grey / "config.json").read_text())
        with pytest.raises(ValueError, match="cannot load the weights of the autoencoder"):
            load(Pretrained(str(tmp_path)))

    def test_another_kind_of_model(self, tmp_path):
        (tmp_path / "config.json").write_text('{"_class_name": "UNet2DModel"}')
        with pytest.raises(ValueError, match="is a UNet2DModel and no autoencoder"):
            latent_shape(Pretrained(str(tmp_path)), (1, 8, 8))

    def test_a_size_that_does_not_come_back(self, colour):
        with pytest.raises(
            ValueError, match=r"come back .* as 30x30; set image_size to a multiple of 2"
        ):
            latent_shape(Pretrained(str(colour)), (3, 31, 31))

    def test_other_channels(self, colour):
        with pytest.raises(ValueError, match="takes images of 3 channels, these have 1"):
            latent_shape(Pretrained(str(colour)), (1, 8, 8))

    def test_random_crops(self):
        with pytest.raises(ValueError, match=r"set images\.crop: center"):
            Latent(images=ImageNet(crop="random"), autoencoder="a/b")

    def test_another_autoencoder_than_that_of_the_statistics(self, digits, tmp_path):
        settled = digits.settled(digits.build())
        other = make_autoencoder(tmp_path, channels=1, key=1)
        changed = replace(settled, autoencoder=str(other))
        for use in (changed.build, lambda: changed.decoder()(torch.zeros(1, 2, 4, 4))):
            with pytest.raises(ValueError, match=r"is not the one that data\.statistics belong to"):
                use()

    def test_no_statistics_to_decode_with(self, digits):
        with pytest.raises(ValueError, match=r"give the run directory or its config\.yaml"):
            digits.decoder()

    @pytest.mark.parametrize(
        ("values", "message"),
        [
            ({"mean": (0.0,), "std": (1.0, 1.0)}, "one mean and one std a channel, got 1 and 2"),
            ({"mean": (0.0,), "std": (0.0,)}, "must be positive"),
        ],
    )
    def test_impossible_statistics(self, values, message):
        with pytest.raises(ValueError, match=message):
            LatentStatistics(**values, weights="")

    def test_latents_that_float16_does_not_hold(self):
        with pytest.raises(ValueError, match="beyond 65,504"):
            Shard.of(torch.full((1, 1, 1, 2, 2), 1e6))

    @pytest.mark.parametrize(
        ("node", "message"),
        [
            (
                {"images": {"kind": "imgenet"}},
                r"images\.kind: unknown kind 'imgenet'; did you mean imagenet",
            ),
            ({"images": {"kind": "toy", "name": "moons"}}, r"images\.kind: unknown kind 'toy'"),
            ({"images": {"kind": "digits", "size": 8}}, r"images\.size: unknown key; .*image_size"),
            ({"images": {"kind": "digits", "image_size": 9}}, r"images\.image_size: .*got 9"),
            ({"images": {}}, r"images: has no kind"),
            ({}, "images: is missing"),
            (
                {"images": {"kind": "digits"}, "statistics": {"mean": [0.0], "std": [1.0]}},
                r"statistics\.weights: is missing",
            ),
        ],
    )
    def test_in_a_config_name_their_key(self, node, message):
        with pytest.raises(ValueError, match=message):
            parse_data({"kind": "latent", "autoencoder": "a/b", **node})


def test_a_config_of_any_family(tmp_path):
    node = {"kind": "folder", "root": "here", "image_size": 32}
    config = parse_data({"kind": "latent", "autoencoder": "a/b", "images": node})
    assert config.images == ImageFolder(root="here", image_size=32)
