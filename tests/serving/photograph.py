"""Photographs of the page: python tests/serving/photograph.py FOLDER, or docs/page.png for the documents' one alone."""

import os
import re
import subprocess
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

CHROMIUM = os.environ.get("CHROMIUM", "/usr/lib/chromium/chromium-headless-shell")
SETTINGS = "#prompt=a+large+red+strawberry+in+the+center+on+a+blue+background,+3d+style&seed=7"


def painted(page):
    page.get_by_role("button", name="Generate").click()
    page.get_by_role("button", name="Replay").wait_for(timeout=120_000)


def states(page, url):
    """Goes through what the page can look like, and names it."""
    page.goto(url)
    page.get_by_role("button", name="a large").first.wait_for()
    yield "empty"
    page.goto(url + SETTINGS)
    page.reload()
    page.locator("#strategy").select_option("raster")
    page.get_by_role("button", name="Generate").click()
    page.get_by_text(re.compile(r"^pass 1[2-9]\d,")).wait_for()
    yield "running"
    page.keyboard.press("Escape")
    page.locator("#strategy").select_option(index=0)
    page.get_by_text("Words it knows").click()
    painted(page)
    yield "done"
    page.get_by_text("Words it knows").click()
    page.locator("#compare").select_option("raster")
    painted(page)
    yield "compare"
    page.locator("#pass").fill("40")
    yield "midway"
    page.get_by_text("Order", exact=True).click()
    yield "order"
    page.locator("#compare").select_option("")
    page.locator("#n").select_option("4")
    page.locator("#prompt").fill("a small banana on a pink background")
    painted(page)
    page.get_by_text("More", exact=True).click()
    yield "several"
    page.locator("#top_p").fill("7")
    page.get_by_role("button", name="Generate").click()
    page.locator("#top_p_error").wait_for()
    page.locator("#prompt").fill("a shiny spaceship")
    page.locator("#top_p").fill("")
    page.get_by_role("button", name="Generate").click()
    page.locator("#prompt_error").wait_for()
    yield "error"


def main(target):
    command = [sys.executable, "-m", "zipar", "serve", "--port", "0"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        url = next(found[1] for line in server.stdout if (found := re.match(r"(http\S+/)v1 is ready", line)))
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
            if target.suffix == ".png":
                page = browser.new_page(viewport={"width": 1200, "height": 760})
                for state in states(page, url):
                    if state == "midway":
                        page.screenshot(path=target)
                        break
                return
            target.mkdir(parents=True, exist_ok=True)
            for width in (1280, 375):
                for scheme in ("light", "dark"):
                    page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
                    for state in states(page, url):
                        page.screenshot(path=target / f"{width}-{scheme}-{state}.png", full_page=True)
                    page.close()
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
