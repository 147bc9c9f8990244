#!/usr/bin/env python
"""Makes the pictures of `docs/report.md`: a report of Python's standard library, photographed in a browser.

    python tools/report_screens.py docs/images

Prompts and outputs are two parts of files that the shipped model was not trained on; a datastore of the
others drafts, beside the sources that need none. Wants a Chromium, and pillow, which `[report]` brings.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import sys
import sysconfig
import tempfile
from pathlib import Path

from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from retrieval_spec.build import build_datastore
from retrieval_spec.cli import main as command_line
from retrieval_spec.commands.demo import PROMPT_CHARACTERS, existing, held_out_files, standard_library
from retrieval_spec.datastore.corpus import Corpus
from retrieval_spec.demo_model import demo_model_dir
from tests.browser import Browser, browser_path, open_browser

OUTPUT_CHARACTERS = 3_000
COST_PER_NODE = "0.01"
NUM_COLOURS = 256
DESK, PHONE, TREES = (1180, 860), (390, 800), (1180, 620)
PHONE_SCALE = 1.5


def write_traces(path: Path) -> None:
    """Writes a generation for each long file that was held out: how it begins, and what follows."""
    root = Path(sysconfig.get_path("stdlib"))
    rows = []
    for file in existing(root, held_out_files()):
        text = file.read_text(encoding="utf-8", errors="ignore")
        if len(text) > 2 * PROMPT_CHARACTERS:
            end = PROMPT_CHARACTERS + OUTPUT_CHARACTERS
            family = "packages" if file.parent != root else "modules"
            rows.append(
                {"family": family, "prompt": text[:PROMPT_CHARACTERS], "output": text[PROMPT_CHARACTERS:end]}
            )
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_report(folder: Path) -> Path:
    """Builds the datastore, replays the traces over it and returns the page."""
    store, traces, page = (folder / name for name in ("stdlib", "traces.jsonl", "report.html"))
    model = demo_model_dir()
    root = Path(sysconfig.get_path("stdlib"))
    os.chdir(root)  # documents are called after their paths
    build_datastore(
        Corpus([path.relative_to(root) for path in standard_library()]), tokenizer=model, out=store
    )
    write_traces(traces)
    arguments = ["report", str(traces), "--tokenizer", str(model), "--datastore", str(store), "--json"]
    with contextlib.redirect_stdout(io.StringIO()):
        code = command_line([*arguments, "--cost-per-node", COST_PER_NODE, "--output", str(page)])
    if code:
        raise SystemExit("the report was not written")
    return page


def saved(browser: Browser, path: Path) -> None:
    """Writes what the window shows, with few colours: a third of the size."""
    picture = Image.open(io.BytesIO(browser.picture())).convert("RGB")
    picture = picture.quantize(NUM_COLOURS, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    picture.save(path, optimize=True)
    print(path.name, f"{path.stat().st_size:,} bytes", file=sys.stderr)


def scroll_to(browser: Browser, element: str) -> None:
    """Brings an element to the window's upper edge."""
    browser.ask(f"byId('{element}').scrollIntoView({{behavior: 'instant'}})")


def photograph(browser: Browser, page: Path, folder: Path) -> None:
    """Makes the pictures: charts, tokens, a phone, trees."""
    browser.prefer("light")
    browser.resize(*DESK)
    browser.open(page)
    saved(browser, folder / "report-light.png")
    browser.prefer("dark")
    browser.open(page)
    browser.point(f"#token-{chosen_token(browser)}")
    scroll_to(browser, "generation")
    saved(browser, folder / "report-dark.png")
    browser.prefer("light")
    browser.resize(*PHONE, phone=True, scale=PHONE_SCALE)
    browser.open(page)
    browser.point(f"#token-{chosen_token(browser)}")
    scroll_to(browser, "tokens")
    saved(browser, folder / "report-phone.png")
    browser.prefer("dark")
    browser.resize(*TREES)
    browser.open(page)
    scroll_to(browser, "trees")
    saved(browser, folder / "report-tree.png")


def chosen_token(browser: Browser) -> int:
    """Returns an early token that a datastore drafted."""
    number: int = browser.ask(
        "(data => { const one = data.generations[+byId('pick').value]; "
        "const is = (mask, at) => at > 60 && mask & data.corpus_mask && one.match[at] > 3; "
        "return Math.max(0, one.masks.findIndex(is)); })(JSON.parse(byId('data').textContent))"
    )
    return number


def main() -> None:
    """Replays, and photographs the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where the pictures go")
    folder = parser.parse_args().folder.resolve()
    path = browser_path()
    if path is None:
        raise SystemExit("no Chromium on this machine: install chromium, or set RETRIEVAL_SPEC_BROWSER")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="report-screens-") as scratch:
        page = write_report(Path(scratch))
        with open_browser(path) as browser:
            photograph(browser, page, folder)


if __name__ == "__main__":
    main()
