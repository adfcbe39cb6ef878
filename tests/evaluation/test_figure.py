"""Figures: the same bytes each time, in our look alone, and nothing left behind."""

import re
import sys
from xml.etree import ElementTree

import matplotlib
import pytest

from consist.errors import ConsistError
from consist.evaluation.report.figure import blank, installed, mark, to_svg


def draw():
    with blank(100, 80) as figure:
        axes = figure.add_subplot()
        axes.set_title("cats & $dogs$ < 3")
        for place in range(3):
            mark(axes.plot(place, place, "o")[0], "point", f'"{place}" <&>')
        return to_svg(figure, 'a "label" & more')


@pytest.mark.slow
def test_a_figure_is_the_same_each_time_and_says_no_date():
    assert draw() == draw()
    assert "metadata" not in draw()
    assert "cats &amp; $dogs$ &lt; 3" in draw()
    assert 'aria-label="a &quot;label&quot; &amp; more"' in draw()


def test_words_are_shown_where_the_mouse_is():
    words = re.findall(r'<g class="point"><title>(.*?)</title>', draw())
    assert words == [f"&quot;{place}&quot; &lt;&amp;&gt;" for place in range(3)]
    ElementTree.fromstring(draw())


def test_a_user_s_own_settings_neither_matter_nor_change():
    plain = draw()
    with matplotlib.rc_context({"font.size": 30, "svg.fonttype": "path", "axes.grid": False}):
        before = dict(matplotlib.rcParams)
        assert draw() == plain
        assert dict(matplotlib.rcParams) == before


def test_without_matplotlib_one_sentence_says_what_to_do(monkeypatch):
    assert installed()
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert not installed()
    with pytest.raises(ConsistError, match=r"matplotlib: pip install 'consist\[study\]'"):
        draw()
