"""The picture of a counterexample: valid, the same each time, and legible."""
import re
from dataclasses import replace
from itertools import combinations
from xml.etree import ElementTree

import pytest

from oracle.counterexample import Scene
from oracle.picture import BROKEN, CHANGED, LETTER, columns, place, svg
from tests.oracle import samples

SVG = "{http://www.w3.org/2000/svg}"


every_sample = pytest.mark.parametrize("sample", samples.ALL, ids=lambda sample: sample.__name__)


def boxes(picture):
    """The corners of the boxes: left, top, right, bottom."""
    found = [element for element in ElementTree.fromstring(picture).iter(f"{SVG}rect") if element.get("rx")]
    return [(x, y, x + w, y + h) for x, y, w, h in (tuple(float(e.get(name)) for name in ("x", "y", "width", "height"))
                                                    for e in found)]


def points(path):
    """Points along a path of M, H, V, L and C."""
    x = y = 0.0
    for command, numbers in re.findall(r"([MHVC])([^MHVC]*)", path):
        n = [float(each) for each in re.findall(r"-?[\d.]+", numbers)]
        if command == "C":
            x0, y0 = x, y
            for t in (k / 40 for k in range(41)):
                yield tuple((1 - t) ** 3 * a + 3 * t * (1 - t) ** 2 * b + 3 * t * t * (1 - t) * c + t ** 3 * d
                            for a, b, c, d in ((x0, n[0], n[2], n[4]), (y0, n[1], n[3], n[5])))
            x, y = n[4], n[5]
            continue
        to = {"M": tuple(n), "H": (n[0], y), "V": (x, n[0])}[command]
        if command != "M":
            yield from ((x + (to[0] - x) * k / 200, y + (to[1] - y) * k / 200) for k in range(201))
        x, y = to


@every_sample
def test_it_is_valid_and_says_what_it_shows(sample):
    root = ElementTree.fromstring(svg(sample()))
    assert root.tag == f"{SVG}svg"
    assert "breaks" in root.find(f"{SVG}title").text
    assert "Broken: " in root.find(f"{SVG}desc").text


@every_sample
def test_it_is_the_same_each_time(sample):
    assert svg(sample()) == svg(sample())


@every_sample
def test_no_box_covers_another_and_all_lie_within(sample):
    picture = svg(sample())
    root = ElementTree.fromstring(picture)
    for a, b in combinations(boxes(picture), 2):
        assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]
    for _, _, right, bottom in boxes(picture):
        assert right < float(root.get("width"))
        assert bottom < float(root.get("height"))


@every_sample
def test_every_line_fits_its_box(sample):
    drawn = columns(Scene(sample()))
    place(drawn, 0)
    for box in (box for column in drawn for box in column):
        assert all(LETTER * len(line.text) < box.width for line in box.lines)


@every_sample
def test_no_arrow_runs_over_a_box(sample):
    picture = svg(sample())
    paths = [p.get("d") for p in ElementTree.fromstring(picture).iter(f"{SVG}path") if p.get("marker-end")]
    assert paths
    for path in paths:
        for x, y in points(path):
            assert not any(left + 1 < x < right - 1 and top + 1 < y < bottom - 1 for left, top, right, bottom in boxes(picture))


def test_what_changed_is_in_a_colour_of_its_own_and_the_broken_entry_is_outlined():
    root = ElementTree.fromstring(svg(samples.self_mapping_table()))
    changed = {element.text for element in root.iter(f"{SVG}text") if element.get("fill") == CHANGED}
    assert changed == {"now: 1 in flight", "[8] frame 2 P US A ⇒ frame 4 P RW US A", "no longer: 1 typed in flight"}
    assert [rect for rect in root.iter(f"{SVG}rect") if rect.get("stroke") == BROKEN and not rect.get("rx")]


def test_the_frame_where_an_invariant_breaks_is_outlined():
    root = ElementTree.fromstring(svg(samples.linear_chain()))
    assert [rect for rect in root.iter(f"{SVG}rect") if rect.get("stroke") == BROKEN and rect.get("rx")]


def test_text_with_xmls_own_characters_stays_valid():
    c = replace(samples.linear_chain(), note="a < b & c > \"d\"")
    assert 'a < b & c > "d"' in ElementTree.fromstring(svg(c)).find(f"{SVG}desc").text
