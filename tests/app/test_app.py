"""The page: what it may reach, whose turn it is, and what a visitor sees of it in a browser."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
import zipfile
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from threading import Event

import pytest
from browsing import open_browser
from PIL import Image
from typer.testing import CliRunner

pytest.importorskip("gradio", reason="the page needs it: pip install 'consist[app]'")

from consist.app.actions import Studio
from consist.app.command import command_of
from consist.app.jobs import Jobs, Stopped
from consist.app.limits import Limits
from consist.app.page import add_line, remove_line, show_method
from consist.app.root import RunRoot
from consist.app.server import make_server
from consist.app.settings import Form, check_name, read_form, read_lines
from consist.cli import app
from consist.errors import ConsistError
from consist.methods import METHODS, build
from consist.runs.config import RunConfig
from consist.runs.drawing import complete
from consist.runs.folder import RunFolder
from consist.runs.versions import versions

CONSIST = Path(sys.executable).parent / "consist"
PROMPTS = ("a cat in Paris", "a cat on the moon")
CONFIG = RunConfig(prompts=PROMPTS, seeds=(0, 1), steps=2)
FORM = Form(
    prompts="\n".join(PROMPTS),
    compare=False,
    steps="2",
    seeds="",
    like="",
    model="mini",
    method="matched",
    keys_rule="identity",
    keys_amount=1.0,
    values_rule="identity",
    values_amount=1.0,
    anchors="all",
    strength=16.0,
    subject="",
    guidance="",
    size="",
    negative="",
    at_once="",
)


def write_run(folder, config=CONFIG):
    """A run as it is begun, with pictures that nobody drew."""
    run = RunFolder(folder)
    run.write_record({"config": config.to_json(), "versions": versions(config.model)})
    for row in ("", "isolated"):
        run.write_picture(0, row, Image.new("RGB", (8, 8)), {})
    return run


# paths


@pytest.fixture
def root(tmp_path):
    write_run(tmp_path / "runs" / "cat")
    write_run(tmp_path / "outside")
    (tmp_path / "runs" / "empty").mkdir()
    (tmp_path / "runs" / "link").symlink_to(tmp_path / "outside")
    return RunRoot(tmp_path / "runs")


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../outside", "cat/../cat", "/etc", "link", "empty", "none", "a\0b"]
)
def test_only_what_lies_in_the_root_is_a_run(root, name):
    assert root.find("cat").path == root.path / "cat"
    assert root.names() == ["cat"]
    for look in (root.find, root.pack, lambda name: root.picture(name, "000.png")):
        with pytest.raises(ConsistError, match="there is no run"):
            look(name)


@pytest.mark.parametrize(
    "file",
    ["run.json", "../cat/000.png", "isolated/../000.png", "001.png", "hidden/000.png", "000.png\n"],
)
def test_only_pictures_of_a_run_are_shown(root, file):
    assert root.picture("cat", "isolated/000.png").is_file()
    with pytest.raises(ConsistError, match="there is no picture"):
        root.picture("cat", file)


def test_a_link_out_of_a_run_is_not_followed(root, tmp_path):
    (root.path / "cat" / "002.png").symlink_to(tmp_path / "outside" / "000.png")
    with pytest.raises(ConsistError, match="there is no picture"):
        root.picture("cat", "002.png")
    assert "cat/002.png" not in zipfile.ZipFile(io.BytesIO(root.pack("cat"))).namelist()


def test_an_archive_holds_pictures_and_records_alone(root):
    (root.path / "cat" / "anchors.safetensors").write_bytes(b"0")
    (root.path / "cat" / ".000.png-draft").write_bytes(b"0")
    (root.path / "cat" / "000.old-1.png").write_bytes(b"0")
    names = zipfile.ZipFile(io.BytesIO(root.pack("cat"))).namelist()
    assert sorted(names) == [
        *("cat/000.old-1.png", "cat/000.png", "cat/isolated/000.png", "cat/run.json"),
    ]


def test_each_run_has_a_place_of_its_own(root):
    first = root.place(CONFIG)
    assert first.path.parent == root.path
    assert root.place(CONFIG, frozenset([first.path.name])).path.name == f"{first.path.name}-2"
    write_run(first.path)
    assert root.place(CONFIG) == first
    assert root.place(replace(CONFIG, compare=True)) == first
    write_run(first.path, replace(CONFIG, seeds=(0, 5)))
    assert root.place(CONFIG).path.name == f"{first.path.name}-2"


# limits and settings


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 101}, "101 denoising steps were asked for, and this page draws at most 100"),
        ({"width": 1032}, "1032 pixels a side"),
        ({"prompts": ("a cat",) * 25, "seeds": (0,) * 25}, "25 pictures in a run"),
        ({"prompts": ("a" * 401, "a")}, "401 letters in a prompt"),
    ],
)
def test_more_than_the_limits_is_refused(changes, message):
    Limits().check(CONFIG)
    with pytest.raises(ConsistError, match=message):
        Limits().check(replace(CONFIG, **changes))


def test_pictures_that_are_there_count():
    Limits(pictures=4).check_prompts(PROMPTS, drawn=2)
    with pytest.raises(ConsistError, match="5 pictures in a run"):
        Limits(pictures=4).check_prompts(PROMPTS, drawn=3)


def test_an_untouched_page_draws_what_the_command_draws():
    result = CliRunner().invoke(app, ["batch", *PROMPTS, "--steps", "2", "--dry-run"])
    told = json.loads(result.stdout)
    told.pop("out")
    assert read_form(FORM, ("mini",)) == RunConfig.from_json(told)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompts": " \n "}, "no prompt was given"),
        ({"seeds": "7 x"}, "seeds are whole numbers such as 7 or 7 8 9, not 'x'"),
        ({"seeds": "1 2 3"}, "3 seeds were given for 2 prompts"),
        ({"steps": "0"}, "steps must be between 1 and 1000"),
        ({"steps": "2.5"}, "steps must be a whole number, not '2.5'"),
        ({"guidance": "nan"}, "guidance must be between"),
        ({"size": "big"}, "size 'big' is neither"),
        ({"at_once": "0"}, "batch size must be between"),
        ({"model": "/etc/passwd"}, "unknown model '/etc/passwd'"),
        ({"method": "spektral"}, "did you mean 'spectral'"),
        ({"keys_rule": "__import__"}, "unknown spectrum"),
        ({"keys_rule": "energy", "keys_amount": 0.0}, "keys"),
        ({"strength": 0.0}, "strength is 0.0"),
        ({"like": "../../etc/passwd"}, "a subject's name has letters"),
        ({"like": "secret.json"}, "a subject's name has letters"),
    ],
)
def test_bad_input_is_one_sentence(changes, message):
    with pytest.raises(ConsistError, match=re.escape(message)):
        read_form(replace(FORM, **changes), ("mini",))


@pytest.mark.parametrize("name", ["", "a b", "../tom", "tom.json", "tom\n.json"])
def test_a_name_is_never_a_path(name):
    assert check_name(" tom ") == "tom"
    with pytest.raises(ConsistError, match="letters, digits"):
        check_name(name)


@pytest.mark.parametrize("method", METHODS)
def test_the_settings_of_a_method_are_its_own(method):
    """What the page shows for a method, sent as it is, changes nothing of it."""
    keys = ("keys_rule", "keys_amount", "values_rule", "values_amount", "anchors", "strength")
    shown = [change["value"] for change in show_method(method)[1:]]
    form = replace(FORM, method=method, **dict(zip(keys, shown, strict=True)))
    assert read_form(form, ("mini",)).method == {"name": method}


def test_a_prompt_is_added_with_its_subject():
    assert add_line("a red cat in Paris\na red cat on the moon").splitlines()[2] == "a red cat "
    assert read_lines(remove_line(add_line("a\nb"))) == ("a", "b")
    assert add_line("") == ""


CASES = [
    {},
    {"seeds": (7, 8), "compare": True, "batch_size": 2, "device": "cpu", "dtype": "float32"},
    {"seeds": (7, 3), "width": 64, "height": 128, "guidance": 2.5, "negative": "a dog's $HOME"},
    {"prompts": ("-a cat", "a 'cat' \"on\" `the` $moon\\"), "scheduler": "ddim", "steps": None},
    {"method": {"name": "sdsa", "subject": ["cat"], "anchors": "1", "mask_dropout": 0.25}},
    {"method": {"name": "shared", "window": [0.0, 0.8], "layers": ["mid_block", "up_blocks"]}},
    {
        **{"guidance_rescale": 0.7, "loras": ("a.safetensors",)},
        **{"lora_negative": 0.0, "lora_subject": ("cat", "red dog")},
    },
    {"model": "some/sdxl", "loras": ("a b.safetensors:0.5",), "embeddings": ("c.safetensors",)},
    {"anchor_prompts": PROMPTS, "anchor_seeds": (0, 1), "seeds": (4, 9), "backend": "torch"},
]


def test_no_setting_is_left_out_of_the_command_line():
    """Of a run that sees given pictures, the subject that is saved first knows them."""
    tried = {name for case in CASES for name in case}
    known = {field.name for field in fields(RunConfig)}
    assert known - tried == {"anchor_pictures", "anchor_digests", "cache"}


@pytest.mark.parametrize("changes", CASES)
def test_the_command_line_repeats_the_run(tmp_path, monkeypatch, changes):
    monkeypatch.setenv("CONSIST_HOME", str(tmp_path / "home"))
    config = replace(CONFIG, **changes)
    if config.anchor_prompts:
        config = replace(config, method={"name": "spectral", "anchors": 2})
    run = write_run(tmp_path / "a run", config)
    resolved = {"steps": 2, "guidance": None, "width": None, "height": None}
    run.write_record({**run.read_record(), "resolved": resolved})
    *before, last = command_of(run).splitlines()
    for line in before:
        assert typed(line).exit_code == 0
    told = json.loads(typed(last, "--dry-run").stdout)
    told.pop("out")
    again = RunConfig.from_json(told)
    assert build(again.method) == build(config.method)
    assert replace(again, method={}) == replace(config, method={})


def typed(line, *more):
    """What a shell makes of a line, and the command of that."""
    words = subprocess.run(["sh", "-c", f"printf '%s\\0' {line}"], capture_output=True, text=True)
    program, name, *arguments = words.stdout.split("\0")[:-1]
    assert program == "consist"
    return CliRunner().invoke(app, [name, *more, *arguments])


# jobs


@pytest.fixture
def jobs():
    jobs = Jobs(most=2)
    yield jobs
    jobs.close()


def test_one_job_runs_at_a_time_and_one_of_each_session_waits(jobs):
    begun, go = Event(), Event()

    def work(watch):
        begun.set()
        go.wait()
        watch(1, 2)
        return "drawn"

    with jobs.start("a", work) as first:
        assert begun.wait(5)
        with jobs.start("b", lambda watch: "next") as second:
            assert (jobs.ahead(first), jobs.ahead(second)) == (0, 1)
            assert not second.wait(0.05)
            with pytest.raises(ConsistError, match="drawing already"), jobs.start("a", work):
                pass
            with pytest.raises(ConsistError, match="2 others are waiting"), jobs.start("c", work):
                pass
            go.set()
            assert second.wait(5)
            assert (first.result(), second.result()) == ("drawn", "next")
            assert (first.done, first.count) == (1, 2)
    assert not jobs.busy("a")


def test_a_job_can_be_stopped_while_it_waits_and_while_it_runs(jobs):
    begun, hold = Event(), Event()

    def endless(watch):
        begun.set()
        while True:
            hold.wait(0.001)
            watch(0, 1)

    with jobs.start("a", endless) as first, jobs.start("b", endless) as second:
        assert begun.wait(5)
        jobs.stop("b")
        with pytest.raises(Stopped):
            second.result()
        assert not first.wait(0)
        jobs.stop("a")
        with pytest.raises(Stopped):
            first.result()


def test_leaving_a_job_stops_it(jobs):
    """As a visitor does who closes the page."""
    begun, ended = Event(), Event()

    def endless(watch):
        begun.set()
        try:
            while True:
                watch(0, 1)
        finally:
            ended.set()

    with jobs.start("a", endless):
        assert begun.wait(5)
    assert ended.wait(5)
    assert not jobs.busy("a")


# in a browser


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
        process.communicate(timeout=30)
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
        context.set_default_timeout(15_000)
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
        page.goto(address)
        page.wait_for_selector("#draw")
        # faster than any hand: what is filled in before the page is wired would be lost
        page.wait_for_timeout(1000)
        return page

    yield open_
    for context in contexts:
        context.close()
    assert complaints == []


def set_(page, seeds="", steps=2):
    """Opens the settings, and fills some in."""
    page.get_by_role("button", name="Seeds, steps and size").click()
    page.wait_for_timeout(500)
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


def test_a_subject_goes_on_in_the_run_and_under_its_name(visit):
    page = visit()
    draw(page, PROMPTS, seeds=31)
    page.fill("#scenes textarea", "a cat on a beach")
    page.click("#tools #extend")
    wait_until_done(page, 3)
    assert [text["seed"] for text in texts_of(page)] == ["31", "32", "33"]
    page.get_by_role("tab", name="Keep the subject").click()
    page.wait_for_timeout(500)  # Gradio fills in what a tab holds when it is first shown
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
    deadline = time.monotonic() + 15
    while "Opened" not in other.inner_text("#status") and time.monotonic() < deadline:
        other.click("#open")
        other.wait_for_timeout(300)
    assert other.locator("#gallery .missing").count() == 2
    assert other.is_visible("#finish")


@pytest.mark.parametrize(
    ("prompts", "steps", "sentence"),
    [
        ("", 2, "No prompt was given; give at least one."),
        ("a cat", 500, "500 denoising steps were asked for, and this page draws at most 100."),
        ("a cat\n" + "very " * 79, 2, "The prompt has 316 tokens, the text encoder takes 38"),
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


@pytest.mark.parametrize("width", [360, 768])
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
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, answer.headers
    except urllib.error.HTTPError as error:
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


def test_a_port_that_is_taken_is_one_sentence(tmp_path):
    studio = Studio(tmp_path, ("mini",), Limits())
    _, bound = make_server(studio, "127.0.0.1", 0)
    port = bound.getsockname()[1]
    with bound, pytest.raises(ConsistError, match=f"127.0.0.1:{port} cannot be bound to: Address"):
        make_server(studio, "127.0.0.1", port)
    studio.jobs.close()


def test_ctrl_c_leaves_a_run_that_goes_on(visit, tmp_path, model_for):
    with serving(tmp_path) as (process, address):
        page = visit(address)
        page.fill("#prompts textarea", "\n".join(PROMPTS))
        set_(page, steps=20)
        page.click("#draw")
        page.wait_for_function("document.querySelector('#status').innerText.includes('left')")
        process.send_signal(signal.SIGINT)
        process.wait(15)
    (run,) = map(RunFolder, (tmp_path / "runs").iterdir())
    assert not run.read_record()["finished"]
    complete(run, run.read_config(), model_for=model_for)
    assert run.read_record()["finished"]
