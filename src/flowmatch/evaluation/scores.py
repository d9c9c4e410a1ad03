"""From a set of samples to numbers: everything that stays fixed over the rows of a table."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from flowmatch import metrics
from flowmatch.data import Dataset
from flowmatch.evaluation.extraction import KEPT_SAMPLES, SampleSet
from flowmatch.evaluation.sharding import evenly
from flowmatch.evaluation.statistics import Statistics
from flowmatch.features import FeatureNet
from flowmatch.metrics import Moments
from flowmatch.randomness import keyed_generator
from flowmatch.tensors import from_uint8

_FRECHET = {"inception": "fid", "dinov2": "fd_dinov2", "data": "fd_data"}
_KERNEL = {"inception": "kid", "dinov2": "kd_dinov2", "data": "kd_data"}
_SCORE = {"inception": "is", "data": "is_data"}

MOST_NEIGHBOURS = 10_000
"""Samples and reference images that precision, recall, density and coverage look at."""
MOST_TRAINING = 60_000
"""Training images that samples are compared with one by one, to find copies; fewer of large ones:
they take up to 2 GiB."""
MOST_COMPARED = KEPT_SAMPLES
"""Samples that are compared with training images, and points in an exact assignment."""


@dataclass(frozen=True)
class ImageScores:
    """The metrics of image sets against one reference, in the features of one net.

    Args:
        net: images to features.
        statistics: the reference.
        train: the images that the model was trained on, to look for copies; None if unknown.
        held_out: images that it was not trained on, the yardstick for copies.
        conditional: whether samples come with the class that was asked for.
    """

    net: FeatureNet
    statistics: Statistics
    train: Dataset | None = None
    held_out: Dataset | None = None
    conditional: bool = False
    _images: dict[str, Tensor] = field(default_factory=dict, compare=False)
    _floors: dict[int, float] = field(default_factory=dict, compare=False)

    @property
    def primary(self) -> str:
        """The metric that decides: the Frechet distance."""
        return _FRECHET[self.net.kind]

    def distance(self, vectors: Tensor) -> float:
        """The primary metric alone, of features [N, F]."""
        return metrics.frechet_distance(Moments.of(vectors), self.statistics.moments)

    def measure(self, samples: SampleSet) -> dict[str, float]:
        """Every metric of a set of samples, by name."""
        kind, reference = self.net.kind, self.statistics
        distance = self.distance(samples.vectors)
        # sets of different sizes compare by what exceeds the bias of their size
        excess = distance - self.floor(len(samples))
        found = {self.primary: distance, f"{self.primary}_excess": excess}
        kernel = metrics.kernel_distance(samples.vectors, reference.vectors)
        found[_KERNEL[kind]] = kernel.mean
        if samples.logits is not None:
            found[_SCORE[kind]] = metrics.inception_score(samples.logits)[0]
        ours = samples.vectors[:MOST_NEIGHBOURS]
        theirs = reference.vectors[evenly(len(reference.vectors), MOST_NEIGHBOURS)]
        if min(len(ours), len(theirs)) > _FEWEST_FOR_BALLS:
            found["precision"], found["recall"] = metrics.precision_recall(ours, theirs)[:2]
            found["density"], found["coverage"] = metrics.density_coverage(ours, theirs)
        if self.train is not None:
            found |= self._copies(samples)
        if (classes := self.classes(samples)) is not None:
            found["class_agreement"] = classes["agreement"]
        if samples.clipped is not None:
            found["clipped"] = samples.clipped
        return found

    def classes(self, samples: SampleSet) -> dict[str, Any] | None:
        """Whether class c looks like c to the fitted classifier; None where nobody can tell.

        `requested` and `predicted_counts` count samples of each class; `recognised_share` is, of
        the samples that class c was asked for, the share recognised as c.
        """
        logits, labels = samples.logits, samples.labels
        if not self.conditional or self.net.kind != "data" or logits is None or labels is None:
            return None
        if int(labels.max()) >= logits.shape[1]:
            return None
        said, count = logits.argmax(1), logits.shape[1]
        requested = torch.bincount(labels, minlength=count)
        right = torch.bincount(labels[said == labels], minlength=count)
        return {
            "agreement": float((said == labels).double().mean()),
            "requested": requested.tolist(),
            "predicted_counts": torch.bincount(said, minlength=count).tolist(),
            "recognised_share": (right / requested.clamp(min=1)).tolist(),
        }

    def floor(self, count: int) -> float:
        """What `count` draws of the reference's own Gaussian score: the bias of a finite set."""
        if count not in self._floors:
            self._floors[count] = metrics.frechet_floor(self.statistics.moments, count)
        return self._floors[count]

    def warn_about(self, count: int) -> None:
        """Say so where a set is too small for its number of features."""
        if count <= self.net.dims:
            warnings.warn(
                f"{count:,} samples for {self.net.dims:,} features: {self.primary} is biased"
                f" upwards; even draws of the reference's own Gaussian would score"
                f" {self.floor(count):.4g} with so few; raise --num-samples",
                stacklevel=2,
            )

    def describe(self) -> dict[str, Any]:
        """What a protocol says about how the numbers come about."""
        return {
            "features": self.statistics.features,
            "reference": self.statistics.describe(),
            "kernel": "cubic polynomial, 100 subsets of at most 1,000",
            "neighbourhoods": {"precision_recall": 3, "density_coverage": 5, "of": MOST_NEIGHBOURS},
            "copies": {"of": MOST_COMPARED, "among_training_images": self._compared_with},
        }

    def _copies(self, samples: SampleSet) -> dict[str, float]:
        held_out = None
        if self.held_out is not None:
            held_out = self._some("held_out", self.held_out, MOST_COMPARED)
        found = metrics.memorisation(
            from_uint8(samples.samples[:MOST_COMPARED]),
            self._some("train", self.train, self._compared_with),
            held_out,
        )
        return {k: v for k, v in found._asdict().items() if v is not None}

    @property
    def _compared_with(self) -> int:
        """How many training images are held in memory to be compared with."""
        if self.train is None:
            return 0
        fit = 2**31 // (4 * math.prod(self.train.shape))
        return min(len(self.train), MOST_TRAINING, max(fit, 2))

    def _some(self, name: str, dataset: Dataset | None, most: int) -> Tensor:
        """Images from all over a set in [-1, 1], decoded once."""
        assert dataset is not None
        if name not in self._images:
            parts = torch.split(evenly(len(dataset), most), 1000)
            self._images[name] = torch.cat([dataset.plain(part).x1.cpu() for part in parts])
        return self._images[name]


_FEWEST_FOR_BALLS = 5


@dataclass(frozen=True)
class PointScores:
    """The metrics of points and other arrays against a reference set.

    Args:
        reference: the set to compare with, in an order that means nothing.
        name: what to call it.
        held_out: what real points of the same law score, to compare with; None if there are none.
    """

    reference: Dataset
    name: str
    held_out: Dataset | None = None
    primary: str = "w2"

    def distance(self, vectors: Tensor) -> float:
        """The primary metric alone, of points [N, F]."""
        y = self._draw(len(vectors))
        n = min(MOST_COMPARED, len(vectors), len(y))
        return metrics.wasserstein2(vectors[:n], y[:n])

    def measure(self, samples: SampleSet) -> dict[str, float]:
        """Every metric of a set of samples, by name; all are NaN if a sample is not finite."""
        x = samples.vectors
        if samples.nonfinite:
            return dict.fromkeys(("w2", "sliced_w2", "mmd2", "energy", "c2st"), float("nan"))
        y = self._draw(len(x))
        n = min(MOST_COMPARED, len(x), len(y))
        return {
            "w2": self.distance(x),
            "sliced_w2": metrics.sliced_wasserstein2(x, y),
            "mmd2": metrics.mmd(x[:n], y[:n]),
            "energy": metrics.energy_distance(x[:n], y[:n]),
            "c2st": metrics.classifier_two_sample(x[:n], y[:n]),
        }

    def classes(self, samples: SampleSet) -> dict[str, Any] | None:
        """None: nothing recognises the classes of points."""
        return None

    def describe(self) -> dict[str, Any]:
        """What a protocol says about how the numbers come about."""
        return {
            "features": {"kind": "none", "note": "the samples themselves"},
            "reference": {
                "name": self.name,
                "hash": self.reference.identity(),
                "count": len(self.reference),
                "shape": list(self.reference.shape),
            },
            "assignment": f"exact, of the first {MOST_COMPARED:,}",
        }

    def warn_about(self, count: int) -> None:
        """Say so where a set is too small."""
        if count < _FEWEST_POINTS:
            warnings.warn(
                f"{count} samples are few: the distances between finite sets are biased upwards;"
                " raise --num-samples",
                stacklevel=2,
            )

    def _draw(self, count: int) -> Tensor:
        """As many points of the reference, the same ones each time."""
        order = torch.randperm(len(self.reference), generator=keyed_generator("reference points"))
        return self.reference.plain(order[:count]).x1.flatten(1).cpu()


_FEWEST_POINTS = 200

Scores = ImageScores | PointScores
