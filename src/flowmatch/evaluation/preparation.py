"""What the rows of a table share: the reference, the feature net, the statistics."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from accelerate.utils import broadcast_object_list

from flowmatch.config import Config
from flowmatch.data import Dataset, decoded_data
from flowmatch.evaluation.references import (
    OWN_SPLITS,
    Reference,
    find_reference,
    fit_resolution,
    held_out_of,
)
from flowmatch.evaluation.scores import ImageScores, PointScores, Scores
from flowmatch.evaluation.statistics import Statistics, cached_statistics
from flowmatch.features import (
    FeatureKind,
    FeatureNet,
    FittedNet,
    cache_dir,
    fitted,
    load_dinov2,
    load_inception,
)
from flowmatch.training.tracking import Bar

if TYPE_CHECKING:
    from accelerate import Accelerator

Say = Callable[[str], object]


@contextmanager
def shown(label: str, total: int, accelerator: Accelerator) -> Iterator[Callable[[int], None]]:
    """A progress bar on a terminal, advanced by what this process has done of its share."""
    if not (accelerator.is_main_process and sys.stderr.isatty() and total):
        yield lambda done: None
        return
    bar = Bar(total, label=label)
    try:
        yield lambda done: bar.advance(done * accelerator.num_processes)
    finally:
        bar.close()


@dataclass(frozen=True)
class Request:
    """What numbers are asked for.

    Args:
        reference: see `find_reference`.
        features: which feature net; None takes the data's own for images, and none for points.
        feature_weights: file with the net's weights, instead of a download or of fitting.
        resize_reference: bring a reference of another resolution to that of the samples.
    """

    reference: str | None = None
    features: FeatureKind | None = None
    feature_weights: Path | None = None
    resize_reference: bool = False


def prepare(
    request: Request,
    shape: tuple[int, ...],
    config: Config | None,
    accelerator: Accelerator,
    *,
    conditional: bool,
    say: Say = print,
) -> Scores:
    """Everything that the rows of a table share: reference, feature net, statistics.

    Args:
        shape: of one sample, as it is measured.
        config: of the run; None when stored samples are evaluated.
        conditional: whether the samples come with the classes that were asked for.
        say: tells what takes a while.
    Raises:
        ValueError: the request cannot be met; says what would work instead.
    """
    reference = fit_resolution(
        find_reference(request.reference, config), shape, resize=request.resize_reference
    )
    if len(shape) != 3:
        if request.features is not None:
            raise ValueError(
                f"samples of shape {shape} are no images; leave out --features: they are compared"
                " as they are"
            )
        assert reference.dataset is not None
        own = request.reference in (None, "train")
        return PointScores(reference.dataset, reference.name, reference.held_out if own else None)
    train, held_out = reference.train, reference.held_out
    if config is not None and request.reference not in OWN_SPLITS:
        train, held_out = _training_data(config, reference, say)
    net = _feature_net(request, reference, train, held_out, accelerator, say)
    statistics = reference.statistics or _statistics(reference, net, accelerator, say)
    _same_features(statistics, net)
    return ImageScores(net, statistics, train, held_out, conditional)


def _training_data(
    config: Config, reference: Reference, say: Say
) -> tuple[Dataset | None, Dataset | None]:
    """What the run was trained on and what was held out; neither is needed beside statistics."""
    try:
        data = decoded_data(config.data)
        return data.build("train"), held_out_of(data)
    except (ValueError, OSError) as error:
        if reference.statistics is None:
            raise
        say(f"copies of the training data are not looked for, it cannot be read: {error}")
        return None, None


def save_reference(
    request: Request, path: Path, accelerator: Accelerator, *, say: Say = print
) -> Statistics:
    """Write the statistics of a reference, and the net fitted to it, as one file to share.

    Raises:
        ValueError: the reference cannot be found, or holds no images.
    """
    reference = find_reference(request.reference, None)
    if reference.dataset is None or len(reference.shape) != 3:
        raise ValueError(f"{request.reference} holds no images to make statistics of")
    net = _feature_net(request, reference, reference.train, reference.held_out, accelerator, say)
    statistics = _statistics(reference, net, accelerator, say)
    if accelerator.is_main_process:
        statistics.save(path)
    return statistics


def _feature_net(
    request: Request,
    reference: Reference,
    train: Dataset | None,
    held_out: Dataset | None,
    accelerator: Accelerator,
    say: Say,
) -> FeatureNet:
    """The net that was asked for, the same in all processes."""
    given = reference.statistics
    kind = request.features or (given.features["kind"] if given is not None else "data")
    if kind != "data":
        load = load_inception if kind == "inception" else load_dinov2
        with accelerator.main_process_first():  # one downloads, the others find it there
            return load(request.feature_weights).to(accelerator.device)
    if request.feature_weights is not None:
        return _fitted_in(request.feature_weights).to(accelerator.device)
    if given is not None and given.net is not None:
        return given.net.to(accelerator.device)
    if train is None:
        raise ValueError(
            f"there is nothing to fit features to: {reference.name} holds statistics alone; give"
            " --feature-weights FILE, or images as --reference"
        )
    net = _fitted_by_one(train, held_out, accelerator).to(accelerator.device)
    say(
        f"features: {net.dims} dims fitted to {len(train):,} images, hash {net.hash},"
        f" {net.facts.accuracy:.1%} right on {net.facts.accuracy_on:,} held-out images"
    )
    return net


def _fitted_in(path: Path) -> FittedNet:
    """The fitted net of a file of its own, or of a reference file that carries one."""
    try:
        return FittedNet.load(path)
    except ValueError:
        if path.is_file() and path.suffix == ".safetensors":
            with contextlib.suppress(ValueError):  # the first message says more
                if (net := Statistics.load(path).net) is not None:
                    return net
        raise


def _fitted_by_one(train: Dataset, held_out: Dataset | None, accelerator: Accelerator) -> FittedNet:
    """The net that the main process fits or has in its cache; no process has another."""
    found: list[FittedNet | None] = [None]
    if accelerator.is_main_process:
        with shown("fitting features", 100, accelerator) as advance:
            share = _Percent(advance)
            device = accelerator.device
            net = fitted(train, held_out, cache=cache_dir(), device=device, progress=share)
            found = [net.to("cpu")]  # unpickled on each process's own device
    if accelerator.num_processes > 1:
        broadcast_object_list(found)
    assert found[0] is not None
    return found[0]


def _statistics(
    reference: Reference, net: FeatureNet, accelerator: Accelerator, say: Say
) -> Statistics:
    assert reference.dataset is not None
    with shown("reference", len(reference.dataset), accelerator) as advance:
        found = cached_statistics(
            reference.dataset,
            net,
            accelerator,
            name=reference.name,
            cache=cache_dir(),
            progress=advance,
        )
    say(f"reference: {found.name}, {found.count:,} images, hash {found.identity}")
    return found


def _same_features(statistics: Statistics, net: FeatureNet) -> None:
    ours, theirs = net.describe(), statistics.features
    if (ours["kind"], ours["hash"]) != (theirs["kind"], theirs["hash"]):
        raise ValueError(
            f"the reference {statistics.name} was made with the features {theirs['kind']}"
            f" {theirs['hash']}, not with {ours['kind']} {ours['hash']}; use --features"
            f" {theirs['kind']} with the same weights, or images as --reference"
        )


class _Percent:
    """Turns (done, total) into steps of a bar of a hundred."""

    def __init__(self, advance: Callable[[int], None]) -> None:
        self._advance, self._at = advance, 0

    def __call__(self, done: int, total: int) -> None:
        now = 100 * done // max(total, 1)
        self._advance(now - self._at)
        self._at = now
