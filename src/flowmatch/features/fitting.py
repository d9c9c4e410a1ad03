"""Fitting a feature net to the user's own data.

Published features know photographs; on digits or spectrograms their distances mean little.
A small classifier of the very data is fitted in seconds to minutes, and its features tell real from
generated where it matters: what is drawn, and how.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from flowmatch.data import Batch, Dataset, ShuffledOrder, stream
from flowmatch.data.decoded import threads
from flowmatch.features.convnet import Architecture, ConvNet
from flowmatch.features.fittednet import RECIPE, Facts, FittedNet, Task
from flowmatch.randomness import keyed_generator

Progress = Callable[[int, int], None]
"""Called with how many images have been fitted to, and how many there will be."""

LEAST_SET = 10  # images

# The recipe; with the widths of `Architecture`, what RECIPE is the version of.
BATCH = 128
PASSES = 40
LEAST_IMAGES, MOST_IMAGES = 20_000, 100_000
LR = 4e-3
WEIGHT_DECAY = 0.05
WARMUP = 0.2  # share of the steps
MOST_MEASURED = 20_000  # images that accuracy and scale are measured on


def fit(
    train: Dataset,
    held_out: Dataset | None,
    *,
    seed: int = 0,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> FittedNet:
    """Fit a small classifier to a data set, for its features.

    Labelled images are classified. Images without labels are turned by 0, 90, 180 or 270 degrees
    (oblong ones by 0 or 180), and the turn is predicted. The data set's own augmentation is not
    used.

    On the CPU the result depends on the data and the seed alone (and in its last digits on the
    number of threads).

    Args:
        train: 10 or more images [C, H, W], with C = 1 or 3 and sides of at least 4 pixels.
        held_out: images like these, to measure the accuracy on; None keeps a tenth of `train` out
            of the fitting for that.
        seed: key of the initial weights, the order of the images, and the turns.
        device: where to compute.
        progress: told after each batch how far it has come.
    Raises:
        ValueError: the data are no such images, or streamed from where they cannot be read here
            and there, or `held_out` is of another kind than `train`.
    Source: turns, Gidaris et al. 2018; features of a classifier of the data in place of
    Inception's, Binkowski et al. 2018 (KID; a LeNet for MNIST).
    """
    check(train, held_out)
    labelled = (train.num_classes or 0) > 1
    job = _Job("labels" if labelled else "rotations", _architecture(train), seed, device)
    fitted_to, measured, measured_on = _parts(train, held_out, seed)
    network = _optimise(job, train, fitted_to, progress)
    # The scale is that of the images as they were shown: turned ones, where turns were predicted.
    examples = job.examples(train, _batches(_some(fitted_to, seed)), "scale")
    network.standardise([network.means(x) for x, _ in examples])
    facts = Facts(
        recipe=RECIPE,
        architecture=job.architecture,
        task=job.task,
        accuracy=_accuracy(network, job, measured, measured_on),
        accuracy_on=len(measured_on),
        data=train.identity(),
        seed=seed,
    )
    return FittedNet(network, facts)


def check(train: Dataset, held_out: Dataset | None) -> None:
    """Raise ValueError unless features can be fitted to these data sets."""
    if len(train) < LEAST_SET:
        raise ValueError(
            f"features are fitted to {LEAST_SET} images or more, but this data set has {len(train)}"
        )
    if not train.random_access:
        raise ValueError(
            "features are fitted to images from all over a set, which parquet files and distant"
            " shards are too slow for when they are streamed; use published features (--features"
            " inception, train.evaluate_features=inception), or shards on a local disk (flowmatch"
            " shard)"
        )
    if held_out is None:
        return
    ours, theirs = (train.shape, train.num_classes), (held_out.shape, held_out.num_classes)
    if ours != theirs:
        raise ValueError(
            "the held-out images must be like those to fit to (shape {}, {} classes), but have"
            " shape {} and {} classes".format(*ours, *theirs)
        )


@dataclass(frozen=True)
class _Job:
    """What the network is to tell apart, and where its randomness comes from."""

    task: Task
    architecture: Architecture
    seed: int
    device: torch.device | str

    def initial(self) -> ConvNet:
        """The network before the fitting."""
        key = keyed_generator("features", "weights", self.seed).initial_seed()
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(key)  # of the CPU alone
            network = ConvNet(self.architecture)
        return network.to(self.device)

    def examples(
        self, dataset: Dataset, indices: Sequence[Tensor], purpose: str
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of images [B, C, H, W] and their right answers [B]."""
        for number, batch in enumerate(_plain(dataset, indices, self.device)):
            if self.task == "labels":
                yield batch.x1, batch.cond["label"]
                continue
            key = ("features", "turns", purpose, self.seed, number)
            ways = self.architecture.outputs
            turns = torch.randint(ways, (len(batch),), generator=keyed_generator(*key))
            turns = turns.to(batch.x1.device)
            yield turned(batch.x1, turns, ways), turns


def turned(x: Tensor, turns: Tensor, ways: int) -> Tensor:
    """Images [B, C, H, W], each turned to the left by `turns` [B] times 360 / `ways` degrees."""
    x = x.clone()
    for way in range(1, ways):
        x[turns == way] = x[turns == way].rot90(way * 4 // ways, (2, 3))
    return x


def _architecture(train: Dataset) -> Architecture:
    turns = 4 if len({*train.shape[1:]}) == 1 else 2
    classes = train.num_classes or 0
    return Architecture(shape=train.shape, outputs=classes if classes > 1 else turns)


def _parts(train: Dataset, held_out: Dataset | None, seed: int) -> tuple[Tensor, Dataset, Tensor]:
    """Which images to fit to, and which to measure the accuracy on (data set and indices)."""
    if held_out is not None:
        return torch.arange(len(train)), held_out, _some(torch.arange(len(held_out)), seed)
    order = torch.randperm(len(train), generator=keyed_generator("features", "held out", seed))
    kept = len(train) // 10
    return order[:-kept], train, _some(order[-kept:], seed)


def _some(indices: Tensor, seed: int) -> Tensor:
    """At most MOST_MEASURED of the indices, evenly chosen."""
    if len(indices) <= MOST_MEASURED:
        return indices
    generator = keyed_generator("features", "measured", seed)
    return indices[torch.randperm(len(indices), generator=generator)[:MOST_MEASURED]]


def _batches(indices: Tensor) -> list[Tensor]:
    return [indices[start : start + BATCH] for start in range(0, len(indices), BATCH)]


def _optimise(job: _Job, train: Dataset, fitted_to: Tensor, progress: Progress | None) -> ConvNet:
    """The fitted network, in evaluation mode, its features not yet on one scale."""
    budget = min(max(PASSES * len(fitted_to), LEAST_IMAGES), MOST_IMAGES)
    steps = -(-budget // BATCH)
    order = ShuffledOrder(len(fitted_to), job.seed)
    indices = [fitted_to[order.indices(i * BATCH, (i + 1) * BATCH)] for i in range(steps)]
    network = job.initial()
    optimizer = torch.optim.AdamW(network.parameters(), lr=LR, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, LR, total_steps=steps, pct_start=WARMUP, cycle_momentum=False
    )
    for number, (x, answers) in enumerate(job.examples(train, indices, "fit")):
        loss = cross_entropy(network.logits(network.means(x)), answers)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        schedule.step()
        if progress is not None:
            progress((number + 1) * BATCH, steps * BATCH)
    return network.eval().requires_grad_(False)


def _accuracy(network: ConvNet, job: _Job, dataset: Dataset, indices: Tensor) -> float:
    """Share of right answers."""
    right = torch.zeros((), dtype=torch.int64, device=job.device)
    for x, answers in job.examples(dataset, _batches(indices), "measure"):
        right += (network.logits(network.means(x)).argmax(1) == answers).sum()
    return right.item() / len(indices)


def _plain(
    dataset: Dataset, indices: Sequence[Tensor], device: torch.device | str
) -> Iterator[Batch]:
    """Batches without augmentation, decoded ahead of time where that pays."""
    unused = torch.zeros(0)
    requests = [(index, unused) for index in indices]
    return stream(_Plain(dataset), requests, workers=min(threads(), 8), device=device)


class _Plain(Dataset):
    """A data set that knows no augmentation, whatever uniforms a request carries."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset
        self.shape, self.num_classes = dataset.shape, dataset.num_classes

    @property
    def in_memory(self) -> bool:  # type: ignore[override]
        return self.dataset.in_memory

    def __len__(self) -> int:
        return len(self.dataset)

    def raw(self, indices: Tensor, uniforms: Tensor | None) -> Batch:
        return self.dataset.raw(indices, None)

    def identity(self) -> str:
        return self.dataset.identity()
