"""What the command line of the field's repositories allows and Typer does not."""

from __future__ import annotations

_RESUME = ("-r", "--resume")


def normalise(arguments: list[str]) -> list[str]:
    """Rewrite two habits into what the parser knows.

    `--resume` may stand alone (then it means `latest`); `--key.path value` is an override and
    becomes `key.path=value`.
    """
    out: list[str] = []
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        following = rest[0] if rest else None
        if word in _RESUME and (following is None or following.startswith("-") or "=" in following):
            out += [word, "latest"]
        elif word.startswith("--") and "." in word.partition("=")[0]:
            key, sign, value = word[2:].partition("=")
            if not sign and following is not None:
                value = rest.pop(0)
            out.append(f"{key}={value}")
        else:
            out.append(word)
    return out
