"""What the command line of the field's repositories allows and Typer does not."""

from __future__ import annotations

import re

_RESUME = ("-r", "--resume")
_SOLVER = re.compile(r"[a-z][a-z0-9_]*:\d+(,\d+)*|bosh3|dopri5|dopri8|auto(:\d+(,\d+)*)?")


def normalise(arguments: list[str]) -> list[str]:
    """Rewrite three habits into what the parser knows.

    `--resume` may stand alone (then it means `latest`); `--key.path value` is an override and
    becomes `key.path=value`; `--solvers` takes every solver that follows it.
    """
    out: list[str] = []
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        following = rest[0] if rest else None
        if word in _RESUME and (following is None or following.startswith("-") or "=" in following):
            out += [word, "latest"]
        elif word == "--solvers":
            out += [word, *rest[:1]]
            rest = rest[1:]
            while rest and _SOLVER.fullmatch(rest[0]):
                out += [word, rest.pop(0)]
        elif word.startswith("--") and "." in word.partition("=")[0]:
            key, sign, value = word[2:].partition("=")
            if not sign and following is not None:
                value = rest.pop(0)
            out.append(f"{key}={value}")
        else:
            out.append(word)
    return out
