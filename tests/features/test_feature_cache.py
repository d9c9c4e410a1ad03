"""The cache of fitted nets: hit, miss, damage, and a folder that cannot be written."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from flowmatch.data import MemoryImages
from flowmatch.features import cache, cache_dir, fitted, fitting


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(fitting, "LEAST_IMAGES", 1_280)
    monkeypatch.setattr(fitting, "MOST_IMAGES", 1_280)


@pytest.fixture
def fits(monkeypatch):
    """The calls of `fit` that the cache did not spare."""
    calls = []

    def counted(*arguments, **options):
        calls.append(options["seed"])
        return fitting.fit(*arguments, **options)

    monkeypatch.setattr(cache, "fit", counted)
    return calls


def images(key=0, classes=None) -> MemoryImages:
    x = torch.arange(key, key + 20 * 64).mul(97).remainder(251).to(torch.uint8)
    labels = None if classes is None else torch.arange(20) % 2
    return MemoryImages(x.reshape(20, 1, 8, 8), labels, num_classes=classes)


def test_the_second_time_nothing_is_fitted(fits, tmp_path):
    first = fitted(images(), None, cache=tmp_path)
    again = fitted(images(), None, cache=tmp_path)
    assert fits == [0]
    assert again.hash == first.hash
    assert [p.parent.name for p in tmp_path.rglob("*.safetensors")] == ["features"]
    assert not list(tmp_path.rglob(".partial*"))


def test_other_data_seeds_and_classes_have_nets_of_their_own(fits, tmp_path):
    fitted(images(), None, cache=tmp_path)
    fitted(images(1), None, cache=tmp_path)
    fitted(images(), images(1), cache=tmp_path)
    fitted(images(), None, seed=1, cache=tmp_path)
    fitted(images(classes=2), None, cache=tmp_path)
    fitted(images(classes=3), None, cache=tmp_path)
    assert len(fits) == len(list(tmp_path.rglob("*.safetensors"))) == 6


def test_without_a_cache_nothing_is_kept(fits, tmp_path, monkeypatch):
    monkeypatch.setenv("FLOWMATCH_CACHE", str(tmp_path))
    fitted(images(), None)
    fitted(images(), None)
    assert len(fits) == 2
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("damage", [b"", b"nonsense", None], ids=["empty", "foreign", "cut"])
def test_a_damaged_file_is_replaced(fits, tmp_path, damage):
    first = fitted(images(), None, cache=tmp_path)
    [path] = tmp_path.rglob("*.safetensors")
    whole = path.read_bytes()
    path.write_bytes(whole[:-9] if damage is None else damage)
    assert fitted(images(), None, cache=tmp_path).hash == first.hash
    assert len(fits) == 2
    assert fitted(images(), None, cache=tmp_path).hash == first.hash
    assert len(fits) == 2


def test_a_file_of_other_data_under_this_name_is_not_trusted(fits, tmp_path):
    first = fitted(images(), None, cache=tmp_path)
    [path] = tmp_path.rglob("*.safetensors")
    fitting.fit(images(1), None).save(path)
    assert fitted(images(), None, cache=tmp_path).hash == first.hash
    assert len(fits) == 2


def test_a_cache_that_cannot_be_written_is_a_warning(fits, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.warns(UserWarning, match=r"not kept.*FLOWMATCH_CACHE"):
        net = fitted(images(), None, cache=tmp_path / "file")
    assert net(images().x).vectors.isfinite().all()


def test_the_cache_is_where_the_environment_says(monkeypatch, tmp_path):
    for name in ("FLOWMATCH_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_dir() == tmp_path / ".cache/flowmatch"
    monkeypatch.setenv("XDG_CACHE_HOME", "/elsewhere")
    assert cache_dir() == Path("/elsewhere/flowmatch")
    monkeypatch.setenv("FLOWMATCH_CACHE", "~/mine")
    assert cache_dir() == tmp_path / "mine"
