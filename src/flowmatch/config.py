"""Configs: one YAML file says everything about a run, and every mistake in it is named."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import re
import types
import typing
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin

import yaml
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import Discriminator, Field, Tag, TypeAdapter, ValidationError

from flowmatch.component import Component
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
        raise ValueError(f"there is no config file {path}{_nearest(path.name, near)}")
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
        raise ValueError(f"{where}: {_explain_all(error, Config)}") from None
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
            _walk(list(e["loc"]), Config)[0]
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
        raise ValueError(f"{where}: {_explain_all(error, DataConfig)}") from None


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


def _explain_all(error: ValidationError, root: Any) -> str:
    """Every mistake, one a line."""
    mistakes = [_explain(e, root) for e in error.errors(include_url=False)]
    if len(mistakes) == 1:
        return mistakes[0]
    return "\n".join([f"{len(mistakes)} mistakes", *(f"  {m}" for m in mistakes)])


def _explain(error: Mapping[str, Any], root: Any) -> str:
    """One mistake in one sentence: the key, what came, what is known."""
    loc, kind, context = list(error["loc"]), error["type"], error.get("ctx", {})
    keys, owner = _walk(loc, root)
    came = error.get("input")
    if kind == "unexpected_keyword_argument":
        known = [f.name for f in dataclasses.fields(owner)] if owner is not None else []
        name, place = ".".join(keys), _place(keys[-1], within=keys[0])
        misplaced = place is not None and place != name
        hint = f"; it belongs to {place}" if misplaced else _nearest(keys[-1], known)
        of = getattr(owner, "kind", None)
        here = "here" if of is None else f"of kind {of}"
        return f"{name}: unknown key{hint}; known {here}: {', '.join(known)}"
    name = ".".join(keys) or "config"
    if kind == "union_tag_invalid":
        known = [tag.strip("' ") for tag in context["expected_tags"].split(",")]
        tag = context["tag"]
        if keys[-1:] == ["of"] and tag in ("shifted", "adaptive", "stratified"):
            return (
                f"{name}: {tag} cannot stand here; from the outside in, times are stratified,"
                " adaptive, shifted, and one of the plain ones"
            )
        return f"{name}.kind: unknown kind {tag!r}{_nearest(tag, known)}; known: {', '.join(known)}"
    if kind == "union_tag_not_found":
        return f"{name}: has no kind; say which one with {name}.kind=..."
    if kind == "missing":
        return f"{name}: is missing"
    if kind == "value_error":
        return f"{name}: {context['error']}"
    if kind in ("model_attributes_type", "dataclass_type") and isinstance(came, str):
        return f"{name}: is a mapping, e.g. {{kind: {came}}}, got {came!r}"
    if keys == ["predict", "kind"] and came in get_args(Prediction):
        return f"predict: {came} has nothing to set and is a bare name, predict={came}"
    if kind == "literal_error" and (known := re.findall("'([^']*)'", context["expected"])):
        return (
            f"{name}: unknown name {came!r}{_nearest(str(came), known)}; known: {', '.join(known)}"
        )
    message = error["msg"][0].lower() + error["msg"][1:]
    return f"{name}: {message}, got {came!r}"


def _place(key: str, *, within: str) -> str | None:
    """Where a key stands that was looked for elsewhere: the section of a config that has it.

    The kind of the section that it was looked for in does not, so others of its kinds do not count.
    """
    hints = typing.get_type_hints(Config, include_extras=True)
    for section, hint in hints.items():
        members = [m for m in _members(hint) if _is_component(m)]
        if section == within and len(members) > 1:
            continue
        names = {f.name for m in members for f in dataclasses.fields(m)}
        if key in names:
            return f"{section}.{key}"
    return None


def _walk(loc: Sequence[str | int], root: Any) -> tuple[list[str], Any]:
    """The keys of an error's location without pydantic's union tags, and the last dataclass."""
    kind = root
    owner: Any = None
    keys: list[str] = []
    for part in loc:
        members = _members(kind)
        tagged = [m for m in members if _tag(m) == part]
        if len(members) > 1 and tagged:  # pydantic names the chosen union member in between
            kind = tagged[0]
            continue
        keys.append(str(part))
        if isinstance(part, int):
            kind = next((get_args(m)[0] for m in members if get_args(m)), None)
            continue
        if named := [m for m in members if get_origin(m) is Mapping]:
            kind = get_args(named[0])[1]
            continue
        owner = next((m for m in members if _is_component(m)), None)
        hints = typing.get_type_hints(owner, include_extras=True) if owner else {}
        kind = hints.get(str(part))
    return keys, owner


def _members(kind: Any) -> list[Any]:
    if get_origin(kind) is Annotated:
        kind = get_args(kind)[0]
    if get_origin(kind) not in (Union, types.UnionType):
        return [kind]
    members: list[Any] = []
    for member in get_args(kind):
        nested = get_origin(member) is Annotated and not _tags(member)
        members += _members(member) if nested else [member]
    return [m for m in members if m is not type(None)]


def _is_component(member: Any) -> bool:
    return isinstance(member, type) and issubclass(member, Component)


def _tag(member: Any) -> Any:
    if tags := _tags(member):
        return tags[0]
    return getattr(member, "kind", None) if _is_component(member) else None


def _tags(member: Any) -> list[str]:
    return [m.tag for m in getattr(member, "__metadata__", ()) if isinstance(m, Tag)]


def _nearest(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else ""
