"""Results, JSON, Markdown, terminal and plots of a report; names from outside are shown literally."""

import dataclasses
import io
import json
import math
import re

import numpy as np
import pytest
from rich.console import Console

from q_hawkeye_trl.evaluation.public_sets import get_preset
from q_hawkeye_trl.evaluation.results import as_json, evaluate_sets
from q_hawkeye_trl.io.atomic import write_json
from q_hawkeye_trl.report.plots import as_data_uri, residuals, risk, scatter
from q_hawkeye_trl.report.sections import markdown_report, print_report, summary_table, verdict
from q_hawkeye_trl.wording import DASH, escape
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


FORMS = pytest.mark.parametrize("show", [printed, lambda results: markdown_report(results, title="x")])


def json_of(results, path) -> dict:
    write_json(path, as_json(results))
    return json.loads(path.read_text())


def test_json_has_the_named_keys_of_every_set(tmp_path):
    results = evaluate_sets([rated("koniq10k"), rated("mine", seed=1)], published=True, **FAST)
    content = json_of(results, tmp_path / "out.json")
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


def test_undefined_figures_are_null_and_dashes(tmp_path):
    results = evaluate_sets([table_of([3.0] * 5, [1, 2, 3, 4, 5])], **FAST)
    figures = json_of(results, tmp_path / "out.json")["set"]
    assert figures["plcc"] is figures["plcc_low"] is figures["srcc_high"] is None
    assert DASH in markdown_report(results, title="x")
    assert DASH in printed(results)


@FORMS
def test_quoted_rows_are_marked_and_only_there_on_request(show):
    plain, quoting = (evaluate_sets([rated("koniq10k")], published=on, **FAST) for on in (False, True))
    assert "DeQA-Score" not in show(plain)
    text = show(quoting)
    assert text.index("Quoted") < text.index("DeQA-Score")
    assert "arXiv 2501.11561" in text


def test_a_protocol_sets_labels_and_reports_departures():
    deqa = get_preset("deqa")
    raw, plain = (
        evaluate_sets([rated("koniq10k", mos_raw=labels)], preset=deqa, **FAST)[0]
        for labels in (np.exp(rated().mos), None)
    )
    assert (raw.figures["target"], plain.figures["target"]) == ("mos_raw", "mos")
    assert all(word in raw.warnings[0] for word in ("deqa", "koniq10k", "2010", "60"))
    assert any("mos_raw" in warning for warning in plain.warnings)
    assert "PLCC, fitted (as deqa)" in printed([raw], deqa)
    assert "arXiv 2501.11561" in markdown_report([raw], title="x", preset=deqa)


def warnings_of(table) -> str:
    (result,) = evaluate_sets([table], **FAST)
    return " ".join(result.warnings)


def test_warnings():
    text = warnings_of(rated(out_of_range=2, group=tuple(str(i // 5) for i in range(60))))
    assert all(part in text for part in ("5.0% of the images", "outside the scale: 2", "12 references"))
    one_group = rated(group=("r",) * 60, spread=np.full(60, 0.1))
    assert "one reference" in warnings_of(one_group)
    assert "too narrow" not in warnings_of(one_group)
    (result,) = evaluate_sets([one_group], **FAST)
    assert f"error {DASH}; 0.00 {DASH}" in " ".join(printed([result]).split())
    assert "over 1 reference, " in markdown_report([result], title="t")
    mos = np.linspace(1.5, 4.5, 30)
    assert "curve falls" in warnings_of(table_of(6 - mos, mos))


def test_breakdowns_and_worst_cases():
    kinds = tuple(("blur", "noise")[i % 2] for i in range(60))
    table = rated(distortion=kinds, group=tuple(f"r{i % 6}" for i in range(60)))
    (result,) = evaluate_sets([table], **FAST)
    assert list(result.by_distortion) == ["blur", "noise"]
    assert len(result.by_group) == 6
    errors = [abs((3 if math.isnan(s) else s) - m) for s, m in zip(table.score, table.mos, strict=True)]
    assert [errors[row] for row in result.worst(5)] == pytest.approx(sorted(errors, reverse=True)[:5])
    (by_name,) = evaluate_sets([dataclasses.replace(rated("kadid10k", 4), image_id=_KADID)], **FAST)
    assert list(by_name.by_distortion) == ["", "Gaussian blur", "contrast change"]


_KADID = ("I01_01_01.png", "I02_01_05.png", "I02_25_05.png", "other.png")


@FORMS
def test_comparison(show):
    first, second = rated(seed=0), dataclasses.replace(rated(seed=0), score=np.clip(6 - rated(seed=0).mos, 1, 5))
    (result,) = evaluate_sets([first], others=[second], other_name="old", **FAST)
    assert result.comparison["srcc"] > 1
    text = show([result])
    assert "Compared with old" in text
    assert "better" in text


def test_sets_that_do_not_match_are_refused():
    with pytest.raises(ValueError, match=r"old .* b .*set"):
        evaluate_sets([rated(), rated("b")], others=[rated()], other_name="old", **FAST)
    with pytest.raises(ValueError, match=r"named set"):
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
