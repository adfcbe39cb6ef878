"""The report: one page that is whole, safe, true to the numbers, and works in a browser."""

import base64
import io
import json
import math
import re
import sys
from dataclasses import replace
from html.parser import HTMLParser
from random import Random

import pytest
from browsing import open_browser
from PIL import Image

from consist.errors import ConsistError
from consist.evaluation.intervals import Interval
from consist.evaluation.report import markdown_table, verdict, write_report
from consist.evaluation.report.pictures import encode_picture
from consist.evaluation.report.runs import (
    MAX_SETS,
    Story,
    choose_stories,
    gather_stories,
    read_groups,
)
from consist.evaluation.report.text import MINUS
from consist.evaluation.scores import (
    SCORES,
    Evaluation,
    SetScores,
    Summary,
    read_scores,
    summarize,
    write_scores,
)
from consist.mini.scenes import SCENES
from consist.mini.world import Figure, Picture, draw, sample_identity, sample_pose
from consist.runs.config import RunConfig
from consist.runs.folder import ISOLATED, SHARED, RunFolder

EVIL = "<b>\"a\" & 'b'</b> <script>alert(1)</script> $body 猫 кот"
VOID = {"meta", "link", "img", "input", "br"}


def fake_run(
    path,
    seed=0,
    *,
    method=None,
    count=4,
    size=64,
    gain=0.35,
    scored=True,
    compare=True,
    prompt=None,
    model="mini",
    reader=True,
):
    """A run folder as `consist batch` and `consist evaluate` leave it, of drawn pictures."""
    # the same seed is the same set, whatever the method
    rng, ours, plain = (Random(f"{seed} {part}") for part in ("set", "shared", "isolated"))
    folder = RunFolder(path)
    identity = sample_identity(rng)
    scenes = rng.sample(list(SCENES), count)
    prompts = tuple(f"a {identity.subject} {SCENES[scene].phrase}" for scene in scenes)
    config = RunConfig(
        prompts=(prompt, *prompts[1:]) if prompt else prompts,
        seeds=tuple(range(seed, seed + count)),
        model=model,
        method=method or {"name": "spectral", "keys": "log|energy:0.95"},
        compare=compare,
    )
    images = []
    for index, scene in enumerate(scenes):
        words = config.prompts[index]
        image = {"file": f"{index:03d}.png", "prompt": words, "asked": asked(identity, scene)}
        rows = {SHARED: ours.random() < 0.5 + gain, ISOLATED: index == 0}
        for row, same in rows.items():
            # the row without sharing does not depend on the method
            rng = plain if row else ours
            drawn = identity if same else sample_identity(rng, identity.subject)
            shown = scene if rng.random() < 0.9 else rng.choice(list(SCENES))
            figure = Figure(identity=drawn, pose=sample_pose(rng))
            picture = Picture(figures=(figure,), scene=shown, scene_seed=rng.randrange(99))
            if row in ((SHARED, ISOLATED) if compare else (SHARED,)):
                folder.write_picture(index, row, draw(picture, size).image, {"prompt": words})
                image["isolated" if row else "read"] = read_off(drawn, shown)
        if not reader:
            image = {"file": image["file"], "prompt": words}
        images.append(image)
    folder.write_record(
        {
            "config": config.to_json(),
            "resolved": {
                **{"steps": 25, "guidance": 5.0, "width": size, "height": size},
                **{"scheduler": "DPMSolverMultistepScheduler", "device": "cpu"},
                **{"dtype": "float32", "backend": "torch"},
            },
            "images": [
                {"file": f"{i:03d}.png", "prompt": p, "seed": config.seeds[i]}
                for i, p in enumerate(config.prompts)
            ],
            "versions": {"python": "3.11.7", "consist": "0.1.0", "torch": "2.13.0"},
            "seconds": 12.5,
            "peak_memory_gib": 0.91,
            "finished": True,
        }
    )
    if scored:
        write_scores(folder, fake_scores(seed, images, gain, compare, reader))
    return folder


def asked(identity, scene):
    return {"scene": scene, "subjects": [{"subject": identity.subject, "attributes": {}}]}


def read_off(identity, scene):
    names = ("color", "pattern", "feature", "build", "accessory")
    attributes = {n: {"name": getattr(identity, n), "confidence": 0.9} for n in names}
    subject = {"name": identity.subject, "confidence": 0.98}
    return {
        "scene": {"name": scene, "confidence": 0.99},
        "style": {"name": "flat", "confidence": 0.97},
        "subjects": [{"subject": subject, "attributes": attributes}],
    }


def fake_scores(seed, images, gain, compare, reader):
    rng = Random(seed)

    def near(middle):
        return min(1.0, max(0.0, rng.gauss(middle, 0.08)))

    middles = {"identity": 0.4, "scene": 0.93, "subject": 0.97, "background": 0.45}
    middles |= {"other_scene": 0.03, "crop": 0.6, "clip_t": 0.7}
    if not reader:
        middles = {"clip_t": 0.7, "clip_i": 0.8, "dreamsim_foreground": 0.4}
    change = {"identity": gain, "background": gain / 3, "other_scene": 0.05, "crop": gain / 2}
    change |= {"clip_i": gain / 3, "dreamsim_foreground": -gain / 2}
    isolated = {name: near(middle) for name, middle in middles.items()}
    scores = {name: near(middle + change.get(name, 0)) for name, middle in middles.items()}
    return SetScores(
        scores=scores,
        isolated=isolated if compare else {},
        images=images,
        choices={
            "reader": {"weights": "mini-reader 1", "threshold": 0.5},
            "crop": "EfficientNet-Lite0, ImageNet, cosine of pooled features",
        },
    )


class Page(HTMLParser):
    """Checks that tags are balanced, and gathers what the page holds."""

    def __init__(self, text):
        super().__init__()
        self.open, self.attributes, self.texts, self.alts, self.ids = [], [], [], [], []
        self.tables, self.cells = [], None
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.attributes += [(tag, *pair) for pair in attrs]
        self.alts += [value for name, value in attrs if name == "alt"]
        self.ids += [value for name, value in attrs if name == "id"]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not {"style", "script"} & set(self.open):
            self.texts.append(data)
        if {"td", "th"} & set(self.open):
            self.tables[-1][-1][-1] += f"{data} "


def report(tmp_path, runs):
    path = write_report(runs, tmp_path / "report.html")
    return path, Page(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Eight sets; not to be changed."""
    root = tmp_path_factory.mktemp("runs")
    return [fake_run(root / f"run-{i}", i) for i in range(8)]


def test_the_page_is_whole_and_asks_nothing_of_the_network(tmp_path, runs):
    path, page = report(tmp_path, runs)
    sources = [v for _, name, v in page.attributes if name in ("src", "href", "srcset", "action")]
    assert len(sources) > 8 * 8
    assert all(source.startswith(("data:", "#")) for source in sources)
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"https?://|@import|url\(", text)
    assert len(page.ids) == len(set(page.ids))
    links = {s[1:] for s in sources if s.startswith("#")}
    assert links <= set(page.ids)
    assert not list(tmp_path.glob(".report*"))


def test_prompts_are_text_whatever_they_hold(tmp_path):
    run = fake_run(tmp_path / "run", prompt=EVIL)
    path, page = report(tmp_path, [run])
    assert page.alts.count(EVIL) == 2
    assert EVIL in page.texts
    text = path.read_text(encoding="utf-8")
    assert "<b>" not in text
    assert "alert(1)</script>" not in text


def test_the_numbers_are_those_of_summarize(tmp_path, runs):
    _, page = report(tmp_path, runs)
    table = next(t for t in page.tables if t[0][0].strip() == "score")
    found = {row[0]: row[1:4] for row in table[1:]}
    summary = summarize([read_scores(run) for run in runs])
    assert len(found) == len(summary) == 7
    for name, one in summary.items():
        title, cells = next(i for i in found.items() if i[0].startswith(SCORES[name].title + " "))
        assert SCORES[name].meaning in title
        assert cells[0].split() == [f"{one.value.value:.3f}"]
        assert cells[1].split() == [f"{one.isolated.value:.3f}"]
        ends = (one.difference.value, one.difference.low, one.difference.high)
        assert re.findall(rf"[+{MINUS}]\d\.\d+", cells[2]) == [
            f"{end:+.3f}".replace("-", MINUS) for end in ends
        ]


def test_a_summary_adds_chance_tags_and_quality(tmp_path, runs):
    summary = summarize([read_scores(run) for run in runs])
    distance = Summary(
        **dict.fromkeys(("value", "isolated", "difference"), Interval(42, 41, 43, 8))
    )
    evaluation = Evaluation(
        scores=summary,
        tags={"people": summary},
        chance={"": {"world": 0.291, "measured": 0.352}},
        quality={"frechet": distance},
        settings={},
        choices={},
        runs=[str(run.path) for run in runs],
    )
    path = write_report(runs, tmp_path / "report.html", [evaluation])
    page = Page(path.read_text(encoding="utf-8"))
    titles = [row[0] for row in page.tables[0]]
    assert "by chance 0.291 (world), 0.352 (measured)" in titles[1]
    assert titles[-1].startswith("Fréchet distance")
    assert page.tables[1][1][0].strip() == "people"
    with pytest.raises(ConsistError, match="is of other runs"):
        write_report(runs, path, [replace(evaluation, runs=["elsewhere"])])


def test_better_and_worse_follow_the_direction_of_the_score():
    up, down = Interval(0.2, 0.1, 0.3, 20), Interval(-0.2, -0.3, -0.1, 20)
    assert [verdict(SCORES["identity"], one) for one in (up, down)] == ["better", "worse"]
    assert [verdict(SCORES["other_scene"], one) for one in (up, down)] == ["worse", "better"]
    assert [verdict(SCORES["background"], one) for one in (up, down)] == ["", ""]
    assert verdict(SCORES["identity"], Interval(0.1, -0.1, 0.3, 20)) == ""
    assert verdict(SCORES["identity"], replace(up, sets=5)) == ""
    assert verdict(SCORES["identity"], Interval(0.1, math.nan, math.nan, 1)) == ""


def test_the_markdown_table_lies_beside_the_page(tmp_path, runs):
    path, _ = report(tmp_path, runs)
    text = path.with_suffix(".md").read_text(encoding="utf-8")
    one = summarize([read_scores(run) for run in runs])["identity"]
    line = next(line for line in text.splitlines() if line.startswith("| identity"))
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[:4] == [
        "identity agreement",
        "higher",
        f"{one.isolated.value:.3f}",
        f"{one.value.value:.3f}",
    ]
    assert cells[4].startswith(f"{one.difference.value:+.3f}")
    assert cells[4].endswith("better")


def test_a_method_with_a_bar_in_its_name_does_not_split_the_markdown_table(tmp_path):
    same = Interval(0.5, 0.4, 0.6, 9)
    table = markdown_table(
        {
            "spectral (keys log|energy:0.9)": {
                "identity": Summary(value=same, isolated=same, difference=same)
            }
        }
    )
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1


@pytest.mark.slow
def test_methods_over_the_same_sets_are_compared(tmp_path):
    methods = [{"name": "shared"}, {"name": "spectral", "keys": "log"}]
    runs = [
        fake_run(tmp_path / f"{m['name']}-{i}", i, method=m, gain=0.2 + 0.2 * n)
        for n, m in enumerate(methods)
        for i in range(6)
    ]
    groups = read_groups(runs)
    assert [group.label for group in groups] == ["shared", "spectral (keys log)"]
    assert len(gather_stories(groups)) == 6
    _, page = report(tmp_path, runs)
    assert page.tables[0][0][:1] == ["score "]
    assert page.tables[0][0][-2:] == ["shared ", "spectral (keys log) "]
    assert "All methods drew the same sets from the same noise." in page.texts
    _, page = report(tmp_path, runs[:-1])
    assert any("did not draw the same sets" in text for text in page.texts)


def test_runs_without_scores_are_shown_as_pictures(tmp_path):
    run = fake_run(tmp_path / "run", scored=False)
    path, page = report(tmp_path, [run])
    assert len(page.alts) == 8
    assert f"consist evaluate {run.path}" in page.texts
    assert "without scores" in path.with_suffix(".md").read_text(encoding="utf-8")
    assert not [text for text in page.texts if text == "Scores"]


def test_runs_of_real_models_need_no_reader_and_no_second_row(tmp_path):
    runs = [
        fake_run(tmp_path / f"{i}", i, model="sdxl", reader=False, compare=i > 0) for i in range(3)
    ]
    _, page = report(tmp_path, runs)
    assert len(page.alts) == 4 + 8 + 8
    assert any("better or worse; that takes 6" in text for text in page.texts)


@pytest.mark.slow
def test_plots_show_every_set_in_the_colors_of_the_page(tmp_path, runs):
    path, page = report(tmp_path, runs)
    text = path.read_text(encoding="utf-8")
    (plots,) = re.findall(r'<div class="plots">.*?</div>', text, re.S)
    first, second, histogram = plots.split("</figure>")[:3]
    for scatter in (first, second):
        assert scatter.count('<g class="point"><title>') == 2 * len(runs)
        assert scatter.count("var(--without)") >= len(runs)
    sets = re.findall(r"<title>(\d+) sets? from", histogram)
    assert sum(map(int, sets)) == len(runs)
    # each color is one of those that change at night
    assert not re.search(r'style="[^"]*(fill|stroke): #(?!000000)', text)
    assert not {tag for tag, name, _ in page.attributes if name == "id"} & {"g", "path"}
    assert path.read_bytes() == report(tmp_path, runs)[0].read_bytes()


def test_without_matplotlib_the_page_has_its_numbers_and_says_what_is_missing(
    tmp_path, runs, monkeypatch, caplog
):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    path, page = report(tmp_path, runs)
    words = "plots need matplotlib: pip install 'consist[study]'"
    assert f"{words}." in page.texts
    assert [record.getMessage() for record in caplog.records] == [words]
    assert "<svg" not in path.read_text(encoding="utf-8")
    assert "Plots" not in page.texts
    assert not any("share one scale" in text for text in page.texts)
    one = summarize([read_scores(run) for run in runs])["identity"]
    assert any(f"{one.value.value:.3f} " in row for row in page.tables[0])
    caplog.clear()
    report(tmp_path, [fake_run(tmp_path / "bare", scored=False)])
    assert not caplog.records


@pytest.mark.slow
def test_a_picture_that_is_missing_is_said_to_be(tmp_path):
    run = fake_run(tmp_path / "run")
    run.picture_path(2).unlink()
    run.picture_path(1).write_bytes(b"no picture")
    run.write_record({**json.loads(run.record_path.read_text()), "finished": False})
    _, page = report(tmp_path, [run])
    assert page.texts.count("not drawn yet") == 2
    assert "1 run not finished." in page.texts


def test_small_pictures_are_exact_and_large_ones_smaller(tmp_path):
    folder = RunFolder(tmp_path)
    small = Image.effect_noise((256, 200), 90).convert("RGB")
    folder.write_picture(0, SHARED, small, {})
    folder.write_picture(1, SHARED, Image.effect_noise((1024, 768), 9).convert("RGB"), {})
    kind, data = encode_picture(folder, 0, SHARED).split(";base64,")
    assert kind == "data:image/png"
    assert Image.open(io.BytesIO(base64.b64decode(data))).tobytes() == small.tobytes()
    kind, data = encode_picture(folder, 1, SHARED).split(";base64,")
    assert kind == "data:image/jpeg"
    assert Image.open(io.BytesIO(base64.b64decode(data))).size == (512, 384)


def test_of_many_sets_the_best_the_median_and_the_worst_are_shown(tmp_path):
    base = read_groups([fake_run(tmp_path / "run")])[0].runs[0]
    stories = []
    for number in range(90):
        scores = replace(base.scores, scores={"identity": number / 90}, isolated={"identity": 0})
        run = replace(base, scores=scores)
        stories.append(Story(("a cat",), {"spectral": run}, f"set-{number}"))
    chosen = choose_stories(stories, "identity")
    assert len(chosen) == MAX_SETS
    numbers = [int(story.anchor.removeprefix("set-")) for story in chosen]
    assert numbers == [*range(89, 81, -1), *range(48, 40, -1), *range(7, -1, -1)]
    assert [story.place for story in chosen][::8] == ["best", "median", "worst"]
    assert len(choose_stories(stories, None)) == MAX_SETS
    assert choose_stories(stories[:24], "identity") == stories[:24]


def test_a_full_page_says_what_it_leaves_out(tmp_path, monkeypatch):
    runs = [fake_run(tmp_path / f"{i}", i) for i in range(3)]
    monkeypatch.setattr("consist.evaluation.report.pictures.MAX_BYTES", 1)
    _, page = report(tmp_path, runs)
    assert len(page.alts) == 8
    assert any(text.startswith("Pictures of 1 of 3 sets are shown") for text in page.texts)


def test_disagreement_is_marked(tmp_path):
    run = fake_run(tmp_path / "run", gain=0.5)
    scores = read_scores(run)
    images = [dict(image) for image in scores.images]
    images[0]["read"] = read_off(sample_identity(Random(5), "robot"), "volcano")
    write_scores(run, replace(scores, images=images))
    path, _ = report(tmp_path, [run])
    marks = re.findall(r"<mark>(.*?)</mark>", path.read_text(encoding="utf-8"))
    assert "robot" in marks
    assert "volcano" in marks


def test_a_folder_named_twice_counts_once(tmp_path):
    run = fake_run(tmp_path / "run")
    assert len(read_groups([run, RunFolder(tmp_path / "." / "run")])[0].runs) == 1


def test_refusals_are_one_sentence(tmp_path):
    with pytest.raises(ConsistError, match="no run was given"):
        write_report([], tmp_path / "report.html")
    with pytest.raises(ConsistError, match="holds no run"):
        write_report([RunFolder(tmp_path)], tmp_path / "report.html")
    run = fake_run(tmp_path / "run")
    with pytest.raises(ConsistError, match=r"name it report\.md\.html"):
        write_report([run], tmp_path / "report.md")
    (tmp_path / "folder.html").mkdir()
    with pytest.raises(ConsistError, match="cannot be written"):
        write_report([run], tmp_path / "folder.html")
    (run.path / "scores.json").write_text("{")
    with pytest.raises(ConsistError, match="is damaged"):
        write_report([run], tmp_path / "report.html")


# in a browser


@pytest.fixture(scope="module")
def chromium():
    with open_browser() as shell:
        yield shell


@pytest.fixture
def view(chromium, tmp_path):
    """Opens a report of runs, and fails on any error of the page and on any request."""
    complaints = []
    contexts = []

    def open_(runs, width=1280, **more):
        path = write_report(runs, tmp_path / "report.html")
        context = chromium.new_context(viewport={"width": width, "height": 900}, **more)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on(
            "request",
            lambda request: (
                complaints.append(request.url[:80])
                if not request.url.startswith(("file:", "data:"))
                else None
            ),
        )
        page.goto(path.as_uri())
        return page

    yield open_
    for context in contexts:
        context.close()
    assert complaints == []


def visible_rows(page):
    return page.eval_on_selector_all(
        "#set-1 .row", "rows => rows.map((row) => row.offsetHeight > 0)"
    )


@pytest.mark.slow
def test_a_click_and_a_key_flip_the_rows_of_a_set(view, runs):
    page = view(runs)
    assert visible_rows(page) == [True, True]
    page.click("#set-1 .row img >> nth=0")
    assert visible_rows(page) == [True, False]
    page.click("#set-1 .row img >> nth=0")
    assert visible_rows(page) == [False, True]
    page.click("#set-1 .choice button >> nth=0")
    assert visible_rows(page) == [True, True]
    page.keyboard.press("t")
    assert visible_rows(page) == [True, False]
    page.click("#show button >> nth=2")
    assert visible_rows(page) == [False, True]
    pressed = page.locator("#set-1 .choice button[aria-pressed=true]")
    assert pressed.inner_text() == "without sharing"


@pytest.mark.slow
def test_the_table_sorts_by_a_click_and_by_a_key(view, runs):
    page = view(runs)

    def column():
        texts = page.locator("#table tbody tr td:nth-child(2) .difference").all_inner_texts()
        return [float(text.replace(MINUS, "-")) for text in texts]

    before = column()
    head = page.locator("#table thead th >> nth=1")
    head.locator("button").click()
    assert column() == sorted(before, reverse=True)
    assert head.get_attribute("aria-sort") == "descending"
    page.keyboard.press("Enter")
    assert column() == sorted(before)
    page.click("#table thead th:first-child button")
    names = page.locator("#table tbody th a").all_inner_texts()
    assert names == sorted(names)


@pytest.mark.slow
def test_the_filter_leaves_what_fits(view, runs):
    page = view(runs)
    page.fill("#search", "run-3")
    assert page.locator("#table tbody tr:visible").count() == 1
    assert page.locator(".set:visible").count() == 1
    assert page.locator("#found").inner_text() == "1 of 8 rows"


@pytest.mark.slow
@pytest.mark.parametrize("width", [360, 768, 1280])
def test_nothing_runs_over_the_edge(view, tmp_path, runs, width):
    other = [fake_run(tmp_path / f"other-{i}", i, method={"name": "shared"}) for i in range(8)]
    page = view([*runs, *other, fake_run(tmp_path / "evil", 99, prompt="w" * 200)], width)
    inner = page.evaluate("document.documentElement.scrollWidth")
    assert inner <= width


def test_every_picture_loads_and_every_control_has_a_name(view, runs):
    page = view(runs)
    for picture in page.locator(".row img").all():
        picture.scroll_into_view_if_needed()
    sizes = page.eval_on_selector_all(".row img", "all => all.map((one) => one.naturalWidth)")
    assert len(sizes) == 64
    assert set(sizes) == {64}
    bare = page.eval_on_selector_all(
        "button, input, [role=img], [role=region]",
        """all => all.filter(
            (one) => !(one.textContent || one.ariaLabel || one.labels?.length)).length""",
    )
    assert bare == 0


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_ground(view, runs, scheme):
    """WCAG 2.2 AA: a contrast of 4.5 for every color of text."""
    page = view(runs, color_scheme=scheme)
    colors = page.evaluate(
        """() => Object.fromEntries(['paper', 'card', 'fill', 'mark', 'ink', 'soft', 'with',
        'without', 'better', 'worse'].map((name) => [name,
        getComputedStyle(document.documentElement).getPropertyValue('--' + name).trim()]))"""
    )
    pairs = [
        (text, ground)
        for text in ("ink", "soft", "with", "without", "better", "worse")
        for ground in ("paper", "card")
    ] + [("ink", "fill"), ("ink", "mark")]
    low = {pair: round(contrast(*(colors[name] for name in pair)), 2) for pair in pairs}
    assert all(value >= 4.5 for value in low.values()), low


def contrast(*colors):
    def luminance(color):
        digits = color.lstrip("#")
        digits = "".join(2 * d for d in digits) if len(digits) == 3 else digits
        parts = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    dark, light = sorted(map(luminance, colors))
    return (light + 0.05) / (dark + 0.05)
