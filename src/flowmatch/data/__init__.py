"""Data sets: one file a family, each yielding `Batch(x1, cond)`.

A family is a frozen config, whose `build(split)` gives a `Dataset`: images in memory, images that
are decoded as they are used, or points in the plane. `ShuffledOrder` says in which order they are
visited and `stream` fetches them ahead of time. Nothing here draws a random number that the caller
did not give.
"""

from typing import Annotated

import pydantic

from flowmatch.data import toy as toy
from flowmatch.data.batch import Batch
from flowmatch.data.celeba import CelebA
from flowmatch.data.cifar10 import CIFAR10
from flowmatch.data.dataset import UNIFORMS, Dataset, Split
from flowmatch.data.decoded import DecodedImages, decode_all
from flowmatch.data.digits import Digits
from flowmatch.data.ffhq import FFHQ
from flowmatch.data.folder import ImageFolder
from flowmatch.data.hub import Hub
from flowmatch.data.imagenet import ImageNet
from flowmatch.data.loading import Request, stream
from flowmatch.data.memory import MemoryArrays, MemoryImages
from flowmatch.data.mnist import MNIST
from flowmatch.data.order import ShuffledOrder
from flowmatch.data.source import ArraySource, FileSource, Source
from flowmatch.data.toy import TOYS, Toy
from flowmatch.data.transforms import Transform

DataConfig = Annotated[
    CIFAR10 | CelebA | Digits | FFHQ | Hub | ImageFolder | ImageNet | MNIST | Toy,
    pydantic.Field(discriminator="kind"),
]
"""Every family that a config file can name."""

__all__ = [
    "CIFAR10",
    "FFHQ",
    "MNIST",
    "TOYS",
    "UNIFORMS",
    "ArraySource",
    "Batch",
    "CelebA",
    "DataConfig",
    "Dataset",
    "DecodedImages",
    "Digits",
    "FileSource",
    "Hub",
    "ImageFolder",
    "ImageNet",
    "MemoryArrays",
    "MemoryImages",
    "Request",
    "ShuffledOrder",
    "Source",
    "Split",
    "Toy",
    "Transform",
    "decode_all",
    "stream",
    "toy",
]
