"""The page without its looks: what it may reach, what it reads, and whose turn it is."""

import io
import json
import re
import socket
import subprocess
import zipfile
from dataclasses import fields, replace
from importlib import import_module
from threading import Event

import pytest
from pages import CONFIG, PROMPTS, write_run
from typer.testing import CliRunner

from consist.app.command import command_of
from consist.app.jobs import Jobs, Stopped
from consist.app.limits import Limits
from consist.app.root import RunRoot
from consist.app.settings import Form, check_name, read_form, read_lines
from consist.cli import app
from consist.errors import ConsistError
from consist.methods import METHODS, build
from consist.runs.config import RunConfig

WAIT = 60  # seconds, for what comes at once on a quiet machine
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


@pytest.fixture(scope="module")
def page():
    """The module of the page; Gradio takes seconds to import, so only where it is needed."""
    pytest.importorskip("gradio", reason="the page needs it: pip install 'consist[app]'")
    return import_module("consist.app.page")


@pytest.fixture(scope="module")
def servers():
    pytest.importorskip("gradio", reason="the page needs it: pip install 'consist[app]'")
    return import_module("consist.app.server")


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
def test_the_settings_of_a_method_are_its_own(page, method):
    """What the page shows for a method, sent as it is, changes nothing of it."""
    keys = ("keys_rule", "keys_amount", "values_rule", "values_amount", "anchors", "strength")
    shown = [change["value"] for change in page.show_method(method)[1:]]
    form = replace(FORM, method=method, **dict(zip(keys, shown, strict=True)))
    assert read_form(form, ("mini",)).method == {"name": method}


def test_a_prompt_is_added_with_its_subject(page):
    assert (
        page.add_line("a red cat in Paris\na red cat on the moon").splitlines()[2] == "a red cat "
    )
    assert read_lines(page.remove_line(page.add_line("a\nb"))) == ("a", "b")
    assert page.add_line("") == ""


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
        assert begun.wait(WAIT)
        with jobs.start("b", lambda watch: "next") as second:
            assert (jobs.ahead(first), jobs.ahead(second)) == (0, 1)
            assert not second.wait(0.05)
            with pytest.raises(ConsistError, match="drawing already"), jobs.start("a", work):
                pass
            with pytest.raises(ConsistError, match="2 others are waiting"), jobs.start("c", work):
                pass
            go.set()
            assert second.wait(WAIT)
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
        assert begun.wait(WAIT)
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
        assert begun.wait(WAIT)
    assert ended.wait(WAIT)
    assert not jobs.busy("a")


# the port


def test_a_port_that_is_taken_is_one_sentence(servers, tmp_path):
    studio = servers.Studio(tmp_path, ("mini",), Limits())
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        message = f"127.0.0.1:{port} cannot be bound to: Address"
        with pytest.raises(ConsistError, match=message):
            servers.make_server(studio, "127.0.0.1", port)
    studio.jobs.close()
