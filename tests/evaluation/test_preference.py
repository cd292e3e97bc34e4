"""Pages of unnamed pairs, the answers to them, and the preference with its interval.

python -m pytest -m page          # CHROMIUM names another browser than /usr/bin/chromium
"""

import base64
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
from refusals import one_line

from osdhuman_jax.evaluation import preference
from osdhuman_jax.evaluation.preference import Preference, count, read_answers, read_key, told
from osdhuman_jax.images.codec import read_rgb_bytes

CHROMIUM = os.environ.get("CHROMIUM", "/usr/bin/chromium")
NAMES = ['a "b", c', "d/</script>", "e", "f", "g", "h"]
METHODS = ("Ours", "Other")


def flat(value: int, height: int = 8) -> np.ndarray:
    return np.full((height, 8, 3), value, np.uint8)


def made(folder: Path, seed: int = 0, methods: tuple[str, str] = METHODS) -> preference.Key:
    """A page on which the first method's pictures are dark, and of half the size."""
    pairs = ((name, flat(at, 4), flat(200 + at)) for at, name in enumerate(NAMES))
    return preference.write_page(folder, methods, pairs, seed)


def shown(folder: Path) -> list[list[str]]:
    """What the page has of each pair: name, left and right picture."""
    text = (folder / preference.PAGE).read_text()
    found = re.search(r"PAIRS = (.*);\n", text)
    assert found and text.count("</script>") == 1
    return json.loads(found[1])


def answers(path: Path, key: preference.Key, choices: dict[str, str]) -> Path:
    quoted = {name: '"' + name.replace('"', '""') + '"' for name in choices}
    rows = [f"{key.page},{quoted[name]},{choice}\n" for name, choice in choices.items()]
    path.write_text("page,pair,choice\n" + "".join(rows))
    return path


def test_the_key_alone_tells_the_sides(tmp_path):
    key = made(tmp_path)
    assert read_key(tmp_path / preference.KEY) == key and sorted(key.left) == sorted(NAMES)
    text = (tmp_path / preference.PAGE).read_text()
    assert not any(word in text for word in (*METHODS, str(tmp_path)))
    for name, *addresses in shown(tmp_path):
        pictures = [read_rgb_bytes(base64.b64decode(a.split(",")[1])) for a in addresses]
        assert [p.shape for p in pictures] == [(8, 8, 3)] * 2
        is_dark = pictures[0].max() < 100
        assert key.left[name] == METHODS[0 if is_dark else 1]
    # Both occur on the left, else the seed would be no draw.
    assert set(key.left.values()) == set(METHODS)


def test_a_seed_is_one_page_and_other_methods_have_other_sides(tmp_path):
    key = made(tmp_path / "a")
    assert made(tmp_path / "b") == key and shown(tmp_path / "a") == shown(tmp_path / "b")
    for at, other in enumerate((made(tmp_path / "c", 1), made(tmp_path / "d", 0, ("Ours", "X")))):
        on_left = {name: method == "Ours" for name, method in other.left.items()}
        assert on_left != {name: method == "Ours" for name, method in key.left.items()}, at
        assert other.page != key.page


def test_choices_are_counted_for_whom_they_were_made(tmp_path):
    key = made(tmp_path)
    ours = {name: "left" if method == "Ours" else "right" for name, method in key.left.items()}
    first, second, third, *_ = NAMES
    one = dict(ours) | {first: "none"}
    two = {second: "right" if ours[second] == "left" else "left", third: ours[third]}
    paths = [answers(tmp_path / f"{i}.csv", key, given) for i, given in enumerate((one, two))]
    found = count(key, [read_answers(path, key) for path in paths])
    assert found == Preference(first=6, second=1, neither=1, unanswered=4)
    assert "Ours preferred in 85.7 % of 7 decided pairs" in told(key, found)
    assert "no preference" in told(key, Preference(0, 0, 6, 0))


@pytest.mark.parametrize(("wins", "total"), [(0, 25), (14, 22), (22, 22)])
def test_wilsons_interval(wins, total):
    """By its closed form (Wilson 1927)."""
    z, p = 1.959963984540054, wins / total
    middle = (p + z**2 / (2 * total)) / (1 + z**2 / total)
    half = z / (1 + z**2 / total) * (p * (1 - p) / total + z**2 / (4 * total**2)) ** 0.5
    found = Preference(wins, total - wins, 3, 0).interval()
    assert found == pytest.approx((middle - half, middle + half), abs=1e-12)


def test_what_is_no_answer_is_one_line(tmp_path):
    key = made(tmp_path)
    path = tmp_path / "answers.csv"
    row = f"{key.page},e,left\n"
    for rows, said in (
        ("", "not a table of answers; it begins page,pair,choice"),
        ("name,choice\n", "not a table of answers; it begins page,pair,choice"),
        ("page,pair,choice\n0123,e,left\n", r"csv:2: not an answer of this key's page"),
        ("page,pair,choice\n" + row + row, "csv:3: e: answered twice"),
        (f"page,pair,choice\n{key.page},z,left\n", "z: no pair, or no choice, of the page"),
        (f"page,pair,choice\n{key.page},e,both\n", "e: no pair, or no choice, of the page"),
    ):
        path.write_text(rows)
        with one_line(ValueError, said):
            read_answers(path, key)
    for text in (
        "{}",
        "no JSON",
        '{"page": 1, "seed": 0, "methods": ["a", "b"], "left": {"x": 1}}',
        '{"page": "1", "seed": 7, "methods": ["A", "B"], "left": {"a": ["A"]}}',
        '{"page": "1", "seed": 7, "methods": ["A", "B"], "left": ["aA"]}',
        '{"page": "1", "seed": 7, "methods": ["A", "B"], "left": {"a": "C"}}',
        '{"page": "1", "seed": 7, "methods": ["A", "A"], "left": {"a": "A"}}',
        '{"page": "1", "seed": 7, "methods": [["A"], "B"], "left": {"a": "B"}}',
        '{"page": "1", "seed": 7, "methods": "AB", "left": {"a": "A"}}',
    ):
        path.write_text(text)
        with one_line(ValueError, "not the key of a page of pairs"):
            read_key(path)


def test_a_page_that_no_browser_could_open_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(preference, "MOST_BYTES", 300)
    with one_line(ValueError, "too large for one page; give fewer"):
        made(tmp_path / "ab")
    assert not (tmp_path / "ab").exists()


@pytest.mark.page
@pytest.mark.parametrize("stored", [True, False])
def test_keys_answer_and_a_reload_forgets_nothing(tmp_path, stored):
    from playwright.sync_api import sync_playwright

    key = made(tmp_path / "ab")
    order = [name for name, *_ in shown(tmp_path / "ab")]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        tab = browser.new_page()
        if not stored:  # as where a browser may keep nothing of a site
            tab.add_init_script("Storage.prototype.setItem = () => { throw new Error('refused') }")
        tab.on("pageerror", lambda error: pytest.fail(str(error)))
        tab.goto((tmp_path / "ab" / preference.PAGE).as_uri())
        for press in ("ArrowLeft", "ArrowDown", "b", "ArrowRight", "z", "ArrowLeft"):
            tab.keyboard.press(press)
        said = tab.locator("#counts")
        assert said.inner_text() == "pair 4 of 6, 3 answered"
        assert ("keeps nothing" in tab.locator("#warning").inner_text()) != stored
        assert tab.locator("main.whole img").count() == 2
        tab.reload()
        assert said.inner_text() == "pair 4 of 6, 3 answered"
        tab.get_by_role("button", name="Back").click()
        pressed = tab.locator("[aria-pressed=true]").inner_text()
        assert pressed == "Left (←)"
        with tab.expect_download() as download:
            tab.get_by_role("button", name="Save answers.csv").click()
        download.value.save_as(tmp_path / "answers.csv")
        browser.close()
    given = dict(zip(order, ("left", "right", "left"), strict=False))
    assert read_answers(tmp_path / "answers.csv", key) == given
