"""Data sets: one file a family, each yielding `Batch(x1, cond)`.

A family is a frozen config, whose `build(split)` gives a `Dataset`: images in memory, images that
are decoded as they are used, images that are streamed, or points in the plane. `ShuffledOrder`, or
`LaneOrder` of a streamed set, says in which order they are visited and `stream` fetches them ahead
of time. No random number here but follows from what the caller gave.
"""

from typing import Annotated

import pydantic

from flowmatch.data import toy as toy
from flowmatch.data.batch import Batch
from flowmatch.data.celeba import CelebA
from flowmatch.data.cifar10 import CIFAR10
from flowmatch.data.columns import ColumnConfig, ScalarColumn, TextColumn, VectorColumn
from flowmatch.data.conditions import Texts, Values, rows_of, shape_of
from flowmatch.data.dataset import UNIFORMS, Dataset, Split
from flowmatch.data.decoded import DecodedImages, decode_all
from flowmatch.data.digits import Digits
from flowmatch.data.families import ImageFamily
from flowmatch.data.ffhq import FFHQ
from flowmatch.data.folder import ImageFolder
from flowmatch.data.hub import Hub
from flowmatch.data.imagenet import ImageNet
from flowmatch.data.images import ConditionedImages
from flowmatch.data.lanes import LaneOrder, Streaming
from flowmatch.data.latent import Latent, LatentDecoder
from flowmatch.data.latents import Latents, MemoryLatents
from flowmatch.data.loading import Request, stream
from flowmatch.data.memory import MemoryArrays, MemoryImages
from flowmatch.data.mnist import MNIST
from flowmatch.data.order import Order, ShuffledOrder
from flowmatch.data.source import ArraySource, FileSource, Source
from flowmatch.data.statistics import LatentStatistics
from flowmatch.data.streamed import StreamedImages
from flowmatch.data.tarred import Shards
from flowmatch.data.texts import embedded
from flowmatch.data.toy import TOYS, Toy
from flowmatch.data.transforms import Transform

DataConfig = Annotated[ImageFamily | Latent | Toy, pydantic.Field(discriminator="kind")]
"""Every family that a config file can name."""


def decoded_data(data: DataConfig) -> DataConfig:
    """What samples are compared with: the images behind latents, else the data themselves."""
    return data.images if isinstance(data, Latent) else data


__all__ = [
    "CIFAR10",
    "FFHQ",
    "MNIST",
    "TOYS",
    "UNIFORMS",
    "ArraySource",
    "Batch",
    "CelebA",
    "ColumnConfig",
    "ConditionedImages",
    "DataConfig",
    "Dataset",
    "DecodedImages",
    "Digits",
    "FileSource",
    "Hub",
    "ImageFolder",
    "ImageNet",
    "LaneOrder",
    "Latent",
    "LatentDecoder",
    "LatentStatistics",
    "Latents",
    "MemoryArrays",
    "MemoryImages",
    "MemoryLatents",
    "Order",
    "Request",
    "ScalarColumn",
    "Shards",
    "ShuffledOrder",
    "Source",
    "Split",
    "StreamedImages",
    "Streaming",
    "TextColumn",
    "Texts",
    "Toy",
    "Transform",
    "Values",
    "VectorColumn",
    "decode_all",
    "decoded_data",
    "embedded",
    "rows_of",
    "shape_of",
    "stream",
    "toy",
]
