"""The families of images, by name: what a data set can be made of, and latents be encoded from."""

from __future__ import annotations

from typing import Annotated

import pydantic

from flowmatch.data.celeba import CelebA
from flowmatch.data.cifar10 import CIFAR10
from flowmatch.data.digits import Digits
from flowmatch.data.ffhq import FFHQ
from flowmatch.data.folder import ImageFolder
from flowmatch.data.hub import Hub
from flowmatch.data.imagenet import ImageNet
from flowmatch.data.mnist import MNIST
from flowmatch.data.tarred import Shards

ImageFamily = CIFAR10 | CelebA | Digits | FFHQ | Hub | ImageFolder | ImageNet | MNIST | Shards

ImageConfig = Annotated[ImageFamily, pydantic.Field(discriminator="kind")]
"""Every family of images that a config file can name."""
