"""Checkpoints of xyfJASON/flow-matching-pytorch: guided-diffusion's U-Net, t=1 is noise."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from flowmatch.interop.noise_at_one import NoiseAtOneConfig
from flowmatch.networks import UNetConfig

_DATA_KINDS = {"mnist": "mnist", "cifar10": "cifar10", "cifar-10": "cifar10"} | {
    name: name for name in ("celeba", "ffhq", "imagenet")
}
_CHANNELS = {"mnist": 1}
_TIME_SCALE = 999.0
"""That repository multiplies its time, 1 at the noise, by 999 before the embedding."""


def is_seed_config(config: Mapping[str, Any]) -> bool:
    """Whether a YAML mapping looks like that repository's, rather than ours."""
    model = config.get("model")
    return isinstance(model, Mapping) and "target" in model


def network_config(config: Mapping[str, Any]) -> NoiseAtOneConfig:
    """Our network config for that repository's `model` and `data` nodes.

    Its `attention_resolutions` are downsampling rates; ours are sizes. A rate that no level has
    builds no attention there, so it is dropped.

    Raises:
        ValueError: the model is not its UNetModel, or has a parameter we do not know.
    """
    target, params = config["model"]["target"], dict(config["model"].get("params", {}))
    if not str(target).endswith("UNetModel"):
        raise ValueError(f"model.target is {target}; only models.UNetModel can be imported")
    size = int(config["data"]["img_size"])
    multipliers = tuple(params.pop("channel_mult", (1, 2, 4, 8)))
    rates = params.pop("attention_resolutions")
    sizes = tuple(size // r for r in rates if r in {2**i for i in range(len(multipliers))})
    known = {
        "channels": params.pop("model_channels"),
        "blocks": params.pop("num_res_blocks"),
        "dropout": float(params.pop("dropout", 0.0)),
        "heads": params.pop("num_heads", 1),
        "scale_shift": params.pop("use_scale_shift_norm", False),
        "conv_resample": params.pop("conv_resample", True),
        "gradient_checkpointing": params.pop("use_checkpoint", False),
    }
    for name in ("in_channels", "out_channels"):  # ours follow from the data
        params.pop(name, None)
    if params:
        raise ValueError(
            f"model.params has {', '.join(params)}, which the import does not know; it reads"
            " unconditional UNetModels with the parameters of that repository's configs"
        )
    return NoiseAtOneConfig(
        inner=UNetConfig(
            multipliers=multipliers,
            attention_resolutions=sizes,
            qkv_order="legacy",
            time_scale=_TIME_SCALE,
            **known,
        )
    )


def our_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The `data`, `train` and `sample` nodes of our config, as plain mappings.

    What has no counterpart (data loader settings, print frequency) takes our defaults.

    Raises:
        ValueError: a data set that we do not have.
    """
    data, train = config["data"], config.get("train", {})
    name = str(data["name"]).lower()
    if name not in _DATA_KINDS:
        raise ValueError(f"data.name is {name}; known are {', '.join(_DATA_KINDS)}")
    node: dict[str, Any] = {"kind": _DATA_KINDS[name], "image_size": int(data["img_size"])}
    if "root" in data:
        node["root"] = str(data["root"])
    ema = train.get("ema", {})
    optim = train.get("optim", {}).get("params", {})
    sched = train.get("sched", {}).get("params", {})
    ours: dict[str, Any] = {
        "steps": train.get("n_steps"),
        "batch": train.get("batch_size"),
        "lr": optim.get("lr"),
        "seed": config.get("seed"),
        "save_every_steps": train.get("save_freq"),
        "sample_every_steps": train.get("sample_freq"),
        "samples": train.get("n_samples"),
        "max_grad_norm": None,
        "ema": {
            "decay": ema.get("decay", 0.9999),
            "warmup": ema.get("ema_warmup_type", "none"),
            "inv_gamma": ema.get("inv_gamma", 1.0),
            "power": ema.get("power", 2 / 3),
        },
    }
    if "training_steps" in sched:
        ours["schedule"] = {"kind": "linear", "warmup_steps": sched.get("warmup_steps")}
    kept = {k: v for k, v in ours.items() if v is not None or k == "max_grad_norm"}
    solver = {"kind": "euler", "steps": 100}  # what its sample.py does by default
    return {"data": node, "train": kept, "sample": {"solver": solver}}


def convert_weights(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """That repository's state dict with the names and shapes of `NoiseAtOne(UNet)`.

    Its attention keeps 1x1 convolutions over a line, [out, in, 1]; ours are linear layers.
    """
    return {
        f"inner.{name}": value.squeeze(-1) if name.endswith(_CONV1D) and value.ndim == 3 else value
        for name, value in weights.items()
    }


_CONV1D = ("qkv.weight", "proj_out.weight")
