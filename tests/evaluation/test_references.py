"""References: what SPEC may be, statistics that are cached, shared, and never trusted blindly."""

import dataclasses

import numpy as np
import pytest
import torch
import yaml
from safetensors import safe_open

from flowmatch.config import load_config
from flowmatch.data import Digits, MemoryImages
from flowmatch.evaluation import statistics as statistics_module
from flowmatch.evaluation.references import find_reference, fit_resolution
from flowmatch.evaluation.statistics import Statistics, cached_statistics, compute_statistics
from flowmatch.metrics import Moments
from made_data import MAKERS, encoded, picture, write_parquet


@pytest.fixture
def images():
    return MemoryImages(torch.randint(0, 256, (70, 3, 8, 8), dtype=torch.uint8), flip=True)


def test_the_runs_own_splits(tiny):
    config = load_config(tiny)
    assert len(find_reference(None, config).dataset) == 1437
    test = find_reference("test", config)
    assert (test.name, len(test.dataset)) == ("digits test", 360)
    assert len(test.train) == 1437


def test_a_data_config_alone_or_inside_a_whole_one(tiny, tmp_path):
    node = tmp_path / "data.yaml"
    node.write_text(yaml.safe_dump({"kind": "digits", "image_size": 16}))
    assert find_reference(str(node), None).shape == (1, 16, 16)
    assert len(find_reference(f"{tiny}:test", None).dataset) == 360
    node.write_text(yaml.safe_dump({"kind": "digit"}))
    with pytest.raises(ValueError, match=r"unknown kind 'digit'.*did you mean digits"):
        find_reference(str(node), None)


def test_images_on_disk(tmp_path):
    pixels = [encoded(picture(8, 8, key=k)) for k in range(4)]
    path = write_parquet(tmp_path / "a.parquet", pixels)
    assert find_reference(str(path), None).shape == (3, 8, 8)
    np.savez(tmp_path / "a.npz", samples=np.zeros((3, 8, 8, 1), np.uint8))
    assert find_reference(str(tmp_path / "a.npz"), None).shape == (1, 8, 8)


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        (None, "stored samples need something to be compared with"),
        ("test", "stored samples need something"),
        ("nowhere", "is neither train, test, a data config"),
        ("nowhere.yaml", "there is no config file"),
        ("nowhere.safetensors", "there is no reference file"),
    ],
)
def test_a_reference_that_is_none(spec, sentence):
    with pytest.raises(ValueError, match=sentence):
        find_reference(spec, None)


def test_a_set_without_a_test_split(tmp_path):
    config = MAKERS["folder"](tmp_path)
    path = tmp_path / "data.yaml"
    path.write_text(yaml.safe_dump(dataclasses.asdict(config)))
    try:
        config.build("test")
    except ValueError:
        with pytest.raises(ValueError, match="has no test split"):
            find_reference(f"{path}:test", None)


def test_another_resolution_is_refused_with_what_resizing_would_do(images):
    reference = _of(images)
    with pytest.raises(ValueError, match=r"3x16x16.*3x8x8.*[Rr]esizing.*--resize-reference"):
        fit_resolution(reference, (3, 16, 16), resize=False)
    larger = fit_resolution(reference, (3, 16, 16), resize=True)
    assert larger.shape == (3, 16, 16)
    assert "resized from 3x8x8" in larger.name
    assert larger.dataset.plain(torch.arange(5)).x1.shape == (5, 3, 16, 16)
    assert larger.dataset.identity() != images.identity()
    assert fit_resolution(reference, (3, 8, 8), resize=False) is reference


def test_other_channels_are_refused_even_with_resizing(images):
    with pytest.raises(ValueError, match=r"1x8x8.*3x8x8: they cannot be compared"):
        fit_resolution(_of(images), (1, 8, 8), resize=True)


def _of(dataset):
    from flowmatch.evaluation.references import Reference

    return Reference("made", dataset, train=dataset)


def test_statistics_are_of_the_plain_images_and_of_all_of_them(images, accelerator, projection):
    net = projection((3, 8, 8))
    found = compute_statistics(images, net, accelerator, name="made", batch=32)
    vectors = net(images.x).vectors  # not flipped, although the set flips; 70 is no multiple of 32
    expected = Moments.of(vectors)
    assert found.count == 70
    torch.testing.assert_close(found.moments.mean, expected.mean)
    torch.testing.assert_close(found.moments.covariance, expected.covariance)
    torch.testing.assert_close(found.vectors, vectors)
    assert found.identity == images.identity()


def test_of_a_large_set_evenly_spaced_vectors_are_kept(
    images, accelerator, projection, monkeypatch
):
    monkeypatch.setattr(statistics_module, "KEPT_FEATURES", 8)
    net = projection((3, 8, 8))
    found = compute_statistics(images, net, accelerator, name="made", batch=32)
    places = torch.linspace(0, 69, 8).round().long()
    torch.testing.assert_close(found.vectors, net(images.x).vectors[places])
    assert found.moments.count == 70


def test_the_cache_knows_content_and_net(images, accelerator, projection, tmp_path, monkeypatch):
    def cached(dataset, net, name="made"):
        return cached_statistics(dataset, net, accelerator, name=name, cache=tmp_path)

    first = cached(images, projection((3, 8, 8)))
    computed = []
    real = statistics_module.compute_statistics
    monkeypatch.setattr(
        statistics_module,
        "compute_statistics",
        lambda *a, **k: computed.append(1) or real(*a, **k),
    )
    again = cached(images, projection((3, 8, 8)), "another name")
    assert not computed
    assert again.name == "another name"
    torch.testing.assert_close(again.vectors, first.vectors)
    cached(images, projection((3, 8, 8), name="projection01"))
    changed = images.x.clone()
    changed[3, 0, 0, 0] ^= 1  # one bit of one pixel
    cached(MemoryImages(changed), projection((3, 8, 8)))
    assert len(computed) == 2


def test_a_damaged_cache_is_made_again(images, accelerator, projection, tmp_path):
    def cached():
        return cached_statistics(
            images, projection((3, 8, 8)), accelerator, name="made", cache=tmp_path
        )

    first = cached()
    (path,) = (tmp_path / "references").glob("*.safetensors")
    path.write_bytes(path.read_bytes()[:-50])
    torch.testing.assert_close(cached().vectors, first.vectors)
    assert Statistics.load(path).count == 70


def test_a_cache_that_cannot_be_written_is_a_warning(images, accelerator, projection, tmp_path):
    (tmp_path / "references").write_text("in the way")
    with pytest.warns(UserWarning, match="cannot be cached"):
        found = cached_statistics(
            images, projection((3, 8, 8)), accelerator, name="made", cache=tmp_path
        )
    assert found.count == 70


def test_one_file_holds_statistics_and_the_fitted_net(accelerator, tmp_path):
    from flowmatch.features import fit

    digits = Digits().build("test")
    net = fit(digits, None)
    made = compute_statistics(digits, net, accelerator, name="digits test")
    made.save(tmp_path / "ref.safetensors")
    read = find_reference(str(tmp_path / "ref.safetensors"), None).statistics
    assert read.describe() == made.describe()
    assert read.net.hash == net.hash
    images = digits.x[:7]
    assert torch.equal(read.net(images).vectors, net(images).vectors)
    torch.testing.assert_close(read.moments.covariance, made.moments.covariance)


@pytest.mark.parametrize("wrong", ["nan", "missing"])
def test_statistics_that_are_no_numbers_are_refused(
    wrong, images, accelerator, projection, tmp_path
):
    from safetensors.torch import load_file, save_file

    path = tmp_path / "a.safetensors"
    compute_statistics(images, projection((3, 8, 8)), accelerator, name="made").save(path)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    if wrong == "nan":
        tensors["moments.mean"][0] = torch.nan
    else:
        del tensors["vectors"]
    save_file(tensors, path, metadata)
    with pytest.raises(ValueError, match="make it again"):
        Statistics.load(path)


def test_a_foreign_safetensors_file_is_no_reference(tmp_path):
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(2)}, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="is no reference"):
        Statistics.load(tmp_path / "a.safetensors")
