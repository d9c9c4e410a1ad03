"""Whatever is data is escaped; whatever is built is well formed."""

from flowmatch.report.html import Markup, element, join, missing, table


def test_data_are_escaped_wherever_they_stand():
    evil = "</b><script>alert('1' & \"2\")</script>"
    assert element("b", evil) == (
        "<b>&lt;/b&gt;&lt;script&gt;alert('1' &amp; \"2\")&lt;/script&gt;</b>"
    )
    assert element("img", alt=evil) == (
        '<img alt="&lt;/b&gt;&lt;script&gt;alert(&#x27;1&#x27; &amp; &quot;2&quot;)'
        '&lt;/script&gt;">'
    )
    assert "<script" not in table([evil], [[evil, evil]], label=evil) + missing(evil, evil)


def test_markup_is_not_escaped_twice():
    inner = element("code", "a < b")
    assert join("x & ", inner) == "x &amp; <code>a &lt; b</code>"
    assert isinstance(join(inner), Markup)


def test_attributes():
    svg = element("line", x1=1.5, y1=2.0, stroke_width=0.123, class_="axis", id=None)
    assert svg == '<line x1="1.5" y1="2" stroke-width="0.12" class="axis"></line>'


def test_a_table_marks_rows_and_can_do_without_a_head():
    assert "<thead>" not in table([], [["a", "b"]], label="x")
    marked = table(["n", "v"], [["a", "1"], ["b", "2"]], label="x", marked=[1])
    assert '<tr class="marked"><th scope="row">b</th><td>2</td></tr>' in marked
    assert marked.count("marked") == 1
