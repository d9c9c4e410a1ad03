"""Whether a config's network and its data agree on the conditions."""

from __future__ import annotations

from collections.abc import Mapping

from flowmatch.config import Config
from flowmatch.data import Dataset, Latent, decoded_data, shape_of
from flowmatch.networks.conditions import AUGMENT, Condition, Vector


def check_names(config: Config) -> None:
    """Refuse a network with a condition that the data's config does not name.

    The data need not be read for it, nor texts embedded.

    Raises:
        ValueError: names the condition and what to do.
    """
    images = decoded_data(config.data)
    given = getattr(images, "conditions", {})
    if missing := [name for name in _wanted(config) if name not in given]:
        known = f"only {', '.join(given)}" if given else "no conditions besides a class"
        raise ValueError(
            f"network.conditions has {', '.join(missing)}, but the data set {images.kind} gives"
            f" {known}; say where the values are in data.conditions.{missing[0]}, or leave it out"
        )
    _check_augmentation(config)
    if config.loss.label_dropout and config.network.num_classes is None and not _wanted(config):
        raise ValueError(
            f"loss.label_dropout is {config.loss.label_dropout:g}, but the network takes no"
            " condition that could be dropped; set it to 0, or set network.num_classes"
        )


def check_conditions(config: Config, dataset: Dataset) -> None:
    """Refuse a network whose classes or other conditions are not those of the data.

    Raises:
        ValueError: says what the one wants and the other has.
    """
    _check_classes(config, dataset.num_classes)
    for name, condition in _wanted(config).items():
        if name not in dataset.values:
            check_names(config)
        shape = shape_of(dataset.values[name])
        if shape != condition.shape:
            raise ValueError(
                f"network.conditions.{name} is {_in_words(condition.shape)}, but that of the data"
                f" is {_in_words(shape)}; correct kind and dim"
            )


def _check_classes(config: Config, num_classes: int | None) -> None:
    wanted = config.network.num_classes
    if wanted is not None and wanted != num_classes:
        has = f"has {num_classes} classes" if num_classes else "has no labels"
        fix = num_classes if num_classes else "null"
        raise ValueError(
            f"network.num_classes is {wanted}, but the data set {config.data.kind} {has};"
            f" set network.num_classes={fix}"
        )


def _check_augmentation(config: Config) -> None:
    """Refuse an augmentation that the network is not told of, and the other way round."""
    augment = config.train.augment
    told = getattr(config.network, "conditions", {}).get("augment")
    if augment is None and told is None:
        return
    if augment is None:
        raise ValueError(
            "network.conditions has augment, but nothing is augmented; set train.augment, or leave"
            " the condition out (network.conditions={} empties them)"
        )
    if len(config.data.shape) != 3 or isinstance(config.data, Latent):
        raise ValueError(
            f"train.augment moves images, but the data are {config.data.kind} of shape"
            f" {config.data.shape}; leave it out"
        )
    if augment.flip_x and getattr(config.data, "flip", False):
        raise ValueError(
            "data.flip mirrors images without telling the network, and train.augment does so"
            " besides; set data.flip=false, or train.augment.flip_x=0"
        )
    wanted = Vector(dim=augment.dim, when_absent="zero")
    if told != wanted:
        raise ValueError(
            "with train.augment the network has to be told what was done to an image: set"
            f" network.conditions.augment to {{kind: vector, dim: {wanted.dim}, when_absent: zero}}"
        )


def _wanted(config: Config) -> dict[str, Condition]:
    """The network's conditions that must come from the data; augmentation tells its own."""
    found: Mapping[str, Condition] = getattr(config.network, "conditions", {})
    return {name: condition for name, condition in found.items() if name != AUGMENT}


def _in_words(shape: tuple[int | None, ...]) -> str:
    kind = ("a scalar", "a vector", "a text")[len(shape)]
    return f"{kind} of dim {shape[-1]}" if shape else kind
