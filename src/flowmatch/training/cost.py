"""What a run costs: operations of the network, and how many a second the device can do."""

from __future__ import annotations

import platform
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from flowmatch import __version__
from flowmatch.data import Dataset
from flowmatch.flow import Cond, Flow
from flowmatch.randomness import keyed_generator
from flowmatch.training.diagnosis import Probe
from flowmatch.training.distributed import precision_of
from flowmatch.training.settings import Precision

_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
_MOST_SECONDS = 0.1
_PEAKS: dict[str, dict[Precision, float]] = {
    "B200": {"fp32": 1.1e15, "fp16": 2.25e15, "bf16": 2.25e15},
    "H200": {"fp32": 494e12, "fp16": 989e12, "bf16": 989e12},
    "H100": {"fp32": 494e12, "fp16": 989e12, "bf16": 989e12},
    "A100": {"fp32": 156e12, "fp16": 312e12, "bf16": 312e12},
    "RTX 4090": {"fp32": 82.6e12, "fp16": 165e12, "bf16": 165e12},
    "V100": {"fp32": 15.7e12, "fp16": 125e12},
}
"""Dense operations a second by NVIDIA's data sheets (SXM); fp32 means TF32 where there is it."""


def starting_facts(flow: Flow, dataset: Dataset, accelerator: Accelerator) -> dict[str, Any]:
    """What a run starts on, and what its cost follows from.

    Args:
        flow: what is trained, in evaluation mode.
        dataset: what it is trained on.
        accelerator: processes, device and precision.
    """
    precision = precision_of(accelerator)
    one = Probe.of(dataset, 1, known=flow.nulls, seed=0, device=accelerator.device)
    return {
        "device": device_name(accelerator.device),
        "processes": accelerator.num_processes,
        "precision": precision,
        "threads": torch.get_num_threads(),
        **_numerics(accelerator.device),
        "torch": str(torch.__version__),
        "flowmatch": __version__,
        "forward_flops_per_image": forward_flops(flow, one.x1, one.cond),
        "matmul_flops_per_second": matmul_rate(accelerator.device, precision),
    }


def _numerics(device: torch.device) -> dict[str, Any]:
    """How float32 products are computed, and how convolutions are chosen: "high" means TF32."""
    if device.type != "cuda":
        return {}
    return {
        "float32_products": torch.get_float32_matmul_precision(),
        "tf32_convolutions": torch.backends.cudnn.allow_tf32,
        "cudnn_benchmark": torch.backends.cudnn.benchmark,
    }


@torch.no_grad()
def forward_flops(flow: Flow, x: Tensor, cond: Cond | None = None) -> int:
    """Floating-point operations of one forward pass of one sample; a multiply-add counts as 2.

    Counted are matrix products, convolutions and attention; what works element by element is not.

    Args:
        flow: in evaluation mode.
        x: one sample [1, *D].
        cond: its conditions.
    """
    from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

    def attention(q: Sequence[int], k: Sequence[int], v: Sequence[int], *_: Any, **__: Any) -> int:
        return int(sdpa_flop_count(q, k, v))  # type: ignore[no-untyped-call]

    # torch counts the attention of GPUs alone
    on_cpu = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attention}
    with FlopCounterMode(display=False, custom_mapping=on_cpu) as counter:
        flow(x, 0.5, cond)
    return int(counter.get_total_flops())


def matmul_rate(device: torch.device, precision: Precision) -> float:
    """Operations a second in the product of two square matrices: the best of at most five runs.

    It is what the device reaches in the precision of training, as this process has set it up
    (threads, TF32), and so the scale that a network's own rate can be held against.
    """
    n = 512 if device.type == "cpu" else 4096
    generator = keyed_generator("matmul", device=device)
    a = torch.empty(n, n, device=device).normal_(generator=generator).to(_DTYPES[precision])
    _ = a[:64, :64] @ a[:64, :64]  # the first product of a process loads libraries
    _wait(device)
    seconds: list[float] = []
    while len(seconds) < 5 and sum(seconds) < _MOST_SECONDS:
        began = time.perf_counter()
        _ = a @ a
        _wait(device)
        seconds.append(time.perf_counter() - began)
    return 2 * n**3 / min(seconds)


def peak_rate(device: torch.device, precision: Precision) -> float:
    """The most operations a second that a device can do, by its maker; else as `matmul_rate`."""
    name = device_name(device)
    known = next((peaks for model, peaks in _PEAKS.items() if model in name), {})
    return known.get(precision) or matmul_rate(device, precision)


def device_name(device: torch.device) -> str:
    """The name of a GPU or CPU as its maker gives it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return device.type
    info = Path("/proc/cpuinfo")  # Linux alone; elsewhere Python knows the name
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
