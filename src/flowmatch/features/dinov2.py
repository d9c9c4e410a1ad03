"""DINOv2 with weights from a file, which torch-fidelity's own extractor does not take."""

from __future__ import annotations

import os

import torch
from torch import nn
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.feature_extractor_dinov2 import MODEL_METADATA, FeatureExtractorDinoV2

NAME = "dinov2-vit-l-14"


def architecture() -> nn.Module:
    """The network with random weights; its code comes from torch.hub's folder, or from GitHub."""
    os.environ["XFORMERS_DISABLED"] = "1"  # as torch-fidelity does: the numbers then agree
    with torch.random.fork_rng(devices=[]):
        model: nn.Module = torch.hub.load(  # type: ignore[no-untyped-call]
            "facebookresearch/dinov2", MODEL_METADATA[NAME], pretrained=False, verbose=False
        )
    return model


class DinoV2FromFile(FeatureExtractorDinoV2):  # type: ignore[misc]
    """torch-fidelity's extractor (its resizing and normalisation) around a given network.

    Args:
        model: DINOv2, RGB [B, 3, 224, 224] to vectors [B, D].
    """

    def __init__(self, model: nn.Module) -> None:
        FeatureExtractorBase.__init__(self, NAME, ["dinov2"])  # the parent's would download
        self.feature_extractor_internal_dtype = torch.float32
        self.model = model
        self.to(torch.float32)
        self.requires_grad_(False)
        self.eval()
