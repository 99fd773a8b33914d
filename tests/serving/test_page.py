"""The page, in a browser: Debian's chromium-headless-shell, or the one that CHROMIUM names."""

import base64
import json
import os
import re
import shutil

import numpy as np
import pytest

import zipar
from zipar.decoding import names
from zipar.serving.scheduler import Scheduler
from zipar.serving.served import Served
from zipar.videos import Video

sync_api = pytest.importorskip("playwright.sync_api", reason="the page's tests need playwright: make test-page")
expect = sync_api.expect
CHROMIUM = os.environ.get("CHROMIUM", "/usr/lib/chromium/chromium-headless-shell")
pytestmark = pytest.mark.skipif(
    shutil.which(CHROMIUM) is None, reason="the page's tests need a browser: make test-page installs one"
)
PROMPT = "a large red strawberry in the center on a blue background, 3d style"
TITLE = names.title(names.DEFAULT)
WORDS = "#model=words&prompt=a+red+fox"
"""Of a tiny model, whose images are done at once."""
expect.set_options(timeout=30_000)


@pytest.fixture(scope="module")
def emoji():
    return zipar.pipeline("emoji")


@pytest.fixture(scope="module")
def clips(tiny_clips):
    return zipar.pipeline(tiny_clips)


@pytest.fixture(scope="module")
def site(serving, pipes, emoji, clips):
    served = [Served.of(name, pipe, 64) for name, pipe in {"emoji": emoji, **pipes, "clips": clips}.items()]
    with serving(scheduling=lambda: Scheduler(served)) as server:
        yield server


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture
def opened(site, browser):
    """A page in a browser of its own: opened("#prompt=...", color_scheme="dark"); it must ask nobody but the server."""
    contexts, foreign, failures = [], [], []

    def open(address="", server=site, **options):
        context = browser.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        page.on("request", lambda request: foreign.append(request.url))
        page.on("pageerror", lambda error: failures.append(str(error)))
        page.on("console", lambda told: failures.append(told.text) if "Content Security" in told.text else None)
        page.goto(f"{server.url}/{address}")
        expect(page.locator("#strategy option").first).to_be_attached()
        return page

    yield open
    for context in contexts:
        context.close()
    assert not failures
    assert not [url for url in foreign if not re.match(r"http://127\.0\.0\.1:\d+/|blob:|data:", url)]


def paint(page):
    page.get_by_role("button", name="Generate").click()
    expect(page.get_by_role("button", name="Replay")).to_be_visible()


def canvas(page, number=0):
    """What a canvas holds, uint8 (height, width, 4)."""
    read = """canvas => {
        const { data, width, height } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
        let text = "";
        for (let at = 0; at < data.length; at += 32768) text += String.fromCharCode(...data.subarray(at, at + 32768));
        return [width, height, btoa(text)];
    }"""
    width, height, content = page.locator("canvas").nth(number).evaluate(read)
    return np.frombuffer(base64.b64decode(content), np.uint8).reshape(height, width, 4)


def fields(page):
    return dict(part.split("=") for part in page.evaluate("location.hash").removeprefix("#").split("&"))


def running(server):
    text = server.ask("GET", "/metrics")[2].decode()
    found = re.findall(r'zipar:num_requests_(?:running|waiting)\{model_name="(?:emoji|words|clothes)"\} (\S+)', text)
    assert len(found) == 6
    return sum(map(float, found))


def test_a_picture_appears_token_by_token(opened, emoji, helpers):
    page = opened()
    page.get_by_role("textbox", name="Prompt", exact=True).fill(PROMPT)
    page.get_by_role("textbox", name="Seed").fill("7")
    page.get_by_role("button", name="Generate").click()
    expect(page.get_by_text(re.compile(r"^pass \d+, [\d.]+ s$"))).to_be_visible()
    come = (canvas(page)[..., 3] > 0).mean()
    assert 0 < come < 1
    expect(page.get_by_role("img", name=f"{PROMPT}, seed 7, {TITLE}, being painted")).to_be_visible()
    expect(page.get_by_role("button", name="Replay")).to_be_visible()

    made = emoji(PROMPT, seed=7)
    expected = np.asarray(made.images[0])
    passes = made.stats.forward_passes
    expect(page.locator("figcaption")).to_contain_text(f"{passes} passes, ")
    expect(page.get_by_role("status")).to_have_text(f"Done in {passes} passes.")
    shown = canvas(page)
    assert np.array_equal(shown[5::10, 5::10, :3], expected)
    with page.expect_download() as download:
        page.get_by_role("link", name=f"Download {PROMPT}, seed 7").click()
    assert download.value.suggested_filename == "zipar-7.png"
    assert np.array_equal(helpers.pixels(download.value.path().read_bytes()), expected)

    born = made.born[0]
    for after in (1, 2, passes // 2, passes - 1, passes):
        page.get_by_role("slider", name="Pass").fill(str(after))
        expect(page.locator("#passed")).to_have_text(f"Pass {after} of {passes}")
        cells = canvas(page)[20::40, 20::40, 3] > 0
        assert np.array_equal(cells, born < after)
    page.get_by_text("Order", exact=True).click()
    colors = canvas(page)[20::40, 20::40, :3].reshape(-1, 3)
    assert len(np.unique(colors, axis=0)) > passes / 2
    page.get_by_role("button", name="Replay").click()
    expect(page.locator("#passed")).not_to_have_text(f"Pass {passes} of {passes}")
    expect(page.locator("#passed")).to_have_text(f"Pass {passes} of {passes}")


@pytest.mark.parametrize("other", ["jacobi:8", "zipar:2"])
def test_two_strategies_side_by_side(opened, pipes, other):
    page = opened(f"{WORDS}&seed=3&n=2&strategy={other}&compare=raster")
    expect(page.get_by_label("Other strategy", exact=True)).to_have_value(other)
    paint(page)
    made = [pipes["words"]("a red fox", seed=3, num_images_per_prompt=2, strategy=each) for each in (other, "raster")]
    equal = int((made[0].tokens == made[1].tokens).sum())
    assert (equal == 72) == (other == "jacobi:8")
    told = "Identical: all 72 tokens are equal" if equal == 72 else f"{equal} of 72 tokens are equal"
    expect(page.locator("#verdict")).to_contain_text(told)
    for i, image in enumerate(image for pair in zip(*(each.images for each in made), strict=True) for image in pair):
        sharp = canvas(page, i)
        step = len(sharp) // 6
        assert np.array_equal(sharp[step // 2 :: step, step // 2 :: step, :3], np.asarray(image))
    page.get_by_text("Differences").click()
    grey = (canvas(page)[..., :3].astype(int) - np.array([127, 127, 127]))[step // 2 :: step, step // 2 :: step]
    same = made[0].tokens[0] == made[1].tokens[0]
    assert (abs(grey[same]).max() < 30) == bool(same.any())


def test_a_clip_plays_above_its_frames(opened, clips, helpers, tmp_path):
    page = opened("#model=clips&prompt=a+red+fox&seed=3&strategy=zipar:2&compare=raster")
    paint(page)
    made, other = (clips("a red fox", seed=3, strategy=strategy) for strategy in ("zipar:2", "raster"))
    expected, born = np.stack(made.videos[0].frames), made.born[0]
    expect(page.locator("#verdict")).to_contain_text(f"{(made.tokens == other.tokens).sum()} of 48 tokens are equal")
    expect(
        page.get_by_role("img", name="a red fox, clip of 3 frames, seed 3, zipar:2", exact=True).first
    ).to_be_visible()
    expect(page.get_by_text("Clip", exact=True)).to_be_visible()

    def strip():
        """The frames side by side, 80 pixels each and 5 between them."""
        held = canvas(page, 1)
        return np.stack([held[5:85, 5 + 85 * i : 85 + 85 * i] for i in range(3)])

    def playing():
        shown = canvas(page)[40::80, 40::80, :3]
        return next((i for i in range(3) if np.array_equal(shown, expected[i])), None)

    assert np.array_equal(strip()[:, 5::10, 5::10, :3], expected)
    seen = set()
    helpers.until(lambda: seen.add(playing()) or seen >= {0, 1, 2})
    page.get_by_role("slider", name="Pass").fill("12")
    assert np.array_equal(strip()[:, 10::20, 10::20, 3] == 255, born < 12)
    page.get_by_text("Order", exact=True).click()
    page.get_by_role("slider", name="Pass").press("End")
    colors = [np.unique(frame[10::20, 10::20, :3].reshape(-1, 3), axis=0) for frame in strip()]
    assert [len(each) for each in colors] == [len(np.unique(frame)) for frame in born]
    with page.expect_download() as download:
        page.get_by_role("link", name="Download a red fox, clip of 3 frames").first.click()
    download.value.save_as(tmp_path / "clip.png")
    assert np.array_equal(np.stack(Video.load(tmp_path / "clip.png").frames), expected)

    page.reload()
    page.get_by_role("region", name="History").get_by_role("button").nth(1).click()
    expect(page.locator("#passed")).to_be_visible()
    assert np.array_equal(strip()[:, 5::10, 5::10, :3], expected)
    page.locator("#model").select_option("words")
    page.locator("#compare").select_option("")
    paint(page)
    expect(page.get_by_text("Picture", exact=True)).to_be_visible()
    expect(page.locator("canvas")).to_have_count(1)


def test_an_address_has_all_fields(opened, pipes):
    wanted = {
        "model": "words", "prompt": "a red fox", "negative_prompt": "rain", "size": "6x6", "n": "2", "seed": "11",
        "strategy": "zipar:4", "compare": "zipar:3", "guidance_scale": "2.5", "temperature": "0.7", "top_k": "9",
        "top_p": "0.8", "min_p": "0.01",
    }  # fmt: skip
    page = opened()
    page.get_by_label("Model").select_option("words")
    page.get_by_text("More", exact=True).click()
    for name, value in wanted.items():
        field = page.locator(f"#{name}")
        if name == "compare":
            field.select_option("other")
            page.get_by_label("Other strategy to compare with").fill(value)
        elif field.evaluate("field => field.tagName") == "SELECT":
            field.select_option(value)
        else:
            field.fill(value)
    expect(page.get_by_label("A new one each time")).not_to_be_checked()
    paint(page)
    page.get_by_role("button", name="Copy link").click()
    expect(page.get_by_role("status")).to_contain_text("link is")
    address = page.evaluate("location.hash")

    for again in (opened(address), page):
        again.reload()
        expect(again.locator("#prompt")).to_have_value("a red fox")
        for name, value in wanted.items():
            expect(again.locator("#compare_other" if name == "compare" else f"#{name}")).to_have_value(value)
        expect(again.get_by_label("A new one each time")).not_to_be_checked()
        assert again.evaluate("location.hash") == address
    other = opened(address)
    paint(other)
    expected = pipes["words"](
        *("a red fox",), seed=12, strategy="zipar:4", negative_prompt="rain", guidance_scale=2.5, temperature=0.7,
        top_k=9, top_p=0.8, min_p=0.01,
    )  # fmt: skip
    step = len(shown := canvas(other, 2)) // 6
    assert np.array_equal(shown[step // 2 :: step, step // 2 :: step, :3], np.asarray(expected.images[0]))


def test_seeds_are_drawn_anew_unless_kept(opened):
    page = opened(WORDS)
    seeds = []
    for _ in range(3):
        paint(page)
        seeds.append(page.get_by_role("textbox", name="Seed").input_value())
    assert len(set(seeds)) == 3
    page.get_by_label("A new one each time").uncheck()
    before = canvas(page)
    paint(page)
    assert page.get_by_role("textbox", name="Seed").input_value() == seeds[-1]
    assert np.array_equal(canvas(page), before)


def test_history(opened, tmp_path):
    page = opened(f"{WORDS}&seed=1&compare=raster")
    expect(page.get_by_role("region", name="History")).to_be_hidden()
    paint(page)
    kept = canvas(page)
    page.locator("#compare").select_option("")
    page.get_by_role("textbox", name="Prompt", exact=True).fill("a blue car")
    paint(page)
    items = page.get_by_role("region", name="History").get_by_role("listitem")
    expect(items).to_have_count(2)
    page.reload()
    expect(items).to_have_count(2)
    items.nth(1).get_by_role("button").first.click()
    expect(page.get_by_role("textbox", name="Prompt", exact=True)).to_have_value("a red fox")
    expect(page.locator("#verdict")).to_contain_text("tokens are equal")
    assert np.array_equal(canvas(page), kept)
    page.get_by_role("button", name="Delete a blue car").click()
    expect(items).to_have_count(1)
    page.get_by_role("button", name="Delete all").click()
    expect(page.get_by_role("region", name="History")).to_be_hidden()
    page.reload()
    expect(page.locator("#strategy option").first).to_be_attached()
    expect(items).to_have_count(0)
    count = page.evaluate("""async () => {
        const past = await import("./history.js");
        for (let i = 0; i < past.MOST + 3; i++) await past.add({ i });
        const all = await past.all();
        await past.clear();
        return [past.MOST, all.length, all[0].i];
    }""")
    assert count == [40, 40, 42]


def test_a_picture_brings_its_settings_back(opened, site, tmp_path):
    fields = {"model": "words", "prompt": "a \u2603 fox", "seed": 5, "strategy": "zipar:3", "top_k": 4}
    content = site.images(**fields)["data"][0]["b64_json"]
    (tmp_path / "fox.png").write_bytes(base64.b64decode(content))
    (tmp_path / "no.png").write_bytes(b"no picture")
    page = opened()
    page.get_by_text("More", exact=True).click()
    page.get_by_label("Settings of a picture").set_input_files(tmp_path / "no.png")
    expect(page.get_by_role("status")).to_contain_text("holds no settings")
    page.get_by_label("Settings of a picture").set_input_files(tmp_path / "fox.png")
    expect(page.get_by_label("Other strategy", exact=True)).to_have_value("zipar:3")
    for name in ("model", "prompt", "seed", "top_k"):
        expect(page.locator(f"#{name}")).to_have_value(str(fields[name]))


def test_words_of_the_model(opened):
    page = opened()
    page.get_by_role("group", name="Examples").get_by_role("button").first.click()
    prompt = page.get_by_role("textbox", name="Prompt", exact=True)
    expect(prompt).not_to_have_value("")
    prompt.fill("a red apple on a blue background")
    page.get_by_text("Words it knows").click()
    expect(page.get_by_role("button", name="apple", exact=True)).to_have_attribute("aria-pressed", "true")
    page.get_by_role("button", name="banana", exact=True).click()
    page.get_by_role("button", name="pink background", exact=True).click()
    page.get_by_role("button", name="top left", exact=True).click()
    expect(prompt).to_have_value("a banana on a pink background, top left")
    expect(page.get_by_role("button", name="top", exact=True)).to_have_attribute("aria-pressed", "false")
    page.get_by_label("Model").select_option("words")
    expect(page.get_by_text("Words it knows")).to_be_hidden()


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("prompt", "", "prompt '' is not possible"),
        ("prompt", "a shiny spaceship", "no object that the model knows"),
        ("seed", "-3", "seed -3 is not possible"),
        ("seed", "many", "seed 'many' is not possible"),
        ("seed", "99999999999999999999", "is too large for this page"),
        ("top_p", "7", "top_p 7"),
        ("guidance_scale", "-1", "guidance_scale -1"),
        ("strategy", "zipar:0", "window 0 is not possible"),
        ("compare", "diagonal", "strategy 'diagonal' is unknown"),
    ],
)
def test_errors_stand_beside_their_field(opened, field, value, told):
    page = opened("#" if field == "compare" else "#prompt=a+lemon")
    if field == "compare":  # after the first of the two
        page.goto(page.url.split("#")[0] + WORDS)
    page.get_by_text("More", exact=True).click()
    if field in ("strategy", "compare"):
        page.locator(f"#{field}").select_option("other")
        field += "_other"
    page.locator(f"#{field}").fill(value)
    page.get_by_role("button", name="Generate").click()
    alert = page.locator(".field").get_by_role("alert")
    expect(alert).to_contain_text(told)
    bad = page.locator(f"#{field}")
    expect(bad).to_have_attribute("aria-invalid", "true")
    expect(bad).to_be_focused()
    assert bad.evaluate("field => document.getElementById(field.getAttribute('aria-describedby')).textContent")
    expect(page.get_by_role("button", name="Cancel")).to_be_hidden()


def test_a_server_that_is_gone_or_full(opened, site, helpers):
    page = opened(WORDS)
    page.route("**/v1/images/generations", lambda route: route.abort())
    page.get_by_role("button", name="Generate").click()
    expect(page.locator("#error")).to_have_text("The server does not answer: is it running?")
    full = {"error": {"message": "64 images wait already: try again in 7 s", "param": None}}
    page.unroute("**/v1/images/generations")
    page.route("**/v1/images/generations", lambda route: route.fulfill(status=503, body=json.dumps(full)))
    page.get_by_role("button", name="Generate").click()
    expect(page.locator("#error")).to_have_text("64 images wait already: try again in 7 s")
    page.unroute("**/v1/images/generations")
    paint(page)
    expect(page.locator("#error")).to_be_empty()


@pytest.mark.parametrize("leave", ["Esc", "button", "tab"])
def test_cancelling_frees_the_server(opened, site, gate, helpers, leave):
    page = opened(f"{WORDS}&n=4")
    page.get_by_role("button", name="Generate").click()
    helpers.until(lambda: running(site) == 4)
    expect(page.get_by_role("status")).to_have_text("Painting…")
    if leave == "tab":
        page.close()
    elif leave == "Esc":
        page.keyboard.press("Escape")
    else:
        page.get_by_role("button", name="Cancel").click()
    helpers.until(lambda: all(image.job.cancelled for image in site.scheduler._images))
    gate.set()
    helpers.until(lambda: running(site) == 0)
    if leave != "tab":
        expect(page.get_by_role("status")).to_have_text("Cancelled.")
        paint(page)


def test_with_the_keyboard_alone(opened):
    page = opened("#model=words")
    press, focused = page.keyboard.press, "document.activeElement.id || document.activeElement.textContent"
    press("Tab")
    assert page.evaluate(focused) == "model"
    press("Tab")
    page.keyboard.type("a red fox")
    press("Enter")
    expect(page.get_by_role("status")).to_contain_text("Done")
    expect(page.locator("#generate")).not_to_have_attribute("aria-disabled", "true")
    visited = []
    for _ in range(40):
        press("Tab")
        visited.append(page.evaluate(focused))
        shown = "document.activeElement.name === 'view' ? document.activeElement.nextSibling : document.activeElement"
        assert page.evaluate(f"getComputedStyle({shown}).outlineWidth") == "3px", visited[-1]
        if visited[-1] == "pass":
            break
    assert {"generate", "strategy", "compare", "seed", "random", "guidance_scale", "size", "n", "play"} <= set(visited)
    press("Home")
    expect(page.locator("#passed")).to_contain_text("Pass 1 of")
    page.get_by_role("textbox", name="Seed").press("Control+Enter")
    expect(page.get_by_role("region", name="History").get_by_role("listitem")).to_have_count(2)


def test_what_is_read_aloud(opened):
    page = opened(f"{WORDS}&seed=3&strategy=zipar:4&compare=raster")
    page.get_by_text("More", exact=True).click()
    paint(page)
    expect(page.get_by_role("region", name="History")).to_be_visible()
    expect(page.locator("body")).to_match_aria_snapshot("""
        - banner:
          - heading "ZipAR" [level=1]
          - combobox "Model"
        - main:
          - form "What to paint":
            - textbox "Prompt"
            - button "Generate"
            - group "Examples"
            - combobox "Strategy"
            - combobox "Compare with"
            - textbox "Seed": "3"
            - checkbox "A new one each time"
            - spinbutton "Guidance"
            - combobox "Size"
            - combobox "Number"
            - group:
              - textbox "Negative prompt"
              - spinbutton "Temperature"
              - spinbutton "Top-k"
              - spinbutton "Top-p"
              - spinbutton "Min-p"
          - region "Pictures":
            - figure:
              - img "a red fox, seed 3, ZipAR, window 4"
              - link "Download a red fox, seed 3, ZipAR, window 4"
            - figure:
              - img "a red fox, seed 3, Raster order"
            - paragraph: /tokens are equal/
            - group "Order of decoding":
              - button "Replay"
              - slider "Pass"
              - group "Show":
                - radio "Picture" [checked]
                - radio "Order"
                - radio "Differences"
            - status: Done.
        - region "History":
          - heading "History" [level=2]
          - list:
            - listitem:
              - button "a red fox, seed 3, ZipAR, window 4"
              - button "Delete a red fox, seed 3, ZipAR, window 4"
    """)
    unnamed = """() => [...document.querySelectorAll("input, select, textarea")]
        .filter((each) => !each.labels.length && !each.getAttribute("aria-label")).map((each) => each.id)"""
    assert page.evaluate(unnamed) == []


@pytest.mark.parametrize("width", [320, 375, 1280])
def test_nothing_is_wider_than_the_screen(opened, width):
    page = opened(f"{WORDS}&seed=3&compare=raster&n=2", viewport={"width": width, "height": 700})

    def check():
        wide = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        assert page.evaluate(wide) <= 0

    check()
    page.get_by_text("More", exact=True).click()
    paint(page)
    expect(page.get_by_role("region", name="History")).to_be_visible()
    check()
    page.get_by_label("Model").select_option("emoji")
    page.get_by_text("Words it knows").click()
    page.get_by_role("textbox", name="Prompt", exact=True).fill("w" * 200)
    page.get_by_role("button", name="Generate").click()
    expect(page.locator("#prompt_error")).to_be_visible()
    check()


CONTRASTS = """() => {
    const pen = Object.assign(document.createElement("canvas"), { width: 1, height: 1 }).getContext("2d");
    const channels = (color) => {
        pen.clearRect(0, 0, 1, 1); pen.fillStyle = color; pen.fillRect(0, 0, 1, 1);
        return [...pen.getImageData(0, 0, 1, 1).data];
    };
    const light = (color) => channels(color).slice(0, 3).map((v) => v / 255)
        .map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
        .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
    const behind = (each) => {
        const color = getComputedStyle(each).backgroundColor;
        return channels(color)[3] === 255 ? color : behind(each.parentElement);
    };
    const ratio = (a, b) => (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    const found = [];
    for (const each of document.body.querySelectorAll("*")) {
        const style = getComputedStyle(each);
        const says = [...each.childNodes].some((node) => node.nodeType === 3 && node.data.trim())
            || (each.value && each.type !== "range");
        if (!says || !each.checkVisibility({ opacityProperty: true, visibilityProperty: true })) continue;
        const name = each.id || each.textContent.trim().slice(0, 30);
        found.push([name, ratio(light(style.color), light(behind(each)))]);
        if (each.matches("input:not([type=radio], [type=checkbox], [type=range]), select, textarea")) {
            const placeholder = getComputedStyle(each, "::placeholder").color;
            found.push([name + " placeholder", ratio(light(placeholder), light(behind(each)))]);
            found.push([name + " edge", ratio(light(style.borderTopColor), light(behind(each))) * 1.5]);
        }
    }
    return found;
}"""
"""Of every text, and 1.5 times those of edges of fields, which may be 3."""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast(opened, gate, scheme):
    page = opened(f"{WORDS}&seed=3&compare=raster", color_scheme=scheme, reduced_motion="reduce")

    def check():
        found = page.evaluate(CONTRASTS)
        assert len(found) > 30
        assert not [each for each in found if each[1] < 4.5]

    page.get_by_text("More", exact=True).click()
    check()
    page.get_by_role("button", name="Generate").click()
    expect(page.get_by_role("button", name="Cancel")).to_be_visible()
    gate.set()
    expect(page.get_by_role("button", name="Replay")).to_be_visible()
    page.locator("#top_k").fill("-1")
    page.get_by_role("button", name="Generate").click()
    expect(page.locator("#top_k_error")).to_be_visible()
    page.get_by_label("Model").select_option("emoji")
    page.get_by_text("Words it knows").click()
    page.locator("#entries li").first.hover()
    check()
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", ground))) < 150) == (scheme == "dark")


def test_a_server_that_wants_a_key(serving, opened, browser):
    with serving(api_key="sesame") as server:
        context = browser.new_context()
        page = context.new_page()
        page.goto(f"{server.url}/{WORDS}&seed=4")
        expect(page.locator("#api_key_error")).to_contain_text("API key is wrong or missing")
        expect(page.get_by_label("API key")).to_be_focused()
        page.get_by_label("API key").fill("sesam")
        page.keyboard.press("Enter")
        expect(page.locator("#api_key_error")).to_contain_text("API key is wrong or missing")
        page.get_by_label("API key").fill("sesame")
        page.keyboard.press("Enter")
        expect(page.get_by_role("status")).to_contain_text("Done")
        expect(page.get_by_label("API key")).to_be_hidden()
        expect(page.get_by_role("textbox", name="Prompt", exact=True)).to_have_value("a red fox")
        page.reload()
        paint(page)
        context.close()
