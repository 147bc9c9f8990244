"""The page of a report in a real browser; skipped where there is none."""

from __future__ import annotations

import importlib.util
import itertools
import json
from pathlib import Path

import pytest

from retrieval_spec.cli import main
from retrieval_spec.report.page import page_of
from tests.browser import Browser, browser_path, open_browser
from tests.test_report import HOSTILE, a_summary

PHONE, DESK = (390, 844), (1280, 900)
MAX_OPEN_S, MAX_BYTES, NUM_TRACES = 2.0, 5_000_000, 200
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
PAINTED = "new Promise(r => requestAnimationFrame(() => requestAnimationFrame(() => r(performance.now()))))"


@pytest.fixture(scope="module")
def browser():
    path = browser_path()
    if path is None:
        pytest.skip("no Chromium on this machine: install chromium, or set RETRIEVAL_SPEC_BROWSER")
    with open_browser(path) as browser:
        browser.resize(*DESK)
        yield browser


@pytest.fixture
def page(tmp_path):
    path = tmp_path / "report.html"
    path.write_text(page_of(a_summary()), encoding="utf-8")
    return path


def chosen(browser: Browser) -> str:
    return browser.ask("document.querySelector('[aria-selected=true]').id")


def test_tokens_are_read_with_pointer_and_keys(browser, page):
    browser.open(page)
    assert browser.complaints() == []
    assert browser.requests() == [page.resolve().as_uri()]
    assert browser.ask("document.querySelectorAll('#tokens .token').length") == 7
    browser.point("#token-1")
    detail = browser.ask("document.getElementById('detail').innerText")
    assert "a draft of counting" in detail
    assert "25 %, and it came true" in detail
    browser.ask("document.getElementById('tokens').focus()")
    places = []
    for key in ("Home", "ArrowRight", "ArrowDown", "ArrowDown", "ArrowUp", "End", "ArrowLeft"):
        browser.press(key)
        places.append(int(chosen(browser).removeprefix("token-")))
    assert places == [0, 1, 4, 5, 4, 6, 5]
    assert browser.ask("document.getElementById('tokens').getAttribute('aria-activedescendant')") == "token-5"
    browser.press("Enter")
    assert browser.ask("document.activeElement.id") == "tree-5"
    assert browser.ask("document.activeElement.querySelectorAll('rect.accepted').length") == 3  # and the root
    browser.ask("document.getElementById('next').click()")
    assert browser.ask("document.querySelectorAll('#tokens .token').length") == 2
    browser.ask("(f => { f.value = 'chat'; f.dispatchEvent(new Event('change')); })(byId('family'))")
    assert browser.ask("document.querySelector('#facts dd').textContent") == "2.50"


def test_text_of_traces_does_not_run(browser, tmp_path):
    path = tmp_path / "report.html"
    path.write_text(page_of(a_summary([HOSTILE])), encoding="utf-8")
    browser.open(path)
    assert browser.complaints() == []
    assert browser.ask("typeof window.ran") == "undefined"
    assert browser.ask("[document.images.length, document.scripts.length]") == [0, 2]
    shown = browser.ask("document.getElementById('token-0').textContent")
    assert shown.startswith("</script><script>window.ran=1</script><img")


def test_the_policy_stops_what_should_get_in_all_the_same(browser, tmp_path):
    path = tmp_path / "report.html"
    got_in = "<script>window.ran=1</script><img src=x onerror='window.ran=2'><style>h1{color:red}</style>"
    path.write_text(page_of(a_summary()).replace("<main>", f"<main>{got_in}"), encoding="utf-8")
    browser.open(path)
    assert browser.ask("typeof window.ran") == "undefined"
    assert browser.ask("getComputedStyle(document.querySelector('h1')).color") != "rgb(255, 0, 0)"
    failed = [event["params"] for event in browser.events if event.get("method") == "Network.loadingFailed"]
    assert [one.get("blockedReason") for one in failed] == ["csp"]
    assert len(browser.complaints()) == 4  # script, style, picture and its handler


def fits(browser: Browser) -> bool:
    return browser.ask("document.documentElement.scrollWidth <= document.documentElement.clientWidth")


@pytest.mark.parametrize("size", [PHONE, (320, 640), DESK])
def test_nothing_stands_out_of_the_window(browser, page, size):
    browser.resize(*size, phone=size != DESK)
    browser.open(page)
    browser.ask("document.querySelectorAll('details').forEach(one => { one.open = true })")
    assert fits(browser)
    browser.resize(*DESK)


@pytest.fixture(scope="module")
def real_page(data_dir, tmp_path_factory) -> Path:
    """A report of 200 real generations of eight families, as text."""
    folder = tmp_path_factory.mktemp("report")
    names = sorted((data_dir / "tok_qwen2").glob("*.jsonl"))[:8]
    for name in names:
        with name.open() as lines:
            (folder / name.name).write_text("".join(itertools.islice(lines, NUM_TRACES // len(names))))
    traces = [str(folder / name.name) for name in names]
    tokenizer = str(data_dir / "tokenizers" / "qwen2")
    output = folder / "report.html"
    assert main(["report", *traces, "--tokenizer", tokenizer, "--output", str(output), "--json"]) == 0
    return output


@pytest.mark.long
def test_a_report_of_200_generations_opens_at_once(browser, real_page, capsys):
    assert real_page.stat().st_size <= MAX_BYTES
    browser.open(real_page)
    painted_s = browser.ask(PAINTED) / 1e3
    with capsys.disabled():
        print(f"\n{real_page.stat().st_size:,} bytes, painted after {painted_s:.2f} s")
    assert painted_s <= MAX_OPEN_S
    assert browser.complaints() == []
    assert browser.ask("document.querySelectorAll('#pick option').length") == NUM_TRACES


@pytest.mark.long
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [PHONE, DESK])
def test_axe_finds_no_violation(browser, real_page, scheme, size):
    spec = importlib.util.find_spec("axe_playwright_python")
    if spec is None or spec.origin is None:
        pytest.skip("no accessibility checker: pip install 'retrieval-spec[browser]'")
    browser.prefer(scheme)
    browser.resize(*size, phone=size == PHONE)
    browser.open(real_page)
    browser.ask("document.querySelectorAll('details').forEach(one => { one.open = true })")
    browser.point("#token-3")
    assert fits(browser)
    # The page's policy lets in no further script; the protocol does.
    browser.ask((Path(spec.origin).parent / "axe.min.js").read_text(encoding="utf-8") + ";0")
    found = browser.ask(
        f"axe.run({{runOnly: {json.dumps(RULES)}}}).then(r => r.violations.map(v => [v.id, v.nodes[0].html]))"
    )
    assert found == []
