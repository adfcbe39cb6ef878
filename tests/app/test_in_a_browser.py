"""What a visitor sees of the page, in a browser; the server is a process of its own.

Every day: drawing, refusals, and what the server gives. The rest is slow, and its parts are tested
without a browser in ``test_app.py`` and with the runs.
"""

import io
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
import zipfile
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import pytest
from browsing import SECONDS, open_browser
from pages import PROMPTS, write_run
from PIL import Image

from consist.runs.drawing import complete
from consist.runs.folder import RunFolder

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        find_spec("gradio") is None, reason="the page needs it: pip install 'consist[app]'"
    ),
]

CONSIST = Path(sys.executable).parent / "consist"


@contextmanager
def serving(folder):
    """``consist app`` in a process of its own, and its address; it must not fail in any way."""
    command = [CONSIST, "app", "--root", folder / "runs", "--port", "0"]
    log = folder / "errors.txt"
    with log.open("w") as errors:
        process = subprocess.Popen(
            list(map(str, command)),
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env={**os.environ, "CONSIST_HOME": str(folder)},
        )
    try:
        yield process, process.stdout.readline().split()[0]
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        process.communicate(timeout=SECONDS)
    text = log.read_text()
    assert process.returncode == 130, text
    assert "Traceback" not in text, text
    assert "stopped" in text


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("app")
    with serving(folder) as (_, address):
        yield folder / "runs", address


@pytest.fixture(scope="module")
def chromium():
    with open_browser() as shell:
        yield shell


@pytest.fixture
def visit(chromium, server):
    """Opens the page in a window of its own; fails on its errors, and if it asks others."""
    contexts, complaints = [], []

    def open_(address=server[1], **more):
        context = chromium.new_context(viewport={"width": 1280, "height": 900}, **more)
        contexts.append(context)
        context.set_default_timeout(1000 * SECONDS)
        page = context.new_page()
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on(
            "request",
            lambda request: (
                complaints.append(request.url[:80])
                if not request.url.startswith((address, "data:", "blob:"))
                else None
            ),
        )
        # what is filled in before the page is wired would be lost; then it asks for its lists
        with page.expect_response(lambda response: "/queue/join" in response.url):
            page.goto(address)
        page.wait_for_selector("#draw")
        settle(page)
        return page

    yield open_
    for context in contexts:
        context.close()
    assert complaints == []


def settle(page):
    """Waits until the page has nothing to do; Gradio fills in what it shows for the first time."""
    page.evaluate("new Promise((done) => requestIdleCallback(() => requestIdleCallback(done)))")


def set_(page, seeds="", steps=2):
    """Opens the settings, and fills some in."""
    page.get_by_role("button", name="Seeds, steps and size").click()
    page.wait_for_selector("#seeds textarea")
    settle(page)
    page.fill("#steps textarea", str(steps))
    page.fill("#seeds textarea", str(seeds))


def draw(page, prompts, count=None, **settings):
    """Draws prompts, and waits for so many pictures."""
    page.fill("#prompts textarea", "\n".join(prompts))
    set_(page, **settings)
    page.click("#draw")
    wait_until_done(page, count or len(prompts))


def wait_until_done(page, count, said="Done"):
    page.wait_for_function(
        """([count, said]) => document.querySelectorAll('#gallery img').length === count
        && document.querySelector('#status').innerText.includes(said)""",
        arg=[count, said],
    )


def sources(page):
    return page.eval_on_selector_all("#gallery img", "all => all.map((one) => one.src)")


def texts_of(page):
    """The text inside each picture that is seen."""
    for source in sources(page):
        body = page.request.get(source).body()
        yield Image.open(io.BytesIO(body)).text


def choose(page, selector, text):
    page.click(f"{selector} input")
    page.get_by_role("option", name=text).click()


def test_two_prompts_become_two_pictures(visit, server):
    page = visit()
    assert "No pictures yet" in page.inner_text("#gallery")
    prompts = ("a dog in Paris", "a dog on the moon")
    draw(page, prompts)
    assert [text["prompt"] for text in texts_of(page)] == list(prompts)
    assert [text["seed"] for text in texts_of(page)] == ["0", "1"]
    alts = page.eval_on_selector_all("#gallery img", "all => all.map((one) => one.alt)")
    assert alts == [f"Picture {number}: {prompt}" for number, prompt in enumerate(prompts, 1)]
    assert page.locator("#gallery figcaption").all_inner_texts()[1] == "2 a dog on the moon seed 1"
    page.get_by_role("tab", name="Repeat and download").click()
    command = page.input_value("#command textarea")
    assert command == "consist batch --steps 2 'a dog in Paris' 'a dog on the moon'"
    link = page.get_by_role("link", name="Download the run")
    archive = page.request.get(f"{server[1]}/{link.get_attribute('href')}").body()
    names = zipfile.ZipFile(io.BytesIO(archive)).namelist()
    assert [Path(name).name for name in names] == ["000.png", "001.png", "grid.png", "run.json"]


@pytest.mark.slow
def test_a_comparison_fills_while_it_is_drawn(visit):
    page = visit()
    page.check("#compare input")
    page.fill("#prompts textarea", "a dog in Paris\na dog on the moon")
    set_(page, seeds=11, steps=10)
    page.click("#draw")
    page.wait_for_function(
        """document.querySelectorAll('#gallery img').length === 2
        && document.querySelectorAll('#gallery .missing').length === 2
        && /Drawing: \\d of 4 pictures, \\d+ s left/.test(
            document.querySelector('#status').innerText)"""
    )
    wait_until_done(page, 4)
    assert [json.loads(text["consist"])["row"] for text in texts_of(page)] == [
        *("matched", "matched", "isolated", "isolated"),
    ]
    shared, _, isolated, _ = (page.request.get(source).body() for source in sources(page))
    assert shared != isolated


@pytest.mark.slow
def test_one_picture_is_redone(visit):
    page = visit()
    draw(page, PROMPTS, seeds=21)
    before = sources(page)
    page.get_by_role("tab", name="Redo one").click()
    choose(page, "#picture", "a cat on the moon")
    page.fill("#new-prompt textarea", "a cat in a garden")
    page.click("#redo")
    page.wait_for_function("document.querySelector('#gallery').innerText.includes('garden')")
    wait_until_done(page, 2)
    after = sources(page)
    assert after[0] == before[0]
    assert after[1] != before[1]
    assert [text["prompt"] for text in texts_of(page)] == ["a cat in Paris", "a cat in a garden"]


@pytest.mark.slow
def test_a_subject_goes_on_in_the_run_and_under_its_name(visit):
    page = visit()
    draw(page, PROMPTS, seeds=31)
    page.fill("#scenes textarea", "a cat on a beach")
    page.click("#tools #extend")
    wait_until_done(page, 3)
    assert [text["seed"] for text in texts_of(page)] == ["31", "32", "33"]
    page.get_by_role("tab", name="Keep the subject").click()
    page.wait_for_selector("#name textarea")
    settle(page)
    page.fill("#name textarea", "tom")
    page.click("#tools #save")
    page.wait_for_function("document.querySelector('#status').innerText.includes('Kept as tom')")
    page.click("#tools #save")
    page.wait_for_function("document.querySelector('#status').innerText.includes('already')")

    other = visit()
    other.get_by_role("button", name="Subject and model").click()
    choose(other, "#like", "tom")
    other.wait_for_selector("#method", state="hidden")
    other.fill("#prompts textarea", "a cat in a forest")
    other.click("#draw")
    wait_until_done(other, 1)
    (text,) = texts_of(other)
    assert json.loads(text["consist"])["anchor_seeds"] == [31, 32]


@pytest.mark.slow
def test_a_long_run_is_canceled_and_goes_on(visit, server):
    page = visit()
    page.fill("#prompts textarea", "a robot in Paris\na robot on the moon")
    set_(page, steps=100)
    page.click("#draw")
    page.wait_for_function("document.querySelector('#status').innerText.includes('left')")
    page.click("#cancel")
    page.wait_for_function("document.querySelector('#status').innerText.includes('Stopped')")
    assert page.is_enabled("#draw")
    assert page.is_visible("#finish")
    (run,) = server[0].glob("a-robot-*")
    assert not RunFolder(run).read_record()["finished"]

    # another window takes it up once this one lets go of it
    other = visit()
    other.get_by_role("button", name="Earlier runs").click()
    choose(other, "#runs", run.name)
    other.click("#open")
    other.wait_for_function(
        "document.querySelector('#status').innerText.includes('another window')"
    )
    page.context.close()
    for _ in range(10 * SECONDS):
        other.click("#open")
        other.wait_for_timeout(100)
        if "Opened" in other.inner_text("#status"):
            break
    assert other.locator("#gallery .missing").count() == 2
    assert other.is_visible("#finish")


@pytest.mark.parametrize(
    ("prompts", "steps", "sentence"),
    [
        ("a cat", 500, "500 denoising steps were asked for, and this page draws at most 100."),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (
                ("", 2, "No prompt was given; give at least one."),
                (
                    "a cat\n" + "very " * 79,
                    2,
                    "The prompt has 316 tokens, the text encoder takes 38",
                ),
            )
        ),
    ],
)
def test_bad_input_is_said_in_the_page(visit, prompts, steps, sentence):
    page = visit()
    page.fill("#prompts textarea", prompts)
    set_(page, steps=steps)
    page.click("#draw")
    page.wait_for_selector("#status [role=alert]")
    assert page.inner_text("#status").startswith(sentence)
    toast = page.get_by_test_id("toast-body").inner_text()
    assert sentence[1:].rstrip(".") in toast
    assert "Traceback" not in page.content()
    page.wait_for_selector("#draw:not([disabled])")
    assert not page.is_visible("#cancel")


@pytest.mark.slow
def test_two_visitors_do_not_mix_their_pictures(visit):
    pages = [visit(), visit()]
    for page in pages:
        page.fill("#prompts textarea", "a pig in Paris\na pig on the moon")
        set_(page, seeds=41, steps=5)
    for page in pages:
        page.click("#draw")
    for page in pages:
        wait_until_done(page, 2)
    first, second = map(sources, pages)
    assert not {source.split("?")[0] for source in first} & {s.split("?")[0] for s in second}
    pages[0].get_by_role("tab", name="Redo one").click()
    pages[0].click("#redo")
    pages[0].wait_for_function("document.querySelector('#gallery').innerText.includes('seed 43')")
    wait_until_done(pages[0], 2)
    assert [text["seed"] for text in texts_of(pages[0])] == ["43", "42"]
    assert sources(pages[1]) == second
    assert [text["seed"] for text in texts_of(pages[1])] == ["41", "42"]


def test_a_prompt_is_text_and_nothing_else(visit):
    page, dialogs = visit(), []
    page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
    evil = "a cat {{value}} ${1+1} <img src=x onerror=alert(1)>"
    draw(page, [evil], seeds=51)
    assert page.locator("#gallery figcaption").inner_text() == f"1 {evil} seed 51"
    assert dialogs == []


@pytest.mark.parametrize("width", [360, pytest.param(768, marks=pytest.mark.slow)])
def test_a_narrow_screen_shows_all(visit, width):
    page = visit(color_scheme="dark")
    page.set_viewport_size({"width": width, "height": 800})
    for name in ("Subject and model", "What is shared", "Seeds, steps and size", "Earlier runs"):
        page.get_by_role("button", name=name).click()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    bare = page.eval_on_selector_all(
        "button, input, textarea",
        """all => all.filter((one) => one.offsetParent && !(one.textContent.trim() || one.ariaLabel
        || one.title || one.labels?.length)).map((one) => one.outerHTML.slice(0, 80))""",
    )
    assert bare == []


@pytest.mark.slow
def test_the_draw_button_is_reached_by_keys(visit):
    page = visit()
    page.focus("#prompts textarea")
    for _ in range(4):
        page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "draw"


def ask(address, path, **more):
    """The status and the headers that a path is answered with."""
    try:
        request = urllib.request.Request(f"{address}{path}", **more)
        with urllib.request.urlopen(request, timeout=SECONDS) as answer:
            return answer.status, answer.headers
    except urllib.error.HTTPError as error:
        with error:  # it holds the connection
            return error.code, error.headers


def test_the_server_gives_and_takes_nothing_else(server):
    runs, address = server
    write_run(runs.parent / "outside")
    (runs.parent / "secret.png").write_bytes(b"0")
    write_run(runs / "there")
    assert ask(address, "/pictures/there/000.png")[0] == 200
    for path in (
        "/pictures/there/run.json",
        "/pictures/..%2Foutside/000.png",
        "/pictures/there/..%2F..%2Foutside%2F000.png",
        "/archives/..%2Foutside",
        "/docs",
    ):
        assert ask(address, path)[0] == 404, path
    assert ask(address, f"/gradio_api/file={runs.parent}/secret.png")[0] in (403, 404)
    assert ask(address, "/gradio_api/upload", data=b"x", method="POST")[0] == 403
    assert ask(address, "/", headers={"Host": "evil.example"})[0] == 400
    assert "default-src 'self'" in ask(address, "/")[1]["Content-Security-Policy"]


@pytest.mark.slow
def test_ctrl_c_leaves_a_run_that_goes_on(visit, tmp_path, model_for):
    with serving(tmp_path) as (process, address):
        page = visit(address)
        page.fill("#prompts textarea", "\n".join(PROMPTS))
        set_(page, steps=60)
        page.click("#draw")
        # the record is written as the first step begins
        deadline = time.monotonic() + SECONDS
        while not list((tmp_path / "runs").glob("*/run.json")) and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        process.wait(SECONDS)
    (run,) = map(RunFolder, (tmp_path / "runs").iterdir())
    assert not run.read_record()["finished"]
    complete(run, run.read_config(), model_for=model_for)
    assert run.read_record()["finished"]
