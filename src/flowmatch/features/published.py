"""Published feature nets: Inception, whose distance is the FID, and DINOv2.

Both are torch-fidelity's, with its way of resizing and normalising, so that numbers agree with it.
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from flowmatch.data.dataset import digest
from flowmatch.features.net import Extracted, FeatureKind, FeatureNet

DINOV2_URL = "https://dl.fbaipublicfiles.com/dinov2/dinov2_vitl14/dinov2_vitl14_pretrain.pth"
DINOV2_CODE = "https://github.com/facebookresearch/dinov2"
NO_DOWNLOAD = (
    "take features fitted to the data, which need no download (--features data; in training"
    " train.evaluate_features=data)"
)
PATIENCE = 20.0  # seconds that a server may be silent


class PublishedNet(FeatureNet):
    """A published net as torch-fidelity runs it; grey images are repeated as RGB.

    Args:
        kind: which net.
        model: its name in torch-fidelity.
        extractor: torch-fidelity's module: RGB bytes to a tuple of vectors and, maybe, logits.
        dims: length of a vector.
        num_classes: how many logits there are, or None.
    """

    def __init__(
        self,
        kind: FeatureKind,
        model: str,
        extractor: nn.Module,
        *,
        dims: int,
        num_classes: int | None,
    ) -> None:
        self.kind = kind
        self.model = model
        self.extractor = extractor
        self.dims = dims
        self.num_classes = num_classes
        self.device = torch.device("cpu")
        named = sorted(extractor.state_dict().items())
        self.hash = digest(*(part for item in named for part in item))

    def to(self, device: torch.device | str) -> Self:
        self.device = torch.device(device)
        self.extractor.to(self.device)
        return self

    def describe(self) -> dict[str, Any]:
        import torch_fidelity

        return {
            "kind": self.kind,
            "hash": self.hash,
            "dims": self.dims,
            "model": self.model,
            "library": f"torch-fidelity {torch_fidelity.__version__}",
        }

    def _extract(self, images: Tensor) -> Extracted:
        vectors, *logits = self.extractor(images.to(self.device).expand(-1, 3, -1, -1))
        return Extracted(vectors, logits[0] if logits else None)


def load_inception(weights: Path | None = None) -> PublishedNet:
    """The Inception-v3 of the FID: 2,048 features, and the 1,008 logits of the Inception score.

    Args:
        weights: torch-fidelity's file of the weights; None takes the one that was downloaded
            before, or downloads it. Nothing in the file is executed.
    Raises:
        ValueError: the download fails, or the file is damaged or holds something else.
    Source: Szegedy et al. 2016; the weights of Heusel et al. 2017 (FID), ported by torch-fidelity.
    """
    from torch_fidelity.feature_extractor_inceptionv3 import (
        URL_INCEPTION_V3,
        FeatureExtractorInceptionV3,
    )

    name, url = "inception-v3-compat", URL_INCEPTION_V3
    outputs = ["2048", "logits_unbiased"]
    if weights is None:
        folder = Path(torch.hub.get_dir()) / "checkpoints"
        by_hand = f"download {url} into {folder}, or {_FLAG}"
        with _fetching("the Inception weights", by_hand):
            extractor = FeatureExtractorInceptionV3(name, outputs)
    else:
        read_weights(weights, url)  # torch-fidelity would execute what a file tells it to
        with _fitting(weights, url):
            extractor = FeatureExtractorInceptionV3(name, outputs, str(weights))
    return PublishedNet("inception", name, extractor, dims=2048, num_classes=1008)


def load_dinov2(weights: Path | None = None) -> PublishedNet:
    """DINOv2 ViT-L/14: 1,024 features of images resized to 224 pixels.

    The code of the network comes from its authors by torch.hub, which keeps it; so it needs a
    connection once, even if the weights are given.

    Args:
        weights: the authors' file of the weights; None takes the one that was downloaded before, or
            downloads it. Nothing in the file is executed.
    Raises:
        ValueError: the download fails, or the file is damaged or holds something else.
    Source: Oquab et al. 2023; as features for distances, Stein et al. 2023.
    """
    from torch_fidelity.feature_extractor_dinov2 import FeatureExtractorDinoV2

    from flowmatch.features.dinov2 import NAME, DinoV2FromFile, architecture

    extractor: nn.Module
    keeps = f"run once with a connection, so that torch.hub keeps {DINOV2_CODE}"
    if weights is None:
        with _fetching("DINOv2", f"{keeps} and {DINOV2_URL}, or {_FLAG} for that"):
            extractor = FeatureExtractorDinoV2(NAME, ["dinov2"])
    else:
        state = read_weights(weights, DINOV2_URL)
        with _fetching("the code of DINOv2", keeps):
            model = architecture()
        with _fitting(weights, DINOV2_URL):
            model.load_state_dict(state)
        extractor = DinoV2FromFile(model)
    return PublishedNet("dinov2", NAME, extractor, dims=1024, num_classes=None)


_FLAG = "pass `evaluate` --feature-weights FILE"


def read_weights(path: Path, url: str) -> dict[str, Tensor]:
    """The tensors in a file of torch, which may hold nothing else: no code is run.

    Raises:
        ValueError: the file cannot be read, or holds more than named tensors.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise ValueError(f"cannot read {path} ({error.strerror or error})") from None
    except Exception:  # of pickle, zip and torch: many classes, and pages of text
        state = None
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise ValueError(
            f"{path} is damaged, or no file of weights alone; download it anew from {url}"
        )
    return state


@contextmanager
def _fitting(path: Path, url: str) -> Iterator[None]:
    """Turn torch's list of names that do not fit into one sentence."""
    try:
        yield
    except RuntimeError:
        raise ValueError(
            f"{path} holds the weights of another network (other names or shapes); download {url}"
        ) from None


@contextmanager
def _fetching(what: str, remedy: str) -> Iterator[None]:
    """Keep standard output clean, wait for no silent server, and make one sentence of a failure."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(PATIENCE)
    try:
        with redirect_stdout(sys.stderr):
            yield
    except Exception as error:  # of urllib, http, ssl, torch.hub, zip and pickle
        reason = str(getattr(error, "reason", None) or error).strip().partition("\n")[0]
        raise ValueError(
            f"cannot fetch {what} ({reason[:120] or type(error).__name__}); {remedy}, or"
            f" {NO_DOWNLOAD}"
        ) from None
    finally:
        socket.setdefaulttimeout(before)
