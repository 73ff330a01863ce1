"""The report and the terminal table: numbers, wording, what is refused, and that the page is one
file.
"""

from __future__ import annotations

import copy
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from browser import CHROMIUM, tab
from netslim.errors import RecipeError
from netslim.graph.words import drawing
from netslim.graph.words.drawing import Line, Picture
from netslim.report import channel_figures, figures, numbers, results_file, run_page, runs_page
from netslim.report.rows import reference
from sensitivities import made as measured

VOID = {"meta", "path", "use", "br"}


def row(
    key: str, accuracy: float, params: int, macs: int, size: int, milliseconds: float
) -> dict[str, Any]:
    latency = {"median": milliseconds, "low": 0.95 * milliseconds, "high": 1.1 * milliseconds}
    counted = {"params": params, "macs": macs, "size_bytes": size}
    return {
        "key": key,
        "label": key,
        "accuracy": accuracy,
        "loss": 0.1,
        "peak_bytes": size // 10,
        **counted,
        "latency_ms": latency,
    }


def curve(stage: str, epochs: int, penalty: float, near_zero: float | None) -> dict[str, Any]:
    steps = range(1, epochs + 1)
    return {
        "stage": stage,
        "epoch": list(steps),
        "train_loss": [2.3 / step + penalty for step in steps],
        "penalty": [penalty] * epochs,
        "val_loss": [2.4 / step for step in steps],
        "val_accuracy": [1 - 0.9 / step for step in steps],
        "near_zero": [near_zero and near_zero * step / epochs for step in steps],
    }


LINES = [
    {"name": "features.0", "size": 32, "verdict": "exact", "why": "", "made": [0], "read": [1]},
    {"name": "features.3", "size": 64, "verdict": "exact", "why": "", "made": [1], "read": [2]},
    {"name": "features.7", "size": 64, "verdict": "exact", "why": "", "made": [2], "read": [3]},
    {
        "name": "head",
        "size": 10,
        "verdict": "stays",
        "why": "it is an output",
        "made": [3],
        "read": [],
    },
]


@pytest.fixture
def results() -> dict[str, Any]:
    return made()


def made() -> dict[str, Any]:
    """A run of a small VGG on handwritten digits; the ratios are round on purpose."""
    return {
        "format": 1,
        "recipe": "digits",
        "title": "Handwritten digits, small VGG",
        "model": "zoo:vgg",
        "data": "digits",
        "seed": 0,
        "stages": [{"stage": "01-sparse", "does": "train for 20 epochs"}],
        "test_images": 400,
        "network": "03-fine-tune/model.safetensors",
        "constructor": "zoo:vgg",
        "command": "netslim run digits --out runs/digits",
        "seconds": 74.4,
        "notes": ["The pictures are 8 by 8 pixels."],
        "warnings": [],
        "published": [
            {
                "label": "VGGNet (70 % pruned)",
                "error": 6.2,
                "params": 2_300_000,
                "params_cut": 88.5,
            },
            {"label": "VGGNet (baseline)", "error": 6.34, "params": 20_040_000},
        ],
        "rows": [
            row("baseline", 0.99, 200_000, 8_000_000, 820_000, 0.5),
            row("before", 0.9875, 200_000, 8_000_000, 820_000, 0.4),
            row("pruned", 0.9525, 25_000, 2_000_000, 123_000, 0.3),
            row("fine-tuned", 0.985, 25_000, 2_000_000, 123_000, 0.3),
        ],
        "widths": [
            {"layer": "features.0", "before": 32, "after": 20},
            {"layer": "features.3", "before": 64, "after": 12},
            {"layer": "features.7", "before": 64, "after": 8},
        ],
        "picture": {"layers": ["features.0", "features.3", "features.7", "head"], "lines": LINES},
        "scores": [
            {
                "stage": "02-prune",
                "criterion": "bn_scale",
                "layers": [
                    {"layer": "features.0", "gone": [0.0, 0.001, 0.01], "kept": [0.02, 0.1, 0.4]},
                    {"layer": "features.3", "gone": [], "kept": [0.02, 0.1, 0.4]},
                ],
            }
        ],
        "scales": {
            "threshold": 0.01,
            "edges": [0.0, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0],
            "before": [0, 0, 0, 0, 0, 160],
            "after": [4, 16, 50, 50, 8, 32],
            "share_near_zero_before": 0.0,
            "share_near_zero_after": 0.75,
            "strength": 0.001,
            "others": [
                {
                    "label": "strength 0.1",
                    "counts": [90, 40, 20, 8, 2, 0],
                    "share_near_zero": 0.9875,
                }
            ],
            "layer": "features.4",
            "levels": ["000401", "030401"],
            "bins": [0.0, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1],
        },
        "curves": [curve("01-sparse", 20, 0.2, 0.75), curve("03-fine-tune", 10, 0.0, 0.0)],
        "verification": [{"stage": "02-prune", "deviation": 8.9e-16, "cut": 120, "changed": 120}],
        "environment": {"device": "cpu", "threads": 2, "versions": {"torch": "2.15.0"}},
    }


@pytest.fixture
def run(tmp_path, results):
    """A run folder as it lies on disk."""
    return on_disk(tmp_path, results)


def on_disk(folder: Path, results: dict[str, Any]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "results.json").write_text(json.dumps(results))
    (folder / "config.yaml").write_text("name: digits\nseed: 0\n")
    return folder


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> Path:
    """A page with all of its figures, among them those of a sensitivity."""
    folder = on_disk(tmp_path_factory.mktemp("drawn"), made())
    (folder / "sensitivity").mkdir()
    measured({"features.0": [0, 0.1, 0.5]}).save(folder / "sensitivity" / "sensitivity.json")
    return run_page.write(folder)


def printed(results: dict[str, Any], width: int = 100) -> str:
    console = Console(width=width, force_terminal=False)
    with console.capture() as capture:
        console.print(run_page.table(results))
    return capture.get()


# ---- the table


def test_table_exactly(results):
    lines = [line.strip() for line in printed(results).splitlines()]
    assert lines[4:8] == [
        "baseline    99.00 % +0.25  200.0 k ×1.000  8.000 M ×1.000  820.0 kB ×1.000  0.500 ms "
        "×1.250",
        "before      98.75 %        200.0 k         8.000 M         820.0 kB         0.400 ms",
        "pruned      95.25 % −3.50  25.00 k ×0.125  2.000 M ×0.250  123.0 kB ×0.150  0.300 ms "
        "×0.750",
        "fine-tuned  98.50 % −0.25  25.00 k ×0.125  2.000 M ×0.250  123.0 kB ×0.150  0.300 ms "
        "×0.750",
    ]
    for heading in ("network", "test accuracy", "parameters", "MACs", "size on disk", "latency"):
        assert heading in lines[2]


def test_table_fits_a_terminal_of_100_columns_with_large_numbers(results):
    results["rows"] = [
        row("before", 0.7512, 138_357_544, 15_470_264_320, 553_430_176, 1234.5),
        row("fine-tuned after pass 2", 0.7487, 23_199_999, 10_100_000_000, 92_800_000, 987.6),
    ]
    text = printed(results)
    assert max(map(len, text.splitlines())) <= 100
    for shown in ("138.4 M", "15.47 G", "553.4 MB", "1.23e+03 ms", "×0.168"):
        assert shown in text
    assert "…" not in text


def test_labels_are_not_markup(results):
    results["title"] = "[red]title[/red]"
    results["rows"][1]["label"] = "[b]before"
    assert "[red]title[/red]" in printed(results)
    assert "[b]before" in printed(results)


@pytest.mark.usefixtures("undrawn")
def test_latency_that_was_not_measured_is_a_dash(results):
    for item in results["rows"]:
        item["latency_ms"] = None
    assert printed(results).count("–") >= 4
    assert run_page.page(results).count("<b>–</b>") == 4


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0 "),
        (812, "812 "),
        (999.9, "999.9 "),
        (1000, "1.000 k"),
        (85_170, "85.17 k"),
        (999_960, "1.000 M"),
        (20_035_018, "20.04 M"),
        (398_136_320, "398.1 M"),
        (4.089e9, "4.089 G"),
    ],
)
def test_counts(number, text):
    assert numbers.count(number) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(9.6, "10 s"), (74.4, "1 min 14 s"), (3600, "1 h 0 min 0 s")]
)
def test_durations(seconds, text):
    assert numbers.duration(seconds) == text


# ---- the page


class Page(HTMLParser):
    """Collects what a reader sees and what the page refers to, and checks that every element is
    closed.
    """

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.tags: list[str] = []
        self.words: list[str] = []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        found = dict(attributes)
        self.tags.append(tag)
        self.open += [] if tag in VOID else [tag]
        self.ids += [found["id"]] if found.get("id") else []
        self.links += [found[key] or "" for key in ("src", "href", "xlink:href") if key in found]

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attributes)
        self.open = self.open if tag in VOID else self.open[:-1]

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).replace("\xa0", " ").split())


def test_the_page_is_one_self_contained_file(drawn):
    html = drawn.read_text(encoding="utf-8")
    found = Page(html)
    assert drawn.name == "report.html"
    assert all(link.startswith(("#", "data:image/png;base64,")) for link in found.links)
    assert len(found.ids) == len(set(found.ids))
    inside = {link[1:] for link in found.links if link.startswith("#")}
    assert inside <= set(found.ids)
    assert not {"script", "link", "img", "iframe"} & set(found.tags)
    vocabularies = {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }  # names, never loaded
    assert set(re.findall(r"https?://[^\"' )]+", html)) <= vocabularies
    assert "var(--ink, #22262b)" in html
    assert "#1f6f8b, var(--ink)" in html.replace(" 78%", "")


def test_the_page_tells_the_story_in_order(drawn):
    html = drawn.read_text()
    text = Page(html).text
    headings = re.findall("<h2>(.+?)</h2>", html)
    assert headings == [
        "What was asked",
        "What came out",
        "Where the channels went",
        "Why these channels",
        "What it cost",
        "How sure this is",
        "How to use the network",
        "How to repeat the run",
    ]
    assert re.findall('<svg role="img" aria-label="(.{9})', html) == [
        *("A row is ", "The score", "Batch-nor", "The scale"),
        *("Test accu", "Training,", "What each"),
    ]
    place = 0
    for part in (
        "Handwritten digits, small VGG",
        "The network zoo:vgg on digits , stage by stage: 01-sparse train for 20 epochs",
        "fine-tuned 98.50 % −0.25",
        "12.30 kB ×0.150",
        "0.300 ms ×0.750 (0.285 to 0.330)",
        "VGGNet (70 % pruned) 6.20 % 2.300 M 88.5 %",
        "fine-tuned 1.50 % 25.00 k 87.5 %",
        "40 of 160 channels stay. The most went from features.7 (8 of 64 stay), the least from "
        "features.0 (20 of 32 stay).",
        "features.3: reads 20 of 32, makes 12 of 64",
        "After training 75.0 % of them are below 0.01",
        "The scales of one layer, features.4, over training",
        "400 test images decide",
        "one run, with seed 0",
        "02-prune 120 120 8.9e-16",
        "head it is an output",
        "Note. The pictures are 8 by 8 pixels.",
        'network = netslim.models.build("runs/digits/03-fine-tune/model.safetensors")',
        "size 123.0 kB",
        "netslim run digits --out runs/digits",
        "time taken 1 min 14 s",
        "versions torch 2.15.0",
        "name: digits seed: 0",
    ):
        assert part in text[place:], part
        place = text.index(part, place)


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium, to see how the page is laid out")
def test_in_a_browser_the_page_fits_a_phone_and_nothing_complains(drawn, tmp_path):
    clear = "getComputedStyle(document.body).backgroundColor"
    with tab(tmp_path) as page:
        for width, dark in ((1280, False), (390, True)):
            page.open(drawn, width, dark)
            assert page.ask("document.documentElement.scrollWidth") <= width
            assert page.ask(clear) == ("rgb(255, 255, 255)", "rgb(21, 24, 28)")[dark]
        page.call("Emulation.setEmulatedMedia", media="print", features=[])
        assert page.ask(clear) == "rgb(255, 255, 255)"
        assert page.printed().startswith(b"%PDF")
        assert page.complaints == []


@pytest.mark.usefixtures("undrawn")
def test_a_network_that_nobody_can_build_by_name_is_loaded_onto_the_users_own(results):
    results["trust"] = True
    text = Page(run_page.page(results)).text
    assert 'netslim.models.build("runs/digits/03-fine-tune/model.safetensors", trust=True)' in text
    results["constructor"] = None
    text = Page(run_page.page(results)).text
    assert 'netslim.load(YourNetwork(), "runs/digits/03-fine-tune/model.safetensors")' in text


# ---- several runs


@pytest.mark.usefixtures("undrawn")
def test_runs_side_by_side_with_what_differs_and_their_spread(tmp_path, results):
    folders = []
    for seed, accuracy in enumerate((0.975, 0.985)):
        results["seed"], results["rows"][-1]["accuracy"] = seed, accuracy
        folders.append(on_disk(tmp_path / f"seed{seed}", results))
    page = runs_page.write(folders)
    assert page == tmp_path / "side-by-side.html"
    text = Page(page.read_text()).text
    for part in (
        "2 runs side by side The most accurate at the end is seed1;",
        "What differs asked seed0 seed1 seed 0 1 What came out",
        "seed0 97.50 % −1.25",
        "digits, 2 seeds: accuracy 98.75 ± 0.00 % before the cut, 98.00 ± 0.71 % at the end, a "
        "change of −0.75 ± 0.71 points",
    ):
        assert part in text
    with pytest.raises(RecipeError, match="named twice"):
        runs_page.write([folders[0], tmp_path / "." / "seed0"])


@pytest.mark.usefixtures("undrawn")
def test_page_says_what_was_done_with_the_numbers(run):
    text = Page(run_page.write(run).read_text()).text
    assert (
        "Cutting 75.0 % of the 160 channels took the network from 200.0 k to 25.00 k "
        "parameters (−87.5 %) and from 8.000 M to 2.000 M multiply-accumulates (−75.0 %); "
        "test accuracy went from 98.75 % to 98.50 % (−0.25 points)."
    ) in text


@pytest.mark.usefixtures("undrawn")
def test_warnings_come_before_the_results(results):
    results["warnings"] = ["the cut went through scales that are not small"]
    html = run_page.page(results)
    assert html.index("went through scales") < html.index("<h2>What came out")


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(
    ("blind", "told"),
    [
        (["pruned"], "(−0.25 points)."),
        (["fine-tuned"], "(−0.25 points), and 98.50 % may be chance."),
        (["first", "fine-tuned"], "(−0.25 points), and both may be chance."),
    ],
)
def test_the_headline_says_where_its_accuracies_may_be_chance(results, blind, told):
    first = reference(results["rows"])["label"]
    results["by_chance"] = [first if label == "first" else label for label in blind]
    assert told in Page(run_page.page(results)).text


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("command", ["netslim run digits", "netslim run 'digits --out", None])
def test_a_command_that_names_no_folder_leaves_the_path_within_it(results, command):
    results["command"] = command
    assert 'build("03-fine-tune/model.safetensors")' in Page(run_page.page(results)).text


@pytest.mark.usefixtures("undrawn")
def test_whose_module_builds_the_network_is_told_where_it_must_lie(results):
    results |= {"constructor": "mine.nets:small", "trust": True}
    text = Page(run_page.page(results)).text
    assert "the folder with mine must be the current directory, or on PYTHONPATH" in text


@pytest.mark.usefixtures("undrawn")
def test_everything_from_outside_is_escaped(results):
    attack = "<script>alert('x')</script> & \"quotes\""
    for key in ("title", "recipe", "command"):
        results[key] = attack
    results["notes"], results["warnings"] = [attack], [attack]
    for item in (*results["rows"], *results["published"]):
        item["label"] = attack
    results["published"][0][attack] = attack
    results["widths"][0]["layer"] = results["curves"][0]["stage"] = results["verification"][0][
        "stage"
    ] = attack
    results["environment"] = {attack: {attack: [attack]}}
    results["stages"][0]["does"] = results["model"] = results["picture"]["lines"][3]["why"] = attack
    results["picture"]["layers"][0] = results["picture"]["lines"][0]["name"] = attack
    lines = tuple(Line(**line) for line in results["picture"]["lines"])
    drawn = drawing.drawn(Picture(tuple(results["picture"]["layers"]), lines), {attack: 3})
    found = Page(run_page.page(results, attack) + drawn)
    assert "script" not in found.tags
    assert found.text.count("<script>alert('x')</script> & \"quotes\"") >= 20


def test_a_run_with_nothing_but_rows_still_has_a_page(results):
    for key in (
        "widths",
        "curves",
        "verification",
        "published",
        "notes",
        "warnings",
        "environment",
    ):
        results[key] = []
    results["scales"] = results["picture"] = results["stages"] = None
    results["scores"] = []
    html = run_page.page(results)
    assert html.count("<svg") == 1  # accuracy against cost, which is in the rows
    assert "Proof of the cut" not in html
    assert "config.yaml was not in the run folder" in html
    assert "Cutting channels took the network" in html


def test_a_run_that_cuts_nothing_says_so(results):
    results["rows"] = results["rows"][:2]
    assert run_page.summary(results).startswith(
        "Nothing was cut from the network of 200.0 k parameters; test accuracy"
    )


@pytest.mark.usefixtures("undrawn")
def test_a_cut_that_is_not_exact_says_so(results):
    results["verification"][0]["deviation"] = None
    assert "02-prune 120 120 only shapes tried" in Page(run_page.page(results)).text


@pytest.mark.usefixtures("undrawn")
def test_multi_pass_rows_refer_to_the_unpruned_network(results):
    results["rows"] += [
        row("pruned-2", 0.9, 10_000, 800_000, 82_000, 0.2),
        row("fine-tuned-2", 0.98, 10_000, 800_000, 82_000, 0.2),
    ]
    assert "fine-tuned-2  98.00 % −0.75  10.00 k ×0.050" in printed(results)
    assert "from 200.0 k to 10.00 k parameters" in run_page.summary(results)


@pytest.mark.usefixtures("undrawn")
def test_the_environment_is_read_from_its_own_file(run, results):
    del results["environment"]
    (run / "results.json").write_text(json.dumps(results))
    (run / "environment.json").write_text('{"processor": "two cores", "command": "netslim"}')
    assert results_file.read(run)["environment"]["processor"] == "two cores"
    assert "processor two cores" in Page(run_page.write(run).read_text()).text


@pytest.mark.usefixtures("undrawn")
def test_a_failed_write_leaves_the_old_page_and_nothing_else(run, monkeypatch):
    before = run_page.write(run).read_bytes()
    monkeypatch.setattr(
        run_page.os, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full"))
    )
    with pytest.raises(OSError, match="disk full"):
        run_page.write(run)
    assert (run / "report.html").read_bytes() == before
    assert not list(run.glob(".report-*"))


# ---- what is refused


def test_no_results(tmp_path):
    with pytest.raises(RecipeError, match=r"no results\.json here.*it goes on where it was"):
        run_page.write(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "the results are damaged"),
        ('{"format": 1, "rows": [', "the results are damaged"),
        ("[]", "it does not hold a mapping"),
        ('{"format": 2}', "format 2 is not known to this netslim"),
        ('{"format": 1}', "rows is missing"),
        ('{"format": 1, "rows": []}', "rows is empty"),
        ('{"format": 1, "rows": [{"key": "before"}]}', r"rows\.0: label and .* is missing"),
        ('{"format": 1, "rows": ["before"]}', r"rows\.0: .* stands where a mapping should"),
    ],
)
def test_damaged_results(tmp_path, content, message):
    (tmp_path / "results.json").write_text(content)
    with pytest.raises(RecipeError, match=message) as caught:
        run_page.write(tmp_path)
    assert str(tmp_path / "results.json") in str(caught.value)
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize("key", ["key", "label", "accuracy", "params", "macs", "size_bytes"])
def test_rows_of_the_wrong_type(results, key):
    broken = copy.deepcopy(results)
    broken["rows"][2][key] = ["?"]
    with pytest.raises(RecipeError, match=rf"rows\.2\.{key}: a list stands where"):
        results_file.check(broken)


def test_a_latency_without_a_median(results):
    results["rows"][0]["latency_ms"] = {"low": 1.0}
    with pytest.raises(RecipeError, match=r"rows\.0\.latency_ms: median is missing"):
        results_file.check(results)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("scores", [{"stage": "a", "criterion": "", "layers": [{"layer": "b", "gone": [1], "kept": []}]}], "three that rise"),
        ("picture", {"layers": ["a"], "lines": [{**LINES[0], "read": [7]}]}, "at no layer"),
        ("widths", [{"layer": "a", "before": 0, "after": 0}], "0 of 0 channels"),
        ("picture", {"layers": ["a"], "lines": [{**LINES[0], "size": -3}]}, "no channels"),
        ("scales", {"levels": ["00", "0000"]}, "as many in each epoch"),
        ("scales", {"levels": ["09"]}, "bins that there are not"),
        ("scales", {"levels": ["0g"]}, "hexadecimal"),
        ("scales", {"others": [{"label": "a", "counts": [1], "share_near_zero": 0.5}]}, "other lengths"),
    ],
)  # fmt: skip
def test_what_cannot_be_drawn_is_damage(results, key, value, message):
    results[key] = value
    if key == "scales":
        results[key] = {**made()[key], **value}
    with pytest.raises(RecipeError, match=message):
        results_file.check(results)


@pytest.mark.parametrize("key", ["widths", "curves", "verification", "published"])
def test_damage_deeper_down_is_an_error_of_ours_too(run, results, key):
    results[key] = [{"nonsense": True}] if key != "published" else 3
    (run / "results.json").write_text(json.dumps(results))
    with pytest.raises(RecipeError, match=f"damaged: {key}|damaged: a curve"):
        run_page.write(run)


# ---- the figures


def test_figures_are_the_same_bytes_each_time_and_leave_no_pyplot_state(results):
    import matplotlib

    before = dict(matplotlib.rcParams)
    for draw, data in (
        (channel_figures.selection, results["scales"]),
        (channel_figures.scores, {**results["scores"][0], "criterion": "$\\x$"}),  # no formula
    ):
        first = draw(data, "svg")
        assert first == draw(data, "svg")
        assert b"</svg>" in first
    assert channel_figures.scores(results["scores"][0], "png").startswith(b"\x89PNG")
    assert dict(matplotlib.rcParams) == before


def captured(monkeypatch, draw, *arguments):
    """The matplotlib figure that a plot function would have rendered."""
    seen: list[Any] = []
    for module in (figures, channel_figures):
        monkeypatch.setattr(module, "render", lambda figure, *_: seen.append(figure) or b"")
    draw(*arguments)
    return seen[0]


def test_histograms_draw_shares_of_all_channels_of_each_strength(monkeypatch, results):
    found = captured(monkeypatch, channel_figures.scales, results["scales"]).axes
    values, edges, _ = found[-1].patches[0].get_data()
    assert values.tolist() == [2.5, 10.0, 31.25, 31.25, 5.0, 20.0]
    assert edges.tolist() == results["scales"]["edges"]
    assert [axes.get_title(loc="left") for axes in found] == [
        "before training: 0.0 % below 0.01 (dashed)",
        "strength 0.1: 98.8 % below 0.01 (dashed)",
        "after training, strength 0.001: 75.0 % below 0.01 (dashed)",
    ]
    names = [label.get_text() for label in found[-1].get_xticklabels()]
    assert names == ["0", "0.0001", "0.001", "0.01", "0.1", "1"]
    results["scales"] |= {"edges": [0.0, 1e-5], "before": [8], "after": [8], "others": []}
    assert len(captured(monkeypatch, channel_figures.scales, results["scales"]).axes) == 2


def test_the_heat_map_has_the_largest_channels_on_top(monkeypatch, results):
    axes, bar = captured(monkeypatch, channel_figures.selection, results["scales"]).axes
    assert axes.images[0].get_array().tolist() == [[4, 4], [0, 3], [1, 1]]
    assert axes.get_ylabel() == "channels of features.4"
    assert [label.get_text() for label in bar.get_yticklabels()] == [
        *("1e-05", "0.0001", "0.001", "0.01"),
    ]


def test_scores_of_what_went_end_where_those_of_what_stays_begin(monkeypatch, results):
    axes = captured(monkeypatch, channel_figures.scores, results["scores"][0]).axes[0]
    ends = [line.get_xdata() for line in axes.lines]
    assert not any("$" in label.get_text() for label in axes.get_xticklabels())
    assert [list(x) for x in ends] == [[0.0, 0.01], [0.001], [0.02, 0.4], [0.02, 0.4], [0.1, 0.1]]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["features.0", "features.3"]
    deep = {"criterion": "", "layers": results["scores"][0]["layers"] * 80}
    assert len(captured(monkeypatch, channel_figures.scores, deep).axes[0].get_yticklabels()) <= 36


def test_curves_put_stages_one_after_another(monkeypatch, results):
    loss, accuracy, sparsity = captured(monkeypatch, figures.curves, results["curves"]).axes
    x, y = accuracy.lines[0].get_data()
    assert x.tolist() == [*range(1, 21), 20, *range(21, 31), 30]  # a gap after each stage
    assert y[0] == pytest.approx(10.0)
    assert y[19] == pytest.approx(95.5)
    assert [text.get_text() for text in loss.texts] == ["01-sparse", "03-fine-tune"]
    assert sparsity.lines[0].get_ydata()[19] == pytest.approx(75.0)


def test_curves_with_gaps_and_without_scales(monkeypatch):
    stage = curve("01-train", 3, 0.0, None) | {"val_loss": [], "val_accuracy": [None, 0.5, None]}
    figure = captured(monkeypatch, figures.curves, [stage])
    assert len(figure.axes) == 2
    assert figures.curves([curve("01-sparse", 1, 0.1, 0.5)]) == b""


@pytest.mark.usefixtures("undrawn")
def test_published_top5_errors_have_their_own_column(results):
    results["published"] = [{"label": "paper", "error": 31.38, "top5_error": 11.23}]
    for row in results["rows"]:
        row["top5"] = 0.75
    html = run_page.page(results)
    assert "<th scope=col>top-5 error</th>" in html
    assert "<td>11.23 %</td>" in html
    assert "<td>25.00 %</td>" in html


@pytest.mark.parametrize(
    ("points", "text"),
    [(0.0, "0.00"), (-0.0, "0.00"), (-0.004, "0.00"), (0.004, "0.00"), (-0.006, "−0.01"), (1, "+1.00"),
     (float("nan"), numbers.MISSING)],
)  # fmt: skip
def test_a_difference_of_nothing_has_no_sign(points, text):
    assert numbers.signed(points) == text


def test_no_share_is_minus_nothing():
    assert numbers.percent(-1e-9) == "0.00 %"
    assert numbers.gone(1_000_001, 1_000_000) == "0.0 %"
