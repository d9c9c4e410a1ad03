"""What is wrong with a config, in one sentence for each mistake."""

from __future__ import annotations

import dataclasses
import difflib
import re
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import Tag, ValidationError

from flowmatch.component import Component
from flowmatch.paths import Prediction


def explain_all(error: ValidationError, root: Any) -> str:
    """Every mistake that pydantic found, one a line.

    Args:
        error: what it found.
        root: the type that was read: the dataclass of a whole config, or a union for a part of one.
    """
    mistakes = [_explain(e, root) for e in error.errors(include_url=False)]
    if len(mistakes) == 1:
        return mistakes[0]
    return "\n".join([f"{len(mistakes)} mistakes", *(f"  {m}" for m in mistakes)])


def _explain(error: Mapping[str, Any], root: Any) -> str:
    """One mistake in one sentence: the key, what came, what is known."""
    loc, kind, context = list(error["loc"]), error["type"], error.get("ctx", {})
    keys, owner = walk(loc, root)
    came = error.get("input")
    if kind == "unexpected_keyword_argument":
        known = [f.name for f in dataclasses.fields(owner)] if owner is not None else []
        name, place = ".".join(keys), _place(keys[-1], root, within=keys[0])
        misplaced = place is not None and place != name
        hint = f"; it belongs to {place}" if misplaced else nearest(keys[-1], known)
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
        return f"{name}.kind: unknown kind {tag!r}{nearest(tag, known)}; known: {', '.join(known)}"
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
            f"{name}: unknown name {came!r}{nearest(str(came), known)}; known: {', '.join(known)}"
        )
    message = error["msg"][0].lower() + error["msg"][1:]
    return f"{name}: {message}, got {came!r}"


def _place(key: str, root: Any, *, within: str) -> str | None:
    """Where a key stands that was looked for elsewhere: the section of a config that has it.

    The kind of the section that it was looked for in does not, so others of its kinds do not count.
    """
    hints = typing.get_type_hints(root, include_extras=True) if _is_component(root) else {}
    for section, hint in hints.items():
        members = [m for m in _members(hint) if _is_component(m)]
        if section == within and len(members) > 1:
            continue
        names = {f.name for m in members for f in dataclasses.fields(m)}
        if key in names:
            return f"{section}.{key}"
    return None


def walk(loc: Sequence[str | int], root: Any) -> tuple[list[str], Any]:
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


def nearest(name: str, known: Sequence[str]) -> str:
    """A hint at the known name that comes closest, if one does."""
    close = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else ""
