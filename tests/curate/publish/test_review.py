"""The review page: what it is made of, and its work in a real headless Chromium (marked `page`)."""

import hashlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from curation_runs import curate, manifest

from curate.config import ReviewConfig
from curate.publish import review
from curate.selection.reviews import read_review

CHROMIUM = os.environ.get("CHROMIUM", "/usr/bin/chromium")


def listed(report: Path) -> list[list]:
    """The rows of the page's list of crops."""
    lines = (report / "review" / "index.js").read_text().splitlines()
    assert (lines[0], lines[-1]) == ("takeCrops([", "]);")
    return [json.loads(line.removesuffix(",")) for line in lines[1:-1]]


def facts(report: Path) -> list[dict]:
    """Source and scores of the crops, in the order of the list."""
    rows = []
    for at, path in enumerate(sorted((report / "review").glob("facts-*.js"))):
        text = path.read_text()
        assert text.startswith(f"takeFacts({at}, ") and text.endswith(");\n")
        rows += json.loads(text[text.index("[") : -3])
    return rows


def test_review_page_shows_each_scored_crop_once(made):
    report = made / "report"
    scored = [row for row in manifest(made) if row["kept"] or row["reason"] == "not_top_third"]
    shown = listed(report)
    assert sorted(row[0] for row in shown) == sorted(row["crop_id"] for row in scored)
    said = {row[0]: row[1:] for row in shown}
    for row in scored:
        z = pytest.approx(row["z"], abs=1e-4)
        assert said[row["crop_id"]] == [int(row["kept"]), z, row["reason"]]
        assert (report / "review" / f"{row['crop_id']}.jpg").exists()
    assert len(list((report / "review").glob("*.jpg"))) == len(scored)


def test_review_page_knows_sources_and_scores(made):
    rows = {row["crop_id"]: row for row in manifest(made)}
    shown = listed(made / "report")
    for (name, *_), fact in zip(shown, facts(made / "report"), strict=True):
        row = rows[name]
        assert (fact["image"], fact["path"]) == (row["image_id"], row["path"])
        assert fact["uri"].startswith("file:///")
        assert fact["scores"] == {
            m: row[m]
            for m in ("person_sharpness", "calm_noise", "jpeg_blocks", "clipped", "entropy")
        }
        assert [fact[k] for k in ("x0", "y0", "s")] == [row[k] for k in ("x0", "y0", "s")]


def pool(count: int) -> pa.Table:
    """As many kept crops as dropped ones, z by name."""
    return pa.table(
        {
            "crop_id": [f"{at:032x}" for at in range(2 * count)],
            "z": [float(at) for at in range(2 * count)],
            "kept": [at >= count for at in range(2 * count)],
            "reason": ["" if at >= count else "not_top_third" for at in range(2 * count)],
        }
    )


def test_the_order_is_fixed_by_the_seed():
    everything = ReviewConfig(kept=0, dropped=0)
    order = review.choose_crops(pool(500), everything)
    assert order == review.choose_crops(pool(500), everything)
    assert sorted(order) == pool(500)["crop_id"].to_pylist()
    other = review.choose_crops(pool(500), ReviewConfig(seed=1, kept=0, dropped=0))
    assert sorted(other) == sorted(order) and other != order
    # A crop more or less moves no other past another.
    fewer = review.choose_crops(pool(500).slice(7), everything)
    assert fewer == [name for name in order if name in set(fewer)]


def test_a_sitting_has_the_closest_decisions_and_others():
    chosen = {int(name, 16) for name in review.choose_crops(pool(500), ReviewConfig(0, 40, 20))}
    assert {*range(500, 520), *range(490, 500)} <= chosen and len(chosen) == 60
    assert len([at for at in chosen if at >= 500]) == 40


# ---- in a browser ----------------------------------------------------------------------------


@pytest.fixture
def browser(tmp_path) -> Iterator[Any]:
    """A Chromium that keeps what pages store, as a person's does."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            str(tmp_path / "profile"),
            executable_path=CHROMIUM,
            args=["--no-sandbox"],
            viewport={"width": 1280, "height": 900},
        )
        yield context
        context.close()


def opened(browser: Any, report: Path) -> Any:
    """A tab with the page, in which nothing may go wrong or ask for an address."""
    tab = browser.new_page()
    tab.on("pageerror", lambda error: pytest.fail(str(error)))
    tab.on("request", lambda request: check_address(request.url))
    tab.goto((report / "review.html").as_uri())
    return tab


def check_address(url: str) -> None:
    assert url.startswith(("file:", "blob:", "data:"))


def counts(tab: Any) -> tuple[int, ...]:
    """Crops, seen ones, those kept and dropped by hand, as the page says."""
    text = tab.locator("#counts").inner_text().replace(",", "")
    seen, total, kept, dropped = map(int, re.findall(r"\d+", text))
    return total, seen, kept, dropped


def download(tab: Any, button: str, path: Path) -> Path:
    with tab.expect_download() as found:
        tab.get_by_role("button", name=button).click()
    found.value.save_as(path)
    return path


@pytest.mark.page
def test_keys_decide_and_a_reload_forgets_nothing(browser, made, tmp_path):
    report = made / "report"
    order = [row[0] for row in listed(report)]
    tab = opened(browser, report)
    assert tab.locator("figure").count() == len(order) == counts(tab)[0]
    tab.locator("figure").first.focus()
    for key in ("k", "d", "n", "d", "ArrowLeft", "u"):
        tab.keyboard.press(key)
    assert counts(tab) == (len(order), 3, 1, 1)
    tab.reload()
    assert counts(tab) == (len(order), 3, 1, 1)
    assert tab.locator("figure").nth(0).locator(".state").inner_text() == "kept by hand"
    assert "out" in tab.locator("figure").nth(1).get_attribute("class")
    saved = download(tab, "Save review.csv", tmp_path / "review.csv")
    assert read_review(saved) == {order[0]: True, order[1]: False}
    labels = json.loads(download(tab, "Save for FiftyOne", tmp_path / "f.json").read_text())
    assert labels["classes"] == ["drop", "keep"]
    kept = {row[0]: row[1] for row in listed(report)}
    assert labels["labels"] == {order[0]: 1, order[1]: 0, order[2]: kept[order[2]]}
    # FiftyOne finds a picture by its name without the suffix.
    stems = {path.stem for path in (report / "review").glob("*.jpg")}
    assert set(labels["labels"]) <= stems


@pytest.mark.page
def test_a_saved_review_is_obeyed_and_can_be_loaded(browser, copy, tmp_path):
    tab = opened(browser, copy / "report")
    tab.locator("#filter").select_option("kept")
    name = tab.locator("figure img").first.get_attribute("alt").removeprefix("crop ")
    tab.locator("figure button").first.click()
    saved = download(tab, "Save review.csv", tmp_path / "review.csv")
    assert read_review(saved) == {name: False}
    assert curate(copy, "select", f"--review={saved}") == 0
    (row,) = (row for row in manifest(copy) if row["crop_id"] == name)
    assert row["reason"] == "review"
    # Elsewhere the file brings the decisions back.
    tab.evaluate("localStorage.clear()")
    tab.reload()
    assert counts(tab)[1:] == (0, 0, 0)
    tab.set_input_files("#load", saved)
    tab.get_by_text("1 decisions read").wait_for()
    assert counts(tab)[1:] == (1, 0, 1)


@pytest.mark.page
def test_a_crop_is_enlarged_with_source_and_scores(browser, made):
    report = made / "report"
    tab = opened(browser, report)
    tab.locator("figure").first.focus()
    tab.keyboard.press("Enter")
    tab.locator("#square").wait_for()
    first = facts(report)[0]
    text = tab.locator("#facts").inner_text()
    assert first["image"] in text and "sharpness" in text and "z" in text
    assert tab.locator("#source img").evaluate("i => i.naturalWidth") == first["w"]
    assert tab.locator("#picture").evaluate("i => i.naturalWidth") == 512
    # Right after it has opened, Space is the next crop and no button's.
    tab.keyboard.press("Space")
    tab.get_by_text(facts(report)[1]["image"]).wait_for()
    tab.keyboard.press("d")
    tab.get_by_text(facts(report)[2]["image"]).wait_for()
    tab.keyboard.press("Escape")
    assert tab.locator("#large").is_hidden() and counts(tab)[1:] == (3, 0, 1)


@pytest.mark.page
def test_a_hundred_thousand_crops_in_pages(browser, tmp_path):
    names = [hashlib.blake2b(b"%d" % at, digest_size=16).hexdigest() for at in range(109_053)]
    zeros = [0.0] * len(names)
    table = {"crop_id": names, "kept": [True] * len(names), "z": zeros, "reason": [""] * len(names)}
    (tmp_path / "review").mkdir()
    review.write_index(tmp_path / "review" / "index.js", pa.table(table))
    page = review.TEMPLATE.read_text().replace("__NOTICE__", "")
    (tmp_path / "review.html").write_text(page.replace("__FACTS_ROWS__", "500"))
    tab = opened(browser, tmp_path)
    assert counts(tab)[0] == 109_053 and tab.locator("figure").count() == 60
    tab.locator("#page").fill("1818")
    tab.locator("#page").press("Enter")
    assert tab.locator("figure").count() == 109_053 - 1817 * 60
    # All are seen, some are decided: the browser's store has room for it.
    tab.evaluate("say(crops.map((crop, at) => [crop, 'skd'[at % 3]]))")
    tab.reload()
    assert counts(tab) == (109_053, 109_053, 36_351, 36_351)
    assert tab.locator("#page").input_value() == "1818"
    assert tab.locator("#warning").inner_text() == ""
