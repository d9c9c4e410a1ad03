"""The training loops of other projects, each as its documentation tells its users to write it.

None of them is a dependency: what is not installed is left out, by name. Into a folder beside the
project, and from there:

    pip install --no-deps --target peers torchcfm POT torchdyn torchcde torchsde trampoline \
        pytorch_lightning lightning_utilities torchmetrics pandas absl-py rectified-flow-pytorch \
        einx ema-pytorch torch-einops-utils x-unet x-transformers rotary-embedding-torch
    PYTHONPATH=peers python benchmarks/train_step.py
"""

from __future__ import annotations

import contextlib
import copy
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset


class Loop(Protocol):
    """A training that goes on step by step."""

    def step(self) -> None: ...


class Pictures(Dataset[Tensor]):
    """uint8 images [N, C, H, W], one by one as float32 in [low, 1], as ToTensor would give them."""

    def __init__(self, images: Tensor, *, low: float) -> None:
        self.images, self.low = images, low

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> Tensor:
        return self.images[i].float().div(255).mul(1 - self.low).add(self.low)


class Plain:
    """Flow matching as most repositories write it."""

    def __init__(self, network: nn.Module, images: Tensor, batch: int, device: str) -> None:
        self.network = network.to(device)
        self.ema = copy.deepcopy(self.network)
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=2e-4)
        self.batches = endless(DataLoader(TensorDataset(images), batch, True, drop_last=True))
        self.device = device

    def step(self) -> None:
        x1 = next(self.batches)[0].to(self.device).float() / 127.5 - 1
        x0 = torch.randn_like(x1)
        t = torch.rand(len(x1), device=x1.device)
        s = t[:, None, None, None]
        loss = F.mse_loss(self.network(s * x1 + (1 - s) * x0, t), x1 - x0)
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step()
        with torch.no_grad():
            for average, live in zip(self.ema.parameters(), self.network.parameters(), strict=True):
                average.mul_(0.9999).add_(live, alpha=0.0001)
        loss.item()


class TorchCFM:
    """torchcfm's matcher in the loop of its CIFAR-10 example, without workers for the images."""

    def __init__(self, network: nn.Module, images: Tensor, batch: int, device: str) -> None:
        from torchcfm.conditional_flow_matching import (  # type: ignore[import-not-found]
            ConditionalFlowMatcher,
        )

        self.network, self.device = network.to(device), device
        self.ema = copy.deepcopy(self.network)
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=2e-4)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: min(step, 5000) / 5000
        )
        self.matcher = ConditionalFlowMatcher(sigma=0.0)
        loader = DataLoader(Pictures(images, low=-1.0), batch, shuffle=True, drop_last=True)
        self.batches = endless(loader)

    def step(self) -> None:
        self.optimizer.zero_grad()
        x1 = next(self.batches).to(self.device)
        t, xt, ut = self.matcher.sample_location_and_conditional_flow(torch.randn_like(x1), x1)
        loss = (self.network(xt, t) - ut).square().mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step()
        self.schedule.step()
        average = self.ema.state_dict()
        for name, live in self.network.state_dict().items():  # its average, entry by entry
            average[name].data.copy_(average[name].data * 0.9999 + live.data * 0.0001)


class RectifiedFlowPyTorch:
    """rectified-flow-pytorch's Trainer around its RectifiedFlow, without its pictures on the way.

    Its loop has no step of its own: it is started anew for each.
    """

    def __init__(
        self, network: nn.Module, images: Tensor, batch: int, device: str, folder: Path
    ) -> None:
        from rectified_flow_pytorch import (  # type: ignore[import-not-found]
            RectifiedFlow,
            Trainer,
        )

        self.trainer = Trainer(
            RectifiedFlow(ByName(network)),
            dataset=Pictures(images, low=0.0),
            num_train_steps=1,
            batch_size=batch,
            save_results_every=10**9,
            checkpoint_every=10**9,
            checkpoints_folder=str(folder / "checkpoints"),
            results_folder=str(folder / "results"),
            accelerate_kwargs={"cpu": device == "cpu"},
        )

    def step(self) -> None:
        with contextlib.redirect_stdout(io.StringIO()):  # it prints each loss
            self.trainer()


class ByName(nn.Module):
    """A network that is told its times by the name that RectifiedFlow gives them."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, *, times: Tensor) -> Tensor:
        out: Tensor = self.network(x, times)
        return out


def peers(folder: Path) -> dict[str, Callable[[nn.Module, Tensor, int, str], Loop]]:
    """All loops by name; calling one that is not installed raises ImportError."""
    return {
        "plain": Plain,
        "torchcfm": TorchCFM,
        "rectified-flow-pytorch": lambda *words: RectifiedFlowPyTorch(*words, folder),
    }


def endless(loader: DataLoader[Tensor]) -> Iterator[Tensor]:
    """The batches of a loader, over and over."""
    while True:
        yield from loader
