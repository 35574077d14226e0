"""What a report holds: results, JSON, Markdown, terminal, pictures; everything from outside stands there as text."""

import dataclasses
import io
import json
import math
import re

import numpy as np
import pytest
from rich.console import Console

from q_hawkeye_trl.evaluation.public_sets import distortion_of, get_preset
from q_hawkeye_trl.evaluation.results import as_json, evaluate_sets
from q_hawkeye_trl.files import write_json
from q_hawkeye_trl.report.plots import as_data_uri, residuals, risk, scatter
from q_hawkeye_trl.report.sections import markdown_report, print_report, summary_table, verdict
from q_hawkeye_trl.wording import escape
from test_figures import table_of

NAN = math.nan
FAST = {"draws": 20, "seed": 0}
MARKUP = '<script>document.title="owned"</script>[bold red]x[/] | `a` \x1b[31m'


def rated(name="set", count=60, seed=0, **columns):
    rng = np.random.default_rng(seed)
    mos = rng.uniform(1, 5, size=count)
    scores = np.clip(mos + 0.4 * rng.normal(size=count), 1, 5)
    scores[:3] = NAN
    spread = np.where(np.isnan(scores), NAN, rng.uniform(0.1, 1, size=count))
    table = dataclasses.replace(table_of(scores, mos, spread=spread), name=name)
    return dataclasses.replace(table, **columns)


def printed(results, preset=None) -> str:
    stream = io.StringIO()
    print_report(results, Console(file=stream, width=140, force_terminal=False), preset)
    return stream.getvalue()


def test_json_has_the_named_keys_of_every_set(tmp_path):
    results = evaluate_sets([rated("koniq10k"), rated("mine", seed=1)], published=True, **FAST)
    write_json(tmp_path / "out.json", as_json(results))
    content = json.loads((tmp_path / "out.json").read_text())
    assert list(content) == ["koniq10k", "mine"]
    for figures in content.values():
        for name in ("plcc", "plcc_fitted", "srcc", "krcc"):
            assert figures[f"{name}_low"] < figures[name] < figures[f"{name}_high"]
        assert {"rmse", "mae", "coverage"} <= figures.keys()
        assert figures["coverage"] == 0.95
        assert figures["with_failures"]["plcc"] < figures["plcc"]
    quoted = content["koniq10k"]["published"]
    assert {"model": "DeQA-Score", "plcc": 0.953, "srcc": 0.941}.items() <= quoted[1].items()
    assert all(row["quoted"] is True and row["source"] for row in quoted)
    assert content["mine"]["published"] == []


def test_undefined_figures_are_null(tmp_path):
    results = evaluate_sets([table_of([3.0] * 5, [1, 2, 3, 4, 5])], **FAST)
    write_json(tmp_path / "out.json", as_json(results))
    figures = json.loads((tmp_path / "out.json").read_text())["set"]
    assert figures["plcc"] is figures["plcc_low"] is figures["srcc_high"] is None
    assert "–" in markdown_report(results, title="x")
    assert "–" in printed(results)


def test_quoted_rows_are_marked_and_only_there_on_wish():
    plain = evaluate_sets([rated("koniq10k")], **FAST)
    with_rows = evaluate_sets([rated("koniq10k")], published=True, **FAST)
    for show in (printed, lambda results: markdown_report(results, title="x")):
        assert "DeQA-Score" not in show(plain)
        text = show(with_rows)
        assert text.index("uoted, not measured here") < text.index("DeQA-Score")
        assert "arXiv 2501.11561" in text


def test_a_protocol_sets_labels_and_names_departures():
    table = rated("koniq10k", mos_raw=np.exp(rated().mos))
    (result,) = evaluate_sets([table], preset=get_preset("deqa"), **FAST)
    assert result.figures["target"] == "mos_raw"
    assert "deqa measures koniq10k on 2010 images, these are 60" in result.warnings[0]
    assert "PLCC, fitted (as deqa)" in printed([result], get_preset("deqa"))
    (result,) = evaluate_sets([rated("koniq10k")], preset=get_preset("deqa"), **FAST)
    assert result.figures["target"] == "mos"
    assert any("mos_raw" in warning for warning in result.warnings)
    assert "arXiv 2501.11561" in markdown_report([result], title="x", preset=get_preset("deqa"))


def test_warnings():
    (result,) = evaluate_sets([rated(out_of_range=2, group=tuple(str(i // 5) for i in range(60)))], **FAST)
    text = " ".join(result.warnings)
    assert "5.0% of the images have no score" in text
    assert "outside the scale: 2" in text
    (result,) = evaluate_sets([rated(group=("r",) * 60, spread=np.full(60, 0.1))], **FAST)
    assert "SRCC of spread and absolute error –; 0.00 – of the possible gain" in " ".join(printed([result]).split())
    assert "no intervals" in " ".join(result.warnings)
    assert "too narrow" not in " ".join(result.warnings)
    assert "over 1 reference, " in markdown_report([result], title="t")
    assert "12 references" in text
    mos = np.linspace(1.5, 4.5, 30)
    (result,) = evaluate_sets([table_of(6 - mos, mos)], **FAST)
    assert result.warnings == ["The fitted curve falls: higher scores go with lower MOS, which the fitted PLCC hides."]


def test_breakdowns_and_worst_cases():
    kinds = tuple(("blur", "noise")[i % 2] for i in range(60))
    table = rated(distortion=kinds, group=tuple(f"r{i % 6}" for i in range(60)))
    (result,) = evaluate_sets([table], **FAST)
    assert list(result.by_distortion) == ["blur", "noise"]
    assert len(result.by_group) == 6
    worst = result.worst(5)
    errors = [abs((3 if math.isnan(s) else s) - m) for s, m in zip(table.score, table.mos, strict=True)]
    assert [errors[row] for row in worst] == pytest.approx(sorted(errors, reverse=True)[:5])
    (by_name,) = evaluate_sets([dataclasses.replace(rated("kadid10k", 4), image_id=tuple(_KADID))], **FAST)
    assert list(by_name.by_distortion) == ["", "Gaussian blur", "contrast change"]


_KADID = ("I01_01_01.png", "I02_01_05.png", "I02_25_05.png", "other.png")


@pytest.mark.parametrize(
    ("dataset", "name", "kind"),
    [
        ("kadid10k", "images/I81_10_03.png", "JPEG"),
        ("tid2013", "i03_08_5.bmp", "Gaussian blur"),
        ("csiq", "dst_imgs/awgn/1600.AWGN.1.png", "AWGN"),
        ("pipal", "A0001_02_11.bmp", "type 02"),
        ("kadid10k", "I81_99_03.png", "type 99"),
        ("koniq10k", "I81_10_03.png", ""),
        ("csiq", "1600.png", ""),
    ],
)
def test_kinds_of_distortion_are_read_off_names(dataset, name, kind):
    assert distortion_of(dataset, name) == kind


def test_comparison():
    first, second = rated(seed=0), dataclasses.replace(rated(seed=0), score=np.clip(6 - rated(seed=0).mos, 1, 5))
    (result,) = evaluate_sets([first], others=[second], other_name="old", **FAST)
    assert result.comparison["srcc"] > 1
    for text in (printed([result]), markdown_report([result], title="x")):
        assert "Compared with old" in text
        assert "better" in text
    with pytest.raises(ValueError, match=r"old has no scores of b \(it has set\)"):
        evaluate_sets([first, dataclasses.replace(first, name="b")], others=[second], other_name="old", **FAST)


def test_two_sets_of_one_name_are_refused():
    with pytest.raises(ValueError, match="Two sets are named set"):
        evaluate_sets([rated(), rated()], **FAST)


def test_names_from_outside_stay_text():
    table = rated(MARKUP, distortion=(MARKUP,) * 60, group=(*(["a"] * 30), *([MARKUP] * 30)))
    results = evaluate_sets([table], others=[rated(MARKUP, group=table.group)], other_name=MARKUP, **FAST)
    text = printed(results)
    assert "[bold red]" in text
    assert "\x1b" not in text
    report = markdown_report(results, title=MARKUP)
    assert "<script" not in report
    assert "\x1b" not in report
    assert not re.search(r"(?<!\\)`a", report)
    cells = [line for line in report.splitlines() if line.startswith("| ") and "bold" in line]
    assert cells
    assert all(len(re.findall(r"(?<!\\)\|", line)) in (8, 10) for line in cells)


def test_escaping():
    assert escape("a|b_c*d\n<e>&") == r"a\|b\_c\*d &lt;e&gt;&amp;"


def test_summary_has_a_row_a_set():
    table = summary_table(evaluate_sets([rated("a"), rated("b", seed=1)], **FAST))
    assert [line.split(" | ")[0] for line in table.splitlines()] == ["| set", "| ---", "| a", "| b"]


def test_pictures_are_deterministic_svg():
    (result,) = evaluate_sets([rated()], **FAST)
    for draw in (scatter, residuals, risk):
        svg = draw(result)
        assert svg == draw(result)
        assert svg.count("<use") > 3
        assert "<script" not in svg
        assert as_data_uri(svg).startswith("data:image/svg+xml;base64,")
    with pytest.raises(ValueError, match="no spread"):
        risk(evaluate_sets([dataclasses.replace(rated(), spread=None)], **FAST)[0])


def test_many_points_do_not_make_a_large_picture():
    (few,), (many,) = (evaluate_sets([rated(count=count)], draws=2) for count in (1500, 30000))
    assert len(scatter(many)) < 2 * len(scatter(few))


@pytest.mark.parametrize(
    ("ends", "correlation", "error"), [((0.1, 0.2), "better", "worse"), ((-2, -1), "worse", "better")]
)
def test_a_higher_correlation_and_a_lower_error_are_better(ends, correlation, error):
    for name in ("plcc", "plcc_fitted", "srcc", "krcc", "rmse", "mae"):
        figures = {f"{name}_low": ends[0], f"{name}_high": ends[1]}
        assert verdict(figures, name) == (error if name in ("rmse", "mae") else correlation)
    for low, high in ((-0.1, 0.1), (0.0, 0.1), (math.nan, math.nan)):
        assert verdict({"mae_low": low, "mae_high": high}, "mae") == "no difference shown"
