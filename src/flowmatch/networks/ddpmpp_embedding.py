"""The embedding of time, class and conditions of DDPM++ and NCSN++."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor, nn

from flowmatch.networks.conditions import Condition, ConditionEmbedding, LinearEmbedding
from flowmatch.networks.ddpmpp_layers import xavier_init
from flowmatch.networks.ddpmpp_sizes import Embedding
from flowmatch.networks.embeddings import (
    ClassEmbedding,
    FourierEmbedding,
    read_labels,
    sinusoidal_embedding,
)


class JointEmbedding(nn.Module):
    """Class and conditions are added to the sines of time, before the layers.

        e = silu(W_2 silu(W_1 (waves(t) + class + conditions)))

    Args:
        channels: number of positional sines; there are twice as many Fourier features.
        width: length of the result.
        kind: of the sines, see `sinusoidal_embedding` and `FourierEmbedding`.
        scale: what time is multiplied by.
        num_classes: number of classes without the null class; None for no classes.
        conditions: other conditions by name.
    Source: Song et al. 2021, appendix H; Karras et al. 2022, appendix F (class and conditions).
    """

    def __init__(
        self,
        channels: int,
        width: int,
        *,
        kind: Embedding,
        scale: float,
        num_classes: int | None,
        conditions: Mapping[str, Condition],
    ) -> None:
        super().__init__()
        self.features = 2 * channels if kind == "fourier" else channels
        self.scale = scale
        self.num_classes = num_classes
        self.conditions = dict(conditions)
        self.waves: FourierEmbedding | None = None
        if kind == "fourier":
            self.waves = FourierEmbedding(self.features, scale=scale)
        self.label_emb: ClassEmbedding | None = None
        if num_classes is not None:
            self.label_emb = _label_embedding(num_classes, self.features)
        self.cond_emb: ConditionEmbedding | None = None
        if self.conditions:
            self.cond_emb = ConditionEmbedding(self.conditions, self.features)
            for layer in self.cond_emb.values():
                if isinstance(layer, LinearEmbedding):  # of the augmentation
                    xavier_init(layer)
        self.layers = nn.Sequential(
            xavier_init(nn.Linear(self.features, width)),
            nn.SiLU(),
            xavier_init(nn.Linear(width, width)),
            nn.SiLU(),
        )

    def forward(self, x: Tensor, t: Tensor, cond: Mapping[str, Tensor] | None) -> Tensor:
        """Embed times [B], and what `cond` says of the samples x, as [B, width].

        Raises:
            ValueError: `cond` has a name that is unknown here.
        """
        labels = read_labels(cond, x, num_classes=self.num_classes, others=self.conditions)
        if self.waves is not None:
            waves = self.waves(t)
        else:
            waves = sinusoidal_embedding(t, self.features, scale=self.scale, endpoint=True)
        h = waves.to(next(self.parameters()).dtype)
        if self.label_emb is not None:
            h = h + self.label_emb(labels)
        if self.cond_emb is not None:
            h = h + self.cond_emb(cond, x)
        out: Tensor = self.layers(h)
        return out


def _label_embedding(num_classes: int, features: int) -> ClassEmbedding:
    """Class vectors that start as W sqrt(num_classes) onehot with W of `xavier_init`.

    The null class starts at zero.  Source: Karras et al. 2022, appendix F.
    """
    layer = ClassEmbedding(num_classes, features)
    bound = math.sqrt(6 * num_classes / (num_classes + features))
    nn.init.uniform_(layer.weight, -bound, bound)
    nn.init.zeros_(layer.weight[-1])
    return layer
