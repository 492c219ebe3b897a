"""The picture of several encoders in a report, and the sentence above it."""

import re

import pytest

from tests.evaluation.test_report import data_of, report_of
from ucgm.evaluation.report.figures import save_encoders
from ucgm.evaluation.report.page import page
from ucgm.evaluation.report.tables import encoders, encoders_sentence, markdown

STEPS = (1, 4, 16)
LONG = "an_encoder_with_a_name_of_40_characters_"


def report(values, known=()):
    """A report of FDr of encoders, {name: [value at each of STEPS]}."""
    first, *more = values
    metrics = ["fdr", *(f"{name}.fdr" for name in more), "fdr_mean"]
    found = report_of(dict.fromkeys(STEPS, 0.0), metrics=metrics)
    for row, scores in zip(found["rows"], zip(*values.values(), strict=True), strict=True):
        mean = sum(scores) / len(scores)
        row["scores"] = dict(zip(metrics, (*scores, mean), strict=True))
    protocol = found["protocol"]
    protocol["extractor"]["name"] = first
    protocol["more_extractors"] = [{"name": name, "sha256": name} for name in more]
    protocol["trained_on"] = [{"name": name, "sha256": name} for name in known]
    for one in (protocol["extractor"], *protocol["more_extractors"]):
        one["note"] = ""
    protocol |= {
        "guidance": {"scale": 1.0, "interval": [0, 1]},
        "sampler": {},
        "classes": None,
        "num_classes": 0,
        **dict.fromkeys(("seed", "weights", "precision", "tile", "uint8"), "x"),
        "training_step": 1,
        "weights_sha256": "0",
    }
    return found | {"strip": [], "references": [], "machine": {"device": "cpu"}}


@pytest.fixture
def drawn(monkeypatch, tmp_path):
    """Draws a report; gives the figure and what would be cut off."""
    from matplotlib.figure import Figure

    figures, whole = [], Figure.savefig

    def note(figure, *args, **kwargs):
        whole(figure, *args, **kwargs)
        figures.append(figure)

    monkeypatch.setattr(Figure, "savefig", note)

    def draw(result):
        save_encoders(result, tmp_path / "bars.png")
        figure = figures[-1]
        (axes,), (legend,) = figure.axes, figure.legends
        low, high = axes.get_xlim()  # ticks outside are there, but not drawn
        places = zip(axes.get_xticks(), axes.get_xticklabels(), strict=True)
        ticks = [text for place, text in places if low <= place <= high]
        ticks += axes.get_yticklabels()
        texts = [*axes.texts, *ticks, axes.xaxis.label, axes.title, *legend.texts]
        boxes = [text.get_window_extent() for text in texts if text.get_text()]
        inside = figure.bbox.padded(1)
        return axes, [b for b in boxes if not (inside.contains(*b.min) and inside.contains(*b.max))]

    return draw


def test_the_sentence_names_the_best_steps_and_the_nearest_and_farthest_encoder():
    values = {"digits": [9.0, 1.5, 1.0], "clip": [3.0, 2.5, 4.0], "mae": [5.0, 2.0, 3.0]}
    assert encoders_sentence(report(values)) == (
        "4 steps are best over 3 encoders: FDr is 2.000 on average (real images: 1), nearest to "
        "real images by digits (1.500) and farthest by clip (2.500)."
    )
    values["clip"][0] = values["digits"][0] = values["mae"][0] = 0.5
    known = encoders_sentence(report(values, ("clip",)))
    assert known.startswith("1 step is best over 3 encoders: FDr is 0.500 † on average")
    assert "clip †" in encoders(report(values, ("clip",))) and "by digits (0.500)" in known


def test_one_encoder_has_no_picture(tmp_path):
    alone = report({"digits": [1.0, 2.0, 3.0]})
    alone["metrics"] = ["fdr"]
    assert encoders(alone) == {} and encoders_sentence(alone) == ""
    (tmp_path / "page.html").write_text(page({"a": alone}, [tmp_path], "fdr", tmp_path / "c", "a"))
    assert data_of(tmp_path / "page.html")["encoders"] is None


@pytest.mark.parametrize("largest", [3.0, 1800.0])
def test_a_bar_for_each_encoder_and_number_of_steps(drawn, largest):
    values = {"digits": [2.0, 1.0, 0.5], "clip": [largest, 2.0, 1.5], "$x^$": [1.9, 0.9, 0.4]}
    axes, cut_off = drawn(report(values, ("clip",)))
    assert cut_off == []
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names == ["digits", "clip †", r"\$x^\$"]
    wide = largest > 10
    assert axes.get_xscale() == ("log" if wide else "linear")
    for i, bars in enumerate(axes.containers):
        ends = [bar.get_x() + bar.get_width() for bar in bars]
        assert ends == pytest.approx([row[i] for row in values.values()])
        assert all(bar.get_x() == (1.0 if wide else 0.0) for bar in bars)
        centres = [bar.get_y() + bar.get_height() / 2 for bar in bars]
        assert [round(centre) for centre in centres] == [0, 1, 2]  # beside their encoder
    (line,) = axes.lines
    assert set(line.get_xdata()) == {1.0}
    ticks = [label.get_text() for label in axes.get_xticklabels(which="both")]
    assert all(re.fullmatch(r"[\d.]*", text) for text in ticks) and "1" in ticks
    assert axes.yaxis_inverted()  # the first encoder on top
    texts = {text.get_text() for text in axes.texts}
    assert {"0.50", "1,800" if wide else "3.00"} <= texts


def test_long_names_and_scores_below_zero_are_drawn(drawn):
    axes, cut_off = drawn(report({LONG: [1.0, -0.1, 0.5], "clip": [900.0, 2.0, 1.5]}))
    assert cut_off == [] and axes.get_xscale() == "linear"


def test_markdown_shows_the_sentence_above_the_picture():
    values = {"digits": [9.0, 1.5, 1.0], "clip": [3.0, 2.5, 4.0]}
    found = report(values)
    text = markdown(found)
    assert f"{encoders_sentence(found)}\n\n![FDr of each encoder](encoders.png)" in text


def test_fewer_held_out_images_than_samples_are_said_to_flatter():
    found = report({"a": [1, 1, 1], "b": [1, 1, 1]})
    samples = found["protocol"]["num_samples"]
    for count, said in ((samples - 1, True), (samples, False), (None, False)):
        real = {"name": "test", "num_samples": count, "scores": {}}
        assert ("FDr comes out too low" in markdown(found | {"real": real})) is said
