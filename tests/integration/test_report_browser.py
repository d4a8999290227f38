"""The report in a real browser, headless: from disk and live, by mouse and by keyboard, light, dark and phone-wide."""

import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lanes.report import write_report
from lanes.report.serving import LiveRuns, Server
from tests.report_runs import EVIL, two_runs

CHROMIUM = Path("/usr/bin/chromium")
playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright (pip install playwright)")
pytestmark = pytest.mark.skipif(not CHROMIUM.exists(), reason=f"needs {CHROMIUM} (apt-get install chromium)")

LANES = ["filters/lane0/conv1", "filters/lane1/conv1"]
PHONE = {"width": 390, "height": 844}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return two_runs(tmp_path_factory)


@pytest.fixture(scope="module")
def report(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Two runs compared, as a file."""
    file = tmp_path_factory.mktemp("report") / "report.html"
    write_report([runs / "1", runs / "2"], file)
    return file.as_uri()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as running:
        chromium = running.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def opened(browser: Any) -> Iterator[Callable[..., Any]]:
    """Opens a page; at the end no request has left the machine and the console has no error."""
    wrong: list[str] = []
    contexts = []

    def go(url: str, **options: Any) -> Any:
        contexts.append(browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options}))
        tab = contexts[-1].new_page()
        own = ("data:", url)
        tab.on("request", lambda request: wrong.append(request.url) if not request.url.startswith(own) else None)
        tab.on("console", lambda message: wrong.append(message.text) if message.type in ("error", "warning") else None)
        tab.on("pageerror", lambda error: wrong.append(str(error)))
        tab.goto(url)
        return tab

    yield go
    for context in contexts:
        context.close()
    assert wrong == []


def sources(tab: Any, key: str) -> list[str]:
    """What the pictures of a key show, run by run."""
    return [image.get_attribute("src") for image in tab.locator(f'[data-key="{key}"] img').all()]


def colours(tab: Any, key: str) -> list[list[int]]:
    """The first pixel of the pictures of a key, as they are drawn: tells run, step and lane."""
    return tab.evaluate(
        """async (key) => Promise.all([...document.querySelectorAll(`[data-key="${key}"] img`)].map(async (image) => {
            await image.decode();
            const pen = Object.assign(document.createElement("canvas"), { width: 1, height: 1 }).getContext("2d");
            pen.drawImage(image, 0, 0);
            return [...pen.getImageData(0, 0, 1, 1).data].slice(0, 3);
        }))""",
        key,
    )


def chart(tab: Any, title: str) -> Any:
    return tab.locator("figure.chart").filter(has=tab.locator("figcaption", has_text=title)).first


def marker(tab: Any, title: str) -> float:
    """How far right the slider's line stands in a chart, as a share of the plot's width."""
    return chart(tab, title).evaluate(
        "c => parseFloat(c.querySelector('.marker').style.left) / c.querySelector('.u-over').clientWidth"
    )


def legend(tab: Any, title: str) -> list[str]:
    return [item.inner_text().replace("\n", " ") for item in chart(tab, title).locator("li").all()]


def set_step(tab: Any, place: int) -> None:
    tab.locator("#step").evaluate(
        "(slider, place) => { slider.value = place; slider.dispatchEvent(new Event('input')); }", place
    )


def test_it_opens_from_disk_and_shows_both_runs(opened: Callable[..., Any], report: str) -> None:
    tab = opened(report)
    assert report.startswith("file:///")
    assert tab.title() == f"two parts, other {EVIL} · lanes report"  # no caption ran as a script
    assert tab.locator("#step-words").inner_text() == "50 of 50"
    assert [colours(tab, key) for key in LANES] == [[[40, 100, 0], [80, 100, 0]], [[40, 100, 120], [80, 100, 120]]]
    cards = tab.locator(".card").all_inner_texts()
    assert "50 steps in " in cards[0]
    assert "finished, merged from 2 folders." in cards[0]
    assert "validation loss 0.01961; validation top-1 accuracy 0.75." in cards[0]
    assert f"words: p = 0.01 {EVIL}" in cards[0]
    assert EVIL in cards[1]
    assert tab.locator("article img, figcaption img").count() == 0


def test_the_slider_moves_pictures_and_curves_together(opened: Callable[..., Any], report: str) -> None:
    tab = opened(report)
    assert marker(tab, "colour share") == pytest.approx(1)
    at_end = sources(tab, LANES[0])
    set_step(tab, 23)
    assert tab.locator("#step-words").inner_text() == "23 of 50"
    assert sources(tab, LANES[0]) != at_end
    assert colours(tab, LANES[1]) == [[40, 40, 120], [80, 40, 120]]  # of step 20, the newest at step 23
    assert "step 20" in tab.locator(f'[data-key="{LANES[1]}"]').first.inner_text()
    for title in ("loss", "step time (s)", "colour share"):
        assert marker(tab, title) == pytest.approx(23 / 50, abs=0.01), title
    assert legend(tab, "colour share") == [
        "lane 0, two parts 0.23",
        f"lane 0, other {EVIL} 0.2",  # logs every fifth step
        "lane 1, two parts 0.77",
        f"lane 1, other {EVIL} 0.8",
    ]
    assert "at step 23: lane 0, two parts 0.23" in chart(tab, "colour share").locator(".plot").get_attribute(
        "aria-label"
    )


def test_pointing_into_a_curve_moves_the_slider(opened: Callable[..., Any], report: str) -> None:
    tab = opened(report)
    plot = chart(tab, "colour share").locator(".u-over")
    width = plot.evaluate("plot => plot.clientWidth")
    plot.click(position={"x": width * 0.4, "y": 20})
    assert tab.locator("#step-words").inner_text() == "20 of 50"
    assert colours(tab, LANES[0]) == [[40, 40, 0], [80, 40, 0]]


def test_the_curves_are_drawn_in_the_lanes_colours(opened: Callable[..., Any], report: str) -> None:
    tab = opened(report)
    drawn = chart(tab, "colour share").evaluate(
        """chart => {
            const canvas = chart.querySelector("canvas");
            const data = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
            const count = {};
            for (let i = 0; i < data.length; i += 4) {
                const colour = [...data.slice(i, i + 3)].join();
                if (data[i + 3] === 255) count[colour] = (count[colour] ?? 0) + 1;
            }
            return count;
        }"""
    )
    assert drawn.get("0,114,178", 0) > 50  # --lane-0
    assert drawn.get("213,94,0", 0) > 50  # --lane-1


def test_runs_are_compared(opened: Callable[..., Any], report: str) -> None:
    tab = opened(report)
    assert len(sources(tab, LANES[0])) == 2
    differing = tab.locator('[data-name="differences"] tbody tr')
    assert [line.split() for line in differing.all_inner_texts()] == [["seed_everything", "1", "2"]]
    tab.get_by_label("show two parts").uncheck()
    assert colours(tab, LANES[0]) == [[80, 100, 0]]
    assert legend(tab, "colour share") == ["lane 0 0.5", "lane 1 0.5"]
    tab.get_by_label("show two parts").check()
    assert len(sources(tab, LANES[0])) == 2


def test_everything_works_by_keyboard(opened: Callable[..., Any], report: str) -> None:
    tab = opened(report)
    focused: list[str] = []
    for _ in range(30):
        tab.keyboard.press("Tab")
        focused.append(tab.evaluate("document.activeElement.id || document.activeElement.tagName"))
        outline = tab.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        if focused[-1] != "BODY":
            assert outline == "solid", focused[-1]
    assert {"theme", "previous", "step", "play", "show-0", "show-1", "SUMMARY"} <= set(focused)
    tab.locator("#step").focus()
    tab.keyboard.press("ArrowLeft")
    assert tab.locator("#step-words").inner_text() == "49 of 50"
    assert tab.locator("#step").get_attribute("aria-valuetext") == "step 49 of 50"
    tab.keyboard.press("Home")
    assert colours(tab, LANES[0]) == [[40, 0, 0], [80, 0, 0]]
    assert marker(tab, "loss") == pytest.approx(0, abs=0.01)
    tab.locator("#next").focus()
    tab.keyboard.press("Enter")
    assert tab.locator("#step-words").inner_text() == "10 of 50"
    tab.locator("#show-0").focus()
    tab.keyboard.press("Space")
    assert len(sources(tab, LANES[0])) == 1
    tab.keyboard.press("Space")  # the focus has stayed
    assert len(sources(tab, LANES[0])) == 2
    closed = tab.locator('[data-name="config"]')
    closed.locator("summary").focus()
    tab.keyboard.press("Enter")
    assert closed.locator("table").is_visible()


def test_play_runs_through_the_pictures_and_stops_at_the_end(opened: Callable[..., Any], report: str) -> None:
    tab = opened(report)
    set_step(tab, 30)
    tab.locator("#play").click()
    assert tab.locator("#play").inner_text() == "Stop"
    playwright.expect(tab.locator("#play")).to_have_text("Play", timeout=30_000)
    assert tab.locator("#step-words").inner_text() == "50 of 50"


def test_everything_has_a_name(opened: Callable[..., Any], report: str) -> None:
    tab = opened(report)
    nameless = tab.evaluate(
        """() => [...document.querySelectorAll("input, select, button, img, [role=img]")].filter((one) =>
            !(one.alt || one.ariaLabel || one.labels?.length || one.textContent.trim())).map((one) => one.outerHTML)"""
    )
    assert nameless == []
    alt = tab.locator(f'[data-key="{LANES[1]}"] img').first.get_attribute("alt")
    assert alt == f"conv1, lane 1, {EVIL}, step 50"


def test_light_and_dark(opened: Callable[..., Any], report: str, tmp_path: Path) -> None:
    paper = "getComputedStyle(document.body).backgroundColor"
    light, dark = "rgb(255, 255, 255)", "rgb(15, 19, 23)"
    shots = {}
    for scheme, expected in (("light", light), ("dark", dark)):
        tab = opened(report, color_scheme=scheme)
        assert tab.evaluate(paper) == expected
        shots[scheme] = tab.screenshot(path=tmp_path / f"{scheme}.png", full_page=True)
    assert shots["light"] != shots["dark"]
    tab.get_by_label("Colours").select_option("light")  # of the dark one
    assert tab.evaluate(paper) == light
    tab.reload()
    assert tab.evaluate(paper) == light  # a person's choice is kept
    tab.get_by_label("Colours").select_option("as the system")
    assert tab.evaluate(paper) == dark


def test_phone(opened: Callable[..., Any], report: str, tmp_path: Path) -> None:
    tab = opened(report, viewport=PHONE, has_touch=True, is_mobile=True, device_scale_factor=2)
    tab.screenshot(path=tmp_path / "phone.png", full_page=True)
    assert tab.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
    boxes = [box.bounding_box() for box in tab.locator("img, .plot, .card, #stepper button, #step").all()]
    assert len(boxes) > 15
    assert all(box["x"] >= 0 and box["x"] + box["width"] <= PHONE["width"] for box in boxes)
    assert all(box["height"] >= 36 for box in (b.bounding_box() for b in tab.locator("button, #step").all()))
    tab.mouse.wheel(0, 1500)
    assert tab.locator("#step").is_visible()  # the slider stays in sight
    tab.locator("#previous").tap()
    assert tab.locator("#step-words").inner_text() == "40 of 50"


def test_all_pictures_of_a_row_are_on_one_scale(opened: Callable[..., Any], report: str) -> None:
    tab = opened(report)
    widths = tab.locator(".film img").evaluate_all(
        "all => all.map(i => [i.naturalWidth, i.clientWidth / i.naturalWidth])"
    )
    for natural in {natural for natural, _ in widths}:
        scales = [scale for width, scale in widths if width == natural]
        assert max(scales) == pytest.approx(min(scales), rel=0.02)
        assert min(scales) >= 1


def test_a_run_without_an_end_says_so(opened: Callable[..., Any], runs: Path, tmp_path: Path) -> None:
    (whole,) = (runs / "2" / "wandb").glob("offline-run-*")
    cut = Path(shutil.copytree(whole, tmp_path / whole.name)) / "run-run2.wandb"
    cut.write_bytes(cut.read_bytes()[:-300])  # in the middle of a record, as a crash leaves it
    write_report([tmp_path], tmp_path / "report.html")
    tab = opened((tmp_path / "report.html").as_uri())
    assert "50 steps" in tab.locator(".card").inner_text()
    assert "no end was logged" in tab.locator(".card").inner_text()
    assert colours(tab, LANES[0])[0][0] == 80


def test_live_it_follows_the_run_and_keeps_the_sliders_place(
    opened: Callable[..., Any], runs: Path, tmp_path: Path
) -> None:
    first, second = sorted((runs / "1" / "wandb").glob("offline-run-*"))
    grown = tmp_path / "wandb"
    shutil.copytree(first, grown / first.name)
    with Server(LiveRuns([tmp_path])) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            stays, follows = opened(server.url), opened(server.url)
            set_step(stays, 12)
            stays.locator('[data-name="config"] summary').click()
            assert follows.locator("#step-words").inner_text() == "30 of 30"
            shutil.copytree(second, grown / second.name)
            playwright.expect(stays.locator("#step-words")).to_have_text("12 of 50", timeout=30_000)
            playwright.expect(follows.locator("#step-words")).to_have_text("50 of 50", timeout=30_000)
            assert colours(stays, LANES[0]) == [[40, 20, 0]]
            assert marker(stays, "loss") == pytest.approx(12 / 50, abs=0.01)
            assert stays.locator('[data-name="config"] table').is_visible()
            assert colours(follows, LANES[0]) == [[40, 100, 0]]
        finally:
            server.shutdown()
            thread.join()
