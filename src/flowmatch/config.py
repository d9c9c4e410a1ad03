"""Configs: one YAML file says everything about a run, and every mistake in it is named."""

from __future__ import annotations

import functools
import typing
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import yaml
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import Discriminator, Field, Tag, TypeAdapter, ValidationError

from flowmatch.component import Component
from flowmatch.config_mistakes import explain_all, nearest, walk
from flowmatch.data import DataConfig
from flowmatch.interop import NoiseAtOneConfig
from flowmatch.interop.seed import is_seed_config
from flowmatch.losses import FlowMatching, LossConfig
from flowmatch.networks import DDPMPPConfig, DiTConfig, EDM2Config, MLPConfig, UNetConfig
from flowmatch.paths import Linear, PathConfig, Preconditioned, Prediction
from flowmatch.solvers import Heun, SolverConfig
from flowmatch.training.settings import TrainConfig

AnyNetworkConfig = Annotated[
    MLPConfig | UNetConfig | DDPMPPConfig | EDM2Config | DiTConfig | NoiseAtOneConfig,
    Field(discriminator="kind"),
]


def _by_name(node: Any) -> str:
    return "name" if isinstance(node, str) else "edm"


PredictConfig = Annotated[
    Annotated[Prediction, Tag("name")] | Annotated[Preconditioned, Tag("edm")],
    Discriminator(_by_name),
]
"""One of the names, or `{kind: edm, sigma_data: ...}`."""


@dataclass(frozen=True, kw_only=True)
class SampleConfig(Component):
    """How samples are drawn when nothing else is said."""

    solver: SolverConfig = Heun(steps=50)


@dataclass(frozen=True, kw_only=True)
class Config(Component):
    """A whole run: data, network, path, what the network predicts, loss, training, sampling."""

    data: DataConfig
    network: AnyNetworkConfig
    train: TrainConfig
    path: PathConfig = Linear()
    predict: PredictConfig = "velocity"
    loss: LossConfig = FlowMatching()
    sample: SampleConfig = SampleConfig()


_CONFIG: TypeAdapter[Config] = TypeAdapter(Config)
_DATA: TypeAdapter[DataConfig] = TypeAdapter(DataConfig)


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file, apply `key.path=value` overrides, and check everything.

    Raises:
        ValueError: lists every mistake with its key, what came, and what is known there.
    """
    return parse_config(read_yaml(path), overrides, where=str(path))


def read_yaml(path: str | Path) -> dict[str, Any]:
    """A YAML file as a plain mapping.

    Raises:
        ValueError: no such file (names the nearest), or no YAML mapping.
    """
    path = Path(path).expanduser()
    if path.exists() and not path.is_file():
        raise ValueError(f"{path} is no file; a config is a YAML file")
    if not path.is_file():
        near = [p.name for p in path.parent.glob("*.yaml")] if path.parent.is_dir() else []
        raise ValueError(f"there is no config file {path}{nearest(path.name, near)}")
    try:
        node = OmegaConf.load(path)
        content = OmegaConf.to_container(node, resolve=True)
    except (yaml.YAMLError, OmegaConfBaseException, UnicodeDecodeError, OSError) as error:
        raise ValueError(f"{path} is not readable YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a mapping with data, network and train; it does not")
    return typing.cast(dict[str, Any], content)


def parse_config(
    content: Mapping[str, Any], overrides: Sequence[str] = (), *, where: str = "config"
) -> Config:
    """Check a plain mapping, with overrides applied, and build the config's dataclasses.

    An override of a `kind` leaves behind what the new kind does not know:
    `sample.solver.kind=dopri5` drops the steps of the solver before it. A list is replaced as a
    whole, or one of its items by its number: `train.ema.0.std=0.1`.
    """
    if is_seed_config(content):
        raise ValueError(
            f"{where} is a config of flow-matching-pytorch; bring its checkpoint over with"
            f" `flowmatch import model_ema.pt --config {where} -o RUN_DIR`"
        )
    try:
        merged = OmegaConf.create(dict(content))
        named = {key for override in overrides for key in _override(merged, override)}
        resolved = typing.cast(dict[str, Any], OmegaConf.to_container(merged, resolve=True))
        config = _validate(resolved, named)
    except (yaml.YAMLError, OmegaConfBaseException, TypeError) as error:
        raise ValueError(f"{where}: {' '.join(str(error).split())}") from None
    except ValidationError as error:
        raise ValueError(f"{where}: {explain_all(error, Config)}") from None
    read = flat(to_plain(config))
    for key, value in flat(resolved).items():  # pydantic takes true for 1
        if isinstance(value, bool) and type(read.get(key)) in (int, float):
            raise ValueError(f"{where}: {key}: is a number, got {str(value).lower()}")
    return config


def _override(config: DictConfig, override: str) -> list[str]:
    """Apply one `key.path=value`, and name the keys that it sets.

    A mapping joins the one that is there, unless it is empty; anything else takes the place of what
    is there.
    """
    key, sign, text = override.partition("=")
    if not sign or not key:
        raise ValueError(f"cannot read {override!r}; an override is key.path=value")
    parsed = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"]))
    value = typing.cast(dict[str, Any], parsed)["value"]
    *above, last = key.split(".")
    if isinstance(OmegaConf.select(config, ".".join(above)), ListConfig) and not last.isdecimal():
        name = ".".join(above)
        raise ValueError(f"{key}: {name} is a list; name one of its items, e.g. {name}.0.{last}")
    both = (
        value and isinstance(value, dict) and isinstance(OmegaConf.select(config, key), DictConfig)
    )
    OmegaConf.update(config, key, value, merge=bool(both))
    return [*flat(value, key)]


def _validate(content: dict[str, Any], named: Collection[str]) -> Config:
    try:
        return _CONFIG.validate_python(content)
    except ValidationError as error:
        unknown = [
            walk(list(e["loc"]), Config)[0]
            for e in error.errors(include_url=False)
            if e["type"] == "unexpected_keyword_argument"
        ]
        left = [
            (*node, key)
            for *node, key in unknown
            if ".".join((*node, "kind")) in named and ".".join((*node, key)) not in named
        ]
        if not left:
            raise
        for *node, key in left:
            del functools.reduce(_item, node, content)[key]
        return _validate(content, named)


def _item(node: Any, key: str) -> Any:
    return node[int(key)] if isinstance(node, list) else node[key]


def parse_data(content: Mapping[str, Any], *, where: str = "config") -> DataConfig:
    """Check a `data` node alone."""
    try:
        return _DATA.validate_python(dict(content))
    except ValidationError as error:
        raise ValueError(f"{where}: {explain_all(error, DataConfig)}") from None


def to_yaml(config: Config) -> str:
    """The resolved config as YAML; `load_config` reads it back to an equal one."""
    return yaml.safe_dump(to_plain(config), sort_keys=False)


def to_plain(config: Config) -> dict[str, Any]:
    """The resolved config as nested mappings, lists and plain values."""
    plain: dict[str, Any] = _CONFIG.dump_python(config, mode="json")
    return plain


def flat(node: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dotted keys."""
    if not isinstance(node, Mapping):
        return {prefix: node}
    return {
        key: value
        for name, child in node.items()
        for key, value in flat(child, f"{prefix}.{name}" if prefix else name).items()
    }
