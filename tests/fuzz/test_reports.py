"""Reports of strangers under `ucgm compare`: a page that holds them as text, or one line."""

import copy
import json
import math
import shutil

import matplotlib.backends.backend_agg  # noqa: F401  its import takes seconds, which count
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.evaluation.test_report import data_of, report_of
from tests.fuzz.rules import right_or_one_line, state_of
from tests.fuzz.test_references import changes, damaged
from tests.fuzz.test_run_folders import TEXTS
from ucgm.evaluation.compare import compare_run

pytestmark = pytest.mark.filterwarnings("ignore")

NAMES = st.text(max_size=8) | st.sampled_from(
    [
        "",
        "__DATA__",
        "__TITLE__",
        "</script>",
        "<img src=x onerror=alert(1)>",
        "$x^$",
        "_a",
        "\ud800",
    ]
    + ["\x1b[2J", "a\x00b", "\r", "\u202ex", "犬", "fid", "a.fid", ".fid", "x" * 3000]
)
VALUES = st.one_of(
    NAMES,
    st.sampled_from([None, True, -1, 0, 1, 10**9, 10**30, 0.5, -1e13, 1e300, math.nan, math.inf]),
    st.sampled_from([[], {}, [1], [None], {"fid": 1.0}, {"scores": {}}, [[]], {"a": {"b": []}}]),
)


def places(value, path=()):
    """The paths of all values in a tree."""
    yield path
    if isinstance(value, dict | list):
        items = list(value.items() if isinstance(value, dict) else enumerate(value))
    else:
        items = []
    for key, inner in items:
        yield from places(inner, (*path, key))


def changed(draw, report):
    """A report with a few values replaced, dropped, added, or doubled."""
    for _ in range(changes(draw)):
        *path, last = draw(st.sampled_from(list(places(report))[1:]))
        place = report
        for key in path:
            place = place[key]
        change = draw(st.sampled_from(["value", "value", "drop", "add", "double"]))
        if change == "value":
            place[last] = copy.deepcopy(draw(VALUES))
        elif change == "drop" and len(place) > 1:
            del place[last]
        elif isinstance(place, list):
            place.append(copy.deepcopy(draw(VALUES)) if change == "add" else place[last])
        else:
            place[draw(NAMES)] = copy.deepcopy(draw(VALUES)) if change == "add" else place[last]
    return report


@given(data=st.data())
def test_a_report_becomes_a_page_or_one_line(tmp_path_factory, data):
    draw, folder = data.draw, tmp_path_factory.mktemp("reports")
    metrics = draw(st.sampled_from([("fid",), ("fid", "recall"), ("x.fid", "fid_heldout")]))
    source = folder / "source"
    for name in ("a", "b"):
        report = report_of({1: 3.0, 2: draw(st.floats(-1e3, 1e6)), 4: 0.5}, name, metrics)
        report["references"] *= 2
        for extra in {m.rpartition(".")[0] for m in metrics} - {""}:
            report["references"].append({**report["references"][0], "extractor": extra})
            report["protocol"]["more_extractors"] = [{"name": extra, "sha256": "1"}]
        (source / name).mkdir(parents=True)
        text = json.dumps(changed(draw, report)).encode()
        text = damaged(draw, text)
        (source / name / "benchmark.json").write_bytes(text)
        if draw(st.booleans()):
            (source / name / "strip.png").write_bytes(draw(TEXTS))
    before = state_of(source)
    with right_or_one_line():
        metric = draw(st.sampled_from([*metrics, *metrics, *metrics, "x"]))
        page = compare_run([str(source / "a"), str(source / "b")], str(folder / "out"), metric)
        text = page.read_text()
        assert text.count("</script>") == 2 and "<img src=x" not in text
        assert len(data_of(page)["runs"]) == 2
    assert state_of(source) == before
    shutil.rmtree(folder)
