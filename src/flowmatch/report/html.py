"""HTML by construction: whatever is not markup already is escaped."""

from __future__ import annotations

import html
from collections.abc import Sequence

_EMPTY = frozenset({"img", "meta", "link", "br", "hr"})


class Markup(str):
    """Text that is HTML already; a bare `str` is data, and is escaped where it meets markup."""

    __slots__ = ()


def element(name: str, /, *children: str, **attributes: str | float | None) -> Markup:
    """An HTML or SVG element.

    Args:
        name: the tag.
        children: what stands inside, in order; a `str` that is no `Markup` is escaped.
        attributes: by name, `_` standing for `-` and a last `_` dropped (`class_`); numbers are
            rounded to hundredths, and None leaves an attribute out.
    """
    words = [name]
    for key, value in attributes.items():
        if value is not None:
            text = value if isinstance(value, str) else f"{value:.2f}".rstrip("0").rstrip(".")
            words.append(f'{key.rstrip("_").replace("_", "-")}="{html.escape(text)}"')
    start = f"<{' '.join(words)}>"
    if name in _EMPTY:
        assert not children
        return Markup(start)
    return Markup(f"{start}{join(*children)}</{name}>")


def join(*parts: str) -> Markup:
    """Parts in a row, each escaped unless it is markup."""
    return Markup(
        "".join(p if isinstance(p, Markup) else html.escape(p, quote=False) for p in parts)
    )


def paragraph(*children: str, class_: str | None = None) -> Markup:
    """One paragraph."""
    return element("p", *children, class_=class_)


def missing(what: str, command: str, rest: str = ".") -> Markup:
    """The sentence in place of a part whose input is not there.

    Args:
        what: ends in the words before the command, e.g. "No samples; draw some with".
        command: what would fill the part.
        rest: ends the sentence.
    """
    return paragraph(what, " ", element("code", command), rest, class_="missing")


def table(
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    label: str,
    marked: Sequence[int] = (),
) -> Markup:
    """A table that scrolls inside its box where it is too wide; the first column names the row.

    Args:
        head: column headings; may be empty.
        rows: cells, each row as long as `head` if there is one.
        label: what the table holds, for those who hear the page.
        marked: rows that are set apart, e.g. anchors among results.
    """
    body = [
        element(
            "tr",
            element("th", cells[0], scope="row"),
            *(element("td", cell) for cell in cells[1:]),
            class_="marked" if i in marked else None,
        )
        for i, cells in enumerate(rows)
    ]
    top = element("tr", *(element("th", cell, scope="col") for cell in head))
    inside = element("table", *([element("thead", top)] if head else []), element("tbody", *body))
    return element("div", inside, class_="scroll", role="region", aria_label=label, tabindex="0")


def figure(picture: Markup, *caption: str) -> Markup:
    """A picture or chart with the words that say how to read it."""
    return element("figure", picture, element("figcaption", *caption))


def section(title: str, *content: str, name: str) -> Markup:
    """A section of the page under its heading."""
    heading = element("h2", title, id=f"{name}-title")
    return element("section", heading, *content, id=name, aria_labelledby=f"{name}-title")
