"""Published nets: the numbers of torch-fidelity, and files and networks that fail."""

from __future__ import annotations

import json
import os
import re
import socket
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
import torch_fidelity
from torch import nn
from torch_fidelity import feature_extractor_inceptionv3 as inception_module
from torch_fidelity.feature_extractor_dinov2 import FeatureExtractorDinoV2
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric

from flowmatch.features import load_dinov2, load_inception
from flowmatch.features.published import DINOV2_CODE, DINOV2_URL
from flowmatch.randomness import keyed_generator


@pytest.fixture(scope="module")
def inception(inception_file):
    return load_inception(inception_file)


def images(channels: int, count: int = 6) -> torch.Tensor:
    generator = keyed_generator("published", channels)
    shape = (count, channels, 32, 32)
    return torch.randint(256, shape, generator=generator, dtype=torch.uint8)


class Images(torch.utils.data.Dataset):
    """Images as torch-fidelity takes them."""

    def __init__(self, x: torch.Tensor) -> None:
        self.x = x

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.x[index]


def test_inception_gives_the_scores_of_torch_fidelity(inception, inception_file):
    x, y = images(3), images(3, 12)[6:]
    kid = {"kid_subset_size": 6, "kid_subsets": 5}
    theirs = torch_fidelity.calculate_metrics(
        input1=Images(x), input2=Images(y), isc=True, kid=True, **kid, isc_splits=2, batch_size=6,
        feature_extractor_weights_path=str(inception_file),
        cuda=False, cache=False, save_cpu_ram=True, verbose=False,
    )  # fmt: skip
    (vectors, logits), (others, _) = inception(x), inception(y)
    assert vectors.shape == (6, inception.dims) == (6, 2048)
    assert logits.shape == (6, inception.num_classes) == (6, 1008)
    assert vectors.dtype == logits.dtype == torch.float32
    ours = kid_features_to_metric(vectors, others, verbose=False, **kid)
    ours |= isc_features_to_metric(logits, splits=2)
    assert len(ours) == 4
    for name, value in ours.items():
        assert value == pytest.approx(theirs[name], rel=1e-6, abs=1e-9)


def test_grey_images_are_repeated_as_colour(inception):
    grey = images(1, 2)
    for one, three in zip(inception(grey), inception(grey.repeat(1, 3, 1, 1)), strict=True):
        assert torch.equal(one, three)


def test_the_protocol_names_net_and_library(inception):
    told = json.loads(json.dumps(inception.describe()))
    assert re.fullmatch("[0-9a-f]{12}", told.pop("hash"))
    assert told == {
        "kind": "inception", "dims": 2048, "model": "inception-v3-compat",
        "library": f"torch-fidelity {torch_fidelity.__version__}",
    }  # fmt: skip


def test_floats_are_refused(inception):
    with pytest.raises(ValueError, match="uint8 images"):
        inception(images(3).float())


def says(caught: pytest.ExceptionInfo[ValueError], *parts: str) -> bool:
    """Whether an error is one sentence that contains all parts."""
    text = str(caught.value)
    return "\n" not in text and all(part in text for part in parts)


class Burglar:
    """Unpickled without care, it makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("load", [load_inception, load_dinov2])
def test_nothing_in_a_file_is_executed(load, tmp_path):
    torch.save({"x": Burglar(tmp_path / "entered")}, tmp_path / "evil.pth")
    with pytest.raises(ValueError, match="no file of weights alone") as caught:
        load(tmp_path / "evil.pth")
    assert says(caught, "evil.pth", "download it anew from https://")
    assert not (tmp_path / "entered").exists()


@pytest.mark.parametrize("load", [load_inception, load_dinov2])
def test_damaged_and_missing_files_say_so(load, tmp_path, inception_file):
    cut, text, folder = tmp_path / "cut.pth", tmp_path / "text.pth", tmp_path / "folder"
    cut.write_bytes(inception_file.read_bytes()[:100_000])
    text.write_text("not weights")
    torch.save([torch.zeros(1)], tmp_path / "list.pth")
    folder.mkdir()
    for path in (cut, text, tmp_path / "list.pth"):
        with pytest.raises(ValueError, match="is damaged, or no file of weights") as caught:
            load(path)
        assert says(caught, path.name)
    for path, reason in ((tmp_path / "nowhere", "No such file"), (folder, "Is a directory")):
        with pytest.raises(ValueError, match=reason) as caught:
            load(path)
        assert says(caught, "cannot read", path.name)


def test_weights_of_another_network_say_so(tmp_path):
    torch.save(nn.Linear(2, 3).state_dict(), tmp_path / "linear.pth")
    with pytest.raises(ValueError, match="weights of another network") as caught:
        load_inception(tmp_path / "linear.pth")
    assert says(caught, "linear.pth", inception_module.URL_INCEPTION_V3)


def unreachable(*arguments, **options):
    raise URLError("no route to host")


def test_without_a_network_inception_says_what_to_do(monkeypatch, capsys):
    monkeypatch.setattr(inception_module, "load_state_dict_from_url", unreachable)
    before = socket.getdefaulttimeout()
    with pytest.raises(ValueError, match="no route to host") as caught:
        load_inception()
    assert says(
        caught, "cannot fetch the Inception weights", inception_module.URL_INCEPTION_V3,
        "--feature-weights FILE", "checkpoints", "--features data", "train.evaluate_features=data",
    )  # fmt: skip
    assert socket.getdefaulttimeout() == before
    assert capsys.readouterr().out == ""


def test_a_silent_server_is_not_waited_for(monkeypatch):
    waits = []

    def noticed(*arguments, **options):
        waits.append(socket.getdefaulttimeout())
        raise TimeoutError("timed out")

    monkeypatch.setattr(inception_module, "load_state_dict_from_url", noticed)
    with pytest.raises(ValueError, match="timed out"):
        load_inception()
    assert waits == [20.0]


def test_without_a_network_dinov2_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.hub, "load", unreachable)
    with pytest.raises(ValueError, match="no route to host") as caught:
        load_dinov2()
    assert says(
        caught, "DINOv2", DINOV2_CODE, DINOV2_URL, "--feature-weights FILE", "--features data"
    )
    torch.save({}, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match="no route to host") as caught:
        load_dinov2(tmp_path / "weights.pth")
    assert says(caught, "the code of DINOv2", DINOV2_CODE, "--features data")


def small(seed: int) -> nn.Module:
    """A stand-in for the transformer: RGB [B, 3, 224, 224] to [B, 1024]."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48, 1024))


@pytest.fixture
def hub(monkeypatch):
    """A torch.hub that knows the stand-in: trained is seed 1, untrained seed 2."""

    def load(repository, name, pretrained=True, **options):
        print("Downloading something")
        assert (repository, name) == ("facebookresearch/dinov2", "dinov2_vitl14")
        return small(1 if pretrained else 2)

    monkeypatch.setattr(torch.hub, "load", load)


def test_dinov2_gives_what_torch_fidelity_gives(hub, tmp_path, capsys):
    torch.save(small(1).state_dict(), tmp_path / "weights.pth")
    x = images(3, 4)
    [theirs] = FeatureExtractorDinoV2("dinov2-vit-l-14", ["dinov2"])(x)
    capsys.readouterr()
    before = torch.random.get_rng_state()
    for net in (load_dinov2(), load_dinov2(tmp_path / "weights.pth")):
        vectors, logits = net(x)
        assert torch.equal(vectors, theirs)
        assert vectors.shape == (4, net.dims)
        assert logits is net.num_classes is None
        assert net.describe()["model"] == "dinov2-vit-l-14"
    assert load_dinov2().hash == net.hash
    assert capsys.readouterr().out == ""
    assert torch.equal(torch.random.get_rng_state(), before)


def test_other_weights_do_not_fit_dinov2(hub, tmp_path):
    torch.save(nn.Linear(2, 3).state_dict(), tmp_path / "linear.pth")
    with pytest.raises(ValueError, match="weights of another network") as caught:
        load_dinov2(tmp_path / "linear.pth")
    assert says(caught, DINOV2_URL)
