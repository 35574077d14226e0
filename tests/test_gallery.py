"""The page of scored images: what it holds, how it sorts, and that nothing hostile runs in it (in a real Chromium)."""

import base64
import io
import re
from functools import partial

import pytest
from PIL import Image

from chromium import needs_chromium, opened
from q_hawkeye_trl.scoring.gallery import GalleryRow, thumbnail, write_gallery
from q_hawkeye_trl.scoring.scored import ScoredImage, score_answers

HOSTILE = (
    "<script>document.title = 'pwned'</script>",
    "<img src=x onerror=\"document.title='pwned'; alert(1)\">",
    '"><svg onload=alert(2)>',
    "'\" onmouseover=alert(3) x='",
    "</code></li></ol></td></tr></table><script>alert(4)</script>",
    "</style><script>alert(5)</script><style>body{display:none}",
    "javascript:alert(6)",
    "{{ 7 * 7 }}{% raw %}",
    "<iframe src=//example.invalid></iframe><link rel=stylesheet href=//example.invalid/x.css>",
    "<meta http-equiv=refresh content='0;url=//example.invalid'><base href=//example.invalid>",
    "\u202egnp.exe\u0000\ud800 <plaintext>",
)


def rollouts(*values) -> list[str]:
    return [f"<think>looks like {value}</think><answer>{value}</answer>" for value in values]


def rows() -> list[GalleryRow]:
    picture = partial(Image.new, "RGB", (640, 320), "teal")
    return [
        GalleryRow(score_answers("folder/b.png", rollouts("2.5", "3.5")), picture, {"MOS": 2.0}),
        GalleryRow(score_answers("folder/a10.png", rollouts("4.5", "4.7")), picture, {"MOS": None}),
        GalleryRow(score_answers("folder/a9.png", rollouts("nan", "1e308")), None, {"MOS": 10.0}),
        GalleryRow(score_answers("c.png", rollouts("9", "1")), lambda: None, {"MOS": 9.0}),
        GalleryRow(ScoredImage("d.png", error="d.png is not a readable image"), None, {"MOS": 1.5}),
    ]


def hostile_rows() -> list[GalleryRow]:
    scored = [score_answers(text, [f"<think>{text}</think><answer>3</answer>", text]) for text in HOSTILE]
    return [GalleryRow(image) for image in (*scored, *(ScoredImage(text, error=text) for text in HOSTILE))]


@pytest.mark.parametrize(("size", "expected"), [((800, 400), (160, 80)), ((20, 10), (20, 10))])
def test_thumbnails_are_small_jpegs_of_the_image(size, expected):
    image = Image.effect_mandelbrot(size, (-2, -1, 1, 1), 50).convert("RGB")
    uri, small_size = thumbnail(image)
    head, data = uri.split(",")
    assert (head, small_size) == ("data:image/jpeg;base64", expected)
    with Image.open(io.BytesIO(base64.b64decode(data))) as small:
        assert (small.size, small.format) == (expected, "JPEG")
    assert image.size == size


def test_the_page_is_one_file_that_names_nothing_outside(tmp_path):
    path = tmp_path / "page.html"
    write_gallery(path, rows(), title="T", extra_columns=["MOS"], extra_sections_html="<h2>Statistics</h2>")
    text = path.read_text("utf-8")
    assert [file.name for file in tmp_path.iterdir()] == ["page.html"]
    assert "<h2>Statistics</h2>" in text
    assert text.count("data:image/jpeg;base64,") == 2
    addresses = re.findall(r"(?:src|href|action)\s*=\s*[\"']?([^\"'\s>]+)", text)
    assert {address.partition(":")[0] for address in addresses} == {"data"}
    assert not re.search("https?://", text)


def test_hostile_text_is_escaped_in_the_file(tmp_path):
    path = tmp_path / "page.html"
    write_gallery(path, hostile_rows(), title=HOSTILE[0], facts={HOSTILE[1]: HOSTILE[2]})
    text = path.read_text("utf-8")
    assert text.count("<script>") == 1  # its own
    assert text.count("<style>") == 1
    assert not any(tag in text for tag in ("<iframe", "<link", "<base", "<plaintext", "<svg onload", "<img src=x"))
    assert text.count("<meta") == 3
    assert "{{ 7 * 7 }}" in text


def test_a_row_that_lacks_a_column_leaves_no_file(tmp_path):
    with pytest.raises(ValueError, match=r"Row 1 .*x.* MOS"):
        write_gallery(
            tmp_path / "page.html", [rows()[0], GalleryRow(ScoredImage("x"))], title="T", extra_columns=["MOS"]
        )
    assert not list(tmp_path.iterdir())


def test_rows_are_read_one_at_a_time(tmp_path):
    loaded = []

    def lazy():
        for number in range(20):
            assert loaded == list(range(number))  # the previous picture is loaded before the next row is read
            yield GalleryRow(ScoredImage(f"{number}"), lambda number=number: loaded.append(number))

    write_gallery(tmp_path / "page.html", lazy(), title="T")
    assert len(loaded) == 20


def shown(page) -> list[str]:
    names = page.locator("tbody tr:not([hidden]) td.name").all()
    return [name.get_attribute("data-key").rpartition("/")[2] for name in names]


@needs_chromium
def test_sorting_and_filtering(tmp_path):
    path = tmp_path / "page.html"
    write_gallery(path, rows(), title="Scores", extra_columns=["MOS"], facts={"model": "toy"})
    with opened(path, tmp_path / "profile") as seen:
        page = seen.page
        assert page.title() == "Scores"
        assert shown(page) == ["b.png", "a10.png", "a9.png", "c.png", "d.png"]
        assert page.locator("#shown").inner_text() == "5 images"
        press = lambda name: page.get_by_role("button", name=name, exact=True).click()  # noqa: E731
        press("Score")  # c.png has 9, clamped to 5, and 1: 3.0 like b.png, which was before it
        assert shown(page) == ["a10.png", "b.png", "c.png", "a9.png", "d.png"]
        assert page.locator("th[aria-sort]").get_attribute("aria-sort") == "descending"
        press("Score")
        assert shown(page) == ["b.png", "c.png", "a10.png", "a9.png", "d.png"]  # those without a score stay last
        press("Spread")
        assert shown(page)[:3] == ["c.png", "b.png", "a10.png"]
        press("MOS")
        assert shown(page) == ["a9.png", "c.png", "b.png", "d.png", "a10.png"]  # as numbers: 10 before 9
        press("Image")
        assert shown(page) == ["c.png", "d.png", "a9.png", "a10.png", "b.png"]  # a9 before a10
        page.locator("#filter").fill("LOOKS LIKE 4.")
        assert shown(page) == ["a10.png"]
        assert page.locator("#shown").inner_text() == "1 of 5 images"
        page.locator("#filter").fill("not a readable")
        assert shown(page) == ["d.png"]
        page.locator("#filter").fill("b.png")  # 2.5 and 3.5 on a strip from 4 (score 1) to 96 (score 5)
        strip = page.locator("tbody tr:not([hidden]) td.strip")
        assert strip.locator("path").get_attribute("d") == "M38.5 8h.01M61.5 8h.01"
        assert strip.locator("line.mean").get_attribute("x1") == "50.0"
        assert strip.locator("path").bounding_box()["width"] > 30
        assert page.locator("td.picture img").first.evaluate("image => image.naturalWidth") == 160
        assert (seen.dialogs, seen.console) == ([], [])
        assert [url for url in seen.requests if not url.startswith("data:")] == [path.as_uri()]


@needs_chromium
def test_nothing_hostile_runs_or_loads(tmp_path):
    path = tmp_path / "page.html"
    write_gallery(path, hostile_rows(), title="Honest", facts={"model": HOSTILE[0]})
    with opened(path, tmp_path / "profile") as seen:
        page = seen.page
        for details in page.locator("details").all():
            details.evaluate("element => { element.open = true; }")
        for row in page.locator("tbody tr").all():
            row.hover()
        for name in ("Image", "Score", "Spread", "Parsed"):
            page.get_by_role("button", name=name, exact=True).click()
        page.locator("#filter").fill("<script>")
        assert page.title() == "Honest"
        assert page.locator("tbody tr").count() == 2 * len(HOSTILE)
        assert page.locator("script").count() == 1
        assert page.locator("iframe, link, base, plaintext").count() == 0
        assert page.locator("tbody svg").count() == len(HOSTILE)  # the strips of rollouts, none for the broken ones
        assert page.locator("body").is_visible()
        assert (seen.dialogs, seen.console) == ([], [])
        assert seen.requests == [path.as_uri()]


@needs_chromium
def test_the_policy_stops_what_an_unescaped_section_would_run(tmp_path):
    # belt and braces: the caller's own HTML can't run anything either
    section = (
        "<p id=extra onclick=\"document.title='pwned'\">text</p><script>document.title = 'pwned'</script>"
        "<img src=x onerror=\"document.title='pwned'\"><a id=link href=\"javascript:document.title='pwned'\">go</a>"
        "<style>body { display: none }</style><img src=https://example.invalid/x.png>"
        "<audio src=https://example.invalid/a.mp3></audio><object data=https://example.invalid/o></object>"
    )
    path = tmp_path / "page.html"
    write_gallery(path, rows(), title="Honest", extra_columns=["MOS"], extra_sections_html=section)
    with opened(path, tmp_path / "profile") as seen:
        seen.page.locator("#extra").click()
        seen.page.locator("#link").click()
        assert seen.page.title() == "Honest"
        assert seen.page.locator("body").is_visible()
        assert any("Content Security Policy" in line for line in seen.console)
        outside = [url for url in seen.requests if url != path.as_uri() and not url.startswith("data:")]
        assert outside
        for name in ("a.mp3", "/o"):  # sounds and objects fall under the default rule
            assert any(name in line and "default-src 'none'" in line for line in seen.console)
        assert sorted(outside) == sorted(seen.blocked)
        seen.page.get_by_role("button", name="Score", exact=True).click()  # its own script runs
        assert shown(seen.page)[0] == "a10.png"
