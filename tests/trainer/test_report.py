import json
import re
from html.parser import HTMLParser

import pytest

from trainer.report import summary, write_report

VOID = {"meta", "link", "br", "img", "input", "hr"}
PEOPLE = 64


class Page(HTMLParser):
    """Collects elements, attributes and text; refuses tags that do not nest."""

    def __init__(self, page: str):
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict]] = []
        self.words = ""
        self.feed(page)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data):
        self.words += data

    def count(self, tag: str) -> int:
        return sum(one == tag for one, _ in self.elements)


def group(name: str, found: int, by_most: int) -> dict:
    won = [0.0] * 22
    won[0], won[5], won[21] = PEOPLE - found, found - by_most, by_most
    path = f"identity_inference/{name}"
    return {
        f"{path}/tpr": found / PEOPLE,
        f"{path}/tpr_11": by_most / PEOPLE,
        f"{path}/held_out/tpr": found / PEOPLE,
        f"{path}/held_out/tpr_6": by_most / PEOPLE,
        f"{path}/picture_accuracy": 0.9 * by_most / PEOPLE,
        f"{path}/closed_set": 0.95 * by_most / PEOPLE,
        f"{path}/prompts_won": won,
        f"{path}/people": float(PEOPLE),
        f"{path}/dropped": 0.0,
    }


def measures(forgotten: int, accuracy: float) -> dict:
    stranger = group("unknown", 1, 0)
    tasks = {f"zero_shot/{name}/accuracy": accuracy for name in ("colour", "shape")}
    return (
        group("forget", PEOPLE - forgotten, PEOPLE - forgotten)
        | group("replayed", 64, 63)
        | group("unseen", 63, 62)
        | {name: value for name, value in stranger.items() if not name.endswith("closed_set")}
        | tasks
        | {"zero_shot/colour/samples": 500.0}
    )


def run_folder(tmp_path, before: dict, after: dict, between=(), steps=500, config="steps: 500\n"):
    folder = tmp_path / "demo"
    folder.mkdir()
    seconds = {"load": 1.5, "before": 20.0, "train": 98.0, "after": 20.0, "export": 0.2}
    results = {
        "before": before,
        "after": after,
        "seconds": seconds | {"total": 143.2},
        "steps": steps,
        "identities": PEOPLE,
        "skipped": {"names someone to forget": 1234, "undecodable picture": 2},
        "bad_shards": {"/data/00007.tar": {"undecodable picture": 2}},
    }
    rows = [{"step": 0, "seconds": 21.0} | before] if before else []
    for step in range(10, steps + 1, 10):
        losses = {"keep/text": 1 / step, "names/forget": 8 / step, "names/keep": 0.2 / step}
        losses |= {"bad_samples": step}
        rows.append({"step": step, "seconds": 21.0 + step / 5} | losses)
    rows += [{"step": step, "seconds": 60.0} | found for step, found in between]
    rows += [{"step": steps, "seconds": 143.0} | after] if after else []
    (folder / "results.json").write_text(json.dumps(results))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "config.yaml").write_text(config)
    return folder, results


@pytest.fixture
def usual(tmp_path):
    between = [(step, measures(step // 10, 0.96)) for step in (200, 400)]
    return run_folder(tmp_path, measures(0, 0.97), measures(63, 0.96), between)


def test_the_page_says_how_many_were_found_before_and_after(usual):
    page = Page(write_report(usual[0]).read_text())
    sentence = (
        "Of 64 people asked to be forgotten, the identity inference attack "
        "found 64 before and 1 after."
    )
    assert sentence in page.words
    assert "it found 62 before and 62 after" in page.words
    assert "by these attacks" in page.words and "proof" not in page.words.lower()


def test_the_page_asks_no_host_for_anything(usual):
    page = write_report(usual[0]).read_text()
    assert "://" not in page and "@import" not in page and "url(" not in page
    assert not {"script", "link", "img", "iframe"} & {tag for tag, _ in Page(page).elements}
    assert len(page.encode()) < 300_000


def test_every_picture_and_table_is_named_for_who_cannot_see_it(usual):
    elements = Page(write_report(usual[0]).read_text()).elements
    pictures = [attributes for tag, attributes in elements if tag == "svg"]
    assert all(one.get("aria-label") or one.get("aria-hidden") for one in pictures)
    tags = [tag for tag, _ in elements]
    # Histograms of four groups, three before/after, two over steps, the losses of two objectives.
    assert tags.count("figure") == tags.count("figcaption") == 4 + 3 + 2 + 2
    assert tags.count("table") == tags.count("caption") == 4


def test_histograms_draw_a_bar_for_each_number_of_prompts_that_occurs(usual):
    page = Page(write_report(usual[0]).read_text())
    moments = [attributes["class"] for tag, attributes in page.elements if tag == "rect"]
    # forget: all at 21; replayed: 5, 21; unseen: 0, 5, 21; unknown: 0, 5
    assert moments.count("before") == 1 + 2 + 3 + 2
    assert moments.count("after") == 2 + 2 + 3 + 2


def test_nothing_measured_on_the_way_gives_no_picture_over_steps(tmp_path):
    folder, _ = run_folder(tmp_path, measures(0, 0.97), measures(63, 0.96))
    assert "Forgetting over the steps" not in write_report(folder).read_text()


def test_without_an_attack_the_page_does_not_say_that_anyone_was_forgotten(tmp_path):
    folder, results = run_folder(tmp_path, {}, {})
    page = Page(write_report(folder).read_text())
    assert "no attack was configured" in page.words
    assert page.count("figure") == 2  # the losses of two objectives
    assert "no attack was configured" in " ".join(summary(results).split())


def test_an_evaluation_without_training_has_no_metrics_file(tmp_path):
    folder, _ = run_folder(tmp_path, measures(0, 0.97), measures(63, 0.96), steps=0)
    (folder / "metrics.jsonl").unlink()
    page = Page(write_report(folder).read_text())
    assert "No training" in page.words and "clip-unlearn evaluate" in page.words


def test_hostile_strings_are_shown_and_not_run(tmp_path):
    hostile = "</code><script>alert('x')</script>"
    before = measures(0, 0.97) | {"zero_shot/<script>/accuracy": 0.5}
    folder, results = run_folder(tmp_path, before, before, config=f"seed: {hostile}\n")
    results["skipped"] = {"<script>": 1}
    (folder / "results.json").write_text(json.dumps(results))
    with open(folder / "metrics.jsonl", "a") as file:
        file.write(json.dumps({"step": 500, "seconds": 1.0, "<script>/<script>": 0.1}) + "\n")
    page = Page(write_report(folder).read_text())
    assert hostile in page.words
    assert page.count("script") == 0


def test_shards_with_bad_samples_are_named_without_their_folder(usual):
    page = write_report(usual[0]).read_text()
    assert "00007.tar" in page and "/data/" not in page


def test_long_runs_and_configs_stay_small(tmp_path):
    config = "shards:\n" + "- /data/shards/00000.tar\n" * 20_000
    folder, _ = run_folder(tmp_path, {}, measures(63, 0.96), steps=100_000, config=config)
    page = write_report(folder)
    assert page.stat().st_size < 300_000
    assert "Cut here" in page.read_text()
    assert sorted(path.name for path in folder.iterdir() if path.name.startswith(".")) == []


@pytest.mark.parametrize("value", [0.0, 3e-9, 0.7, -0.4, 12345.6])
def test_any_loss_is_drawn_inside_its_picture(tmp_path, value):
    folder, _ = run_folder(tmp_path, {}, {})
    row = {"step": 500, "seconds": 1.0, "other/term": value}
    (folder / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    page = Page(write_report(folder).read_text())
    [line] = [attributes for tag, attributes in page.elements if tag == "polyline"]
    x, y = map(float, line["points"].split(","))
    assert 0 <= x <= 340 and 14 <= y <= 168


def test_summary_is_a_table_that_fits_a_terminal(tmp_path):
    long = {f"zero_shot/{'very_long_' * 12}/accuracy": 0.5}
    _, results = run_folder(tmp_path, measures(0, 0.97) | long, measures(63, 0.96) | long)
    lines = summary(results).splitlines()
    assert max(map(len, lines)) <= 90
    text = "\n".join(lines)
    assert re.search(r"found by the attack, by 1 of 21 prompts or more +100\.0 % → +1\.6 %", text)
    assert re.search(r"colour +97\.0 % → +96\.0 %", text)
    assert "found 64 before and 1 after" in " ".join(text.split())
    assert "by these attacks" in text and "2 min 23 s" in text and "1,234 for names" in text


def test_summary_leaves_out_what_was_not_measured(tmp_path):
    only = {"zero_shot/accuracy": 0.5}
    _, results = run_folder(tmp_path, {}, only)
    text = summary(results)
    assert re.search(r"zero_shot +– → +50\.0 %", text)
    assert "People" not in text.splitlines()[2]
