import json
import re
from html.parser import HTMLParser
from importlib.resources import files

import pytest
import yaml

from tests.trainer.run_folders import NO_NAMES, full_run, measures, person, run_folder
from trainer.reports.curves import found_charts
from trainer.reports.findings import harmonic_mean
from trainer.reports.report import summary, write_report
from trainer.reports.results import Results
from trainer.reports.words import share

VOID = {"meta", "link", "br", "img", "input", "hr"}


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
    assert "on this model, by these attacks" in page.words and "proof" not in page.words.lower()


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


def test_of_many_shares_on_the_way_the_most_general_are_drawn():
    parts = ("shares_first", "shares_last", "nearest")
    names = [
        f"neighbours/{group}/{share}"
        for group in (*parts, "neighbours", "others")
        for share in ("tpr", "tpr_11")
    ]
    names += ["my_own/a/b/flagged", *(f"my_own/{i}/flagged" for i in range(6)), "my_own/flagged"]
    neighbours, own = found_charts({name: [(0, 0.5), (1, 0.4), (2, 0.3)] for name in names}, [])
    assert neighbours.legend == [
        "neighbours · tpr", "neighbours · tpr 11", "others · tpr", "others · tpr 11",
        "shares first · tpr", "shares first · tpr 11",
    ]  # fmt: skip
    assert own.legend == ["flagged", *(f"{i} · flagged" for i in range(5))]


def test_nothing_measured_on_the_way_gives_no_picture_over_steps(tmp_path):
    folder, _ = run_folder(tmp_path, measures(0, 0.97), measures(63, 0.96))
    assert "Forgetting over the steps" not in write_report(folder).read_text()


def test_without_an_attack_the_page_does_not_say_that_anyone_was_forgotten(tmp_path):
    folder, results = run_folder(tmp_path, {}, {})
    page = Page(write_report(folder).read_text())
    assert "no attack was configured" in page.words
    assert page.count("figure") == 2  # the losses of two objectives
    assert "no attack was configured" in " ".join(summary(results).split())


@pytest.mark.parametrize(
    ("forget", "keep", "wanted"),
    [(0.0, 1.0, 1.0), (1.0, 1.0, 0.0), (0.0, 0.0, 0.0), (0.25, 0.5, 0.6)],
)
def test_forgetting_and_keeping_in_one_figure(tmp_path, forget, keep, wanted):
    after = measures(0, 0.97)
    after |= {"identity_inference/forget/picture_accuracy": forget}
    after |= {"identity_inference/unseen/picture_accuracy": keep}
    folder, results = run_folder(tmp_path, measures(0, 0.97), after)
    found = harmonic_mean(Results.of(results))
    assert found is not None and found[1] == pytest.approx(wanted)
    assert f"{wanted:.3f} after; 1 is the best" in Page(write_report(folder).read_text()).words


def test_an_attack_that_failed_is_not_said_to_be_missing(tmp_path):
    failed = [{"evaluation": "identity_inference", "step": 0, "cause": NO_NAMES}]
    folder, results = run_folder(tmp_path, {}, {}, identities=3, failed=failed)
    assert "3 people asked to be forgotten, and the attack failed" in summary(results)
    assert "no attack was configured" not in Page(write_report(folder).read_text()).words


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


def test_the_page_has_the_configuration_but_no_secrets(tmp_path):
    command = "pipe:curl " + " ".join(f"-H 'Key{i}: s3cr3t'" for i in range(9)) + " https://h/1.tar"
    config = {
        "data": {"shards": ["https://me:s3cr3t@h/0.tar?sig=s3cr3t", {"shards": [command]}]},
        "objectives": {"names": {"target": "é: a person", "weight": 0.5, "roster": None}},
        "output": "runs/2024",
    }
    text = yaml.safe_dump(config, sort_keys=False, allow_unicode=True)
    folder, _ = run_folder(tmp_path, {}, {}, config=f"# s3cr3t\n{text}")
    page = write_report(folder).read_text()
    words = Page(page).words
    config["data"]["shards"] = ["https://h/0.tar", {"shards": ["pipe:curl ... https://h/1.tar"]}]
    assert yaml.safe_load(words[words.index("data:\n") :]) == config
    assert text[text.index("objectives:") :] in words and "s3cr3t" not in page
    assert (folder / "config.yaml").read_text().count("s3cr3t") == 12


def test_a_configuration_that_cannot_be_read_is_not_shown(tmp_path):
    folder, _ = run_folder(tmp_path, {}, {}, config="a: [https://me:s3cr3t@h/0.tar")
    page = write_report(folder).read_text()
    assert "config.yaml is no YAML; it may hold passwords" in page and "s3cr3t" not in page


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


def test_the_curves_of_what_leaks_are_drawn_for_names_and_pictures_apart(tmp_path):
    curve = [step / 50 for step in range(51)]
    after = {f"leakage/{one}_roc": curve for one in ("text/closeness", "text/norm", "image/norm")}
    folder, _ = run_folder(tmp_path, {}, after | {"leakage/text/closeness_auc": 0.5})
    page = Page(write_report(folder).read_text())
    drawn = [attributes["points"] for tag, attributes in page.elements if tag == "polyline"]
    curves = [one.split() for one in drawn if one.startswith("46.0,296.0 ")]
    assert len(curves) == 3 and {one[-1] for one in curves} == {"328.0,14.0"}
    assert "Forgotten told by their names" in page.words
    assert "Forgotten told by their pictures" in page.words


def test_of_several_attacks_the_first_sentence_tells_the_one_that_finds_the_most(tmp_path):
    before, after = measures(0, 0.97), measures(64, 0.97)
    harder = {name.replace("y_inference", "y_inference/harder"): v for name, v in before.items()}
    _, results = run_folder(tmp_path, before | harder, after | harder)
    assert "found 64 before and 64 after" in " ".join(summary(results).split())


def attack(name: str, found: int, people: int, group: str = "forget") -> dict:
    """So many of the people found by a prompt, and as many by most."""
    path = f"identity_inference/{name}/{group}"
    shares = dict.fromkeys((f"{path}/tpr", f"{path}/tpr_11"), found / people)
    return shares | {
        f"{path}/people": float(people),
        f"{path}/prompts_won": [people - found, *[0] * 20, found],
    }


def test_of_several_attacks_the_number_that_they_find_counts_not_the_share(tmp_path):
    before = attack("all", 100, 100) | attack("few", 10, 10)
    after = attack("all", 2, 100) | attack("few", 1, 10)
    _, results = run_folder(tmp_path, before, after, identities=100)
    text = " ".join(summary(results).split())
    assert "Of 100 people asked to be forgotten" in text and "100 before and 2 after." in text
    assert "were asked for" not in text


def test_people_whom_another_attack_looked_for_are_not_said_to_be_left_out(tmp_path):
    before = attack("first", 64, 64) | attack("second", 60, 60)
    after = attack("first", 0, 64) | attack("second", 0, 60)
    _, results = run_folder(tmp_path, before, after, identities=124)
    text = " ".join(summary(results).split())
    assert "Of 64 people" in text
    assert "124 were asked for; this attack did not look for the others." in text


def test_of_several_attacks_who_is_kept_is_told_of_the_same(tmp_path):
    before = measures(0, 0.97) | attack("hard", 64, 64) | attack("hard", 64, 64, "unseen")
    after = measures(64, 0.97) | attack("hard", 8, 64) | attack("hard", 40, 64, "unseen")
    folder, _ = run_folder(tmp_path, before, after)
    words = Page(write_report(folder).read_text()).words
    assert "found 64 before and 8 after" in words and "it found 64 before and 40 after" in words
    tile = words[words.index("People to keep who are found") :][:60]
    assert "100.0 % → 62.5 %" in tile


def test_few_of_many_people_are_not_nobody_and_most_not_everybody(tmp_path):
    writing = {"identity_inference/all/forget/found_by/any_variant": 1 / 4096}
    kept = attack("all", 4095, 4096, "unseen")
    after = attack("all", 1, 4096) | writing | kept
    folder, results = run_folder(tmp_path, attack("all", 4096, 4096) | kept, after)
    text = " ".join(summary(results).split())
    assert "it still found <0.1 %." in text and "100.0 % → <0.1 %" in text
    assert ">99.9 % → >99.9 %" in text
    assert share(0.0) == "0.0 %" and share(1.0) == "100.0 %" and share(0.0005) == "0.1 %"


def test_an_attack_without_a_group_to_forget_is_told_as_that(tmp_path):
    found = attack("all", 60, 64, "requests")
    _, results = run_folder(tmp_path, found, found)
    text = " ".join(summary(results).split())
    assert "no group of people under attack is called `forget`: nothing here says" in text


def test_what_the_model_leaks_to_whom_is_told_in_one_place(tmp_path):
    areas = {"leakage/auc": 0.52, "leakage/auc_with_original": 1.0, "leakage/auc_by_chance": 0.6}
    folder, _ = run_folder(tmp_path, areas, areas)
    words = Page(write_report(folder).read_text()).words
    assert "Who also holds the original: 1" in words and "nobody can tell" not in words


def test_attacks_of_other_numbers_of_prompts_share_no_number(tmp_path):
    def found(share: float) -> dict:
        few = {
            name: one for name, one in attack("few", 64, 64, "unseen").items() if "_11" not in name
        }
        return attack("all", round(64 * share), 64) | few | {
            "identity_inference/few/unseen/tpr_3": 1.0,
            "identity_inference/few/unseen/prompts_won": [0, 0, 0, 0, 0, 64],
        }  # fmt: skip

    folder, _ = run_folder(tmp_path, found(1), found(0), [(s, found(0.5)) for s in (100, 200)])
    words = Page(write_report(folder).read_text()).words
    assert "Found by 3 of 5 prompts or more" in words and "Found by 1 prompt or more" in words
    assert "Found by 3 of 1 " not in words


def test_what_a_failed_attack_measured_on_the_way_is_no_loss(tmp_path):
    failed = [
        {"evaluation": "identity_inference", "step": step, "cause": NO_NAMES} for step in (0, 500)
    ]
    between = [(step, measures(step // 10, 0.96)) for step in (100, 200, 300)]
    folder, _ = run_folder(tmp_path, {}, {}, between, failed=failed)
    assert "forget/tpr" not in Page(write_report(folder).read_text()).words


def test_of_several_attacks_the_first_tile_and_the_one_figure_are_of_the_same(tmp_path):
    before, after = measures(0, 0.97), measures(64, 0.97)
    found = {name: value for name, value in before.items() if "accuracy" in name}
    found |= {"identity_inference/forget/tpr": 0.75, "identity_inference/forget/people": 48.0}
    found |= {"identity_inference/forget/picture_accuracy": 0.75}
    found |= {"identity_inference/unseen/tpr": 1.0}
    found |= {"identity_inference/unseen/picture_accuracy": 0.5}
    harder = {name.replace("y_inference", "y_inference/harder"): v for name, v in found.items()}
    folder, results = run_folder(tmp_path, before | harder, after | harder)
    words = Page(write_report(folder).read_text()).words
    assert "found 75.0 % before and 75.0 % after" in words
    first = words[words.index("People to forget who are found") :][:80]
    assert "75.0 % → 75.0 %" in first and "of 48 people" in words
    figure = harmonic_mean(Results.of(results))
    assert figure is not None and figure[1] == pytest.approx(2 / (1 / 0.25 + 1 / 0.5))


def test_the_page_counts_each_person_once_whatever_the_number_of_attacks(tmp_path):
    people = [person(f"{i:016x}", "unseen", 21, 20) for i in range(3)]
    people += [one | {"measure": "identity_inference/harder/people"} for one in people]
    folder, _ = run_folder(tmp_path, measures(0, 0.97), measures(63, 0.96), people=people)
    assert "3 people to keep are found by fewer prompts" in write_report(folder).read_text()


def test_who_is_found_by_another_writing_is_told_at_once(tmp_path):
    rewritten = {"identity_inference/forget/found_by/any_variant": 3 / 64}
    _, results = run_folder(tmp_path, measures(0, 0.97), measures(64, 0.97) | rewritten)
    text = " ".join(summary(results).split())
    assert "and 0 after. By other writings of their names it still found 4.7 %." in text


def test_who_is_found_by_another_writing_in_another_attack_is_told_as_well(tmp_path):
    found = measures(0, 0.97)
    harder = {name.replace("y_inference", "y_inference/harder"): v for name, v in found.items()}
    harder["identity_inference/harder/forget/found_by/any_variant"] = 3 / 64
    _, results = run_folder(tmp_path, found | harder, found | harder)
    text = " ".join(summary(results).split())
    assert "By other writings of their names it still found 4.7 %." in text


def test_what_was_measured_beside_the_accuracy_and_dropped_is_shown_as_well(tmp_path):
    more = {"zero_shot/colour/top_5": 0.991, "identity_inference/accuracy": 0.876}
    more |= {"identity_inference/forget/dropped": 3.0, "zero_shot/colour/skipped": 0.0}
    folder, _ = run_folder(tmp_path, more, more)
    words = " ".join(Page(write_report(folder).read_text()).words.split())
    assert (
        "colour · top 5 99.1 % 99.1 %" in words
        and "who was ever known, told rightly 87.6 % 87.6 %" in words
    )
    assert "forget · dropped 3 3" in words and "colour · skipped" not in words


def test_two_lists_that_are_looked_for_are_told_apart(tmp_path):
    areas = {"leakage/auc": 0.5, "leakage/trained/auc": 0.9}
    folder, _ = run_folder(tmp_path, areas, areas)
    words = Page(write_report(folder).read_text()).words
    assert "Forget list in the model0.5" in words
    assert "Forget list in the model · trained0.9" in words


def test_an_attack_of_any_name_gives_the_one_figure(tmp_path):
    named = [
        {name.replace("y_inference", "y_inference/attack"): v for name, v in one.items()}
        for one in (measures(0, 0.97), measures(64, 0.97))
    ]
    _, results = run_folder(tmp_path, *named)
    assert harmonic_mean(Results.of(results)) is not None


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
    assert re.search(r"zero shot +– → +50\.0 %", text)
    assert "People" not in text.splitlines()[2]


def test_of_a_folder_that_is_no_finished_run_it_says_which_file_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match="results.json is not there; name the folder of a"):
        write_report(tmp_path)


@pytest.mark.parametrize("content", ["[1]", "{", '{"before": {}}'])
def test_results_that_are_none_are_refused(tmp_path, content):
    (tmp_path / "results.json").write_text(content)
    with pytest.raises(ValueError, match="results.json is no run's results .*; run it again"):
        write_report(tmp_path)


def test_intervals_stand_below_their_figures(tmp_path):
    page = Page(write_report(full_run(tmp_path)).read_text())
    assert "1.6 %1.2 – 2.0" in page.words  # 63 of 4,000 in 64ths, by Wilson's score
    assert "−0.4−1.2 to +0.4" in page.words


def test_a_full_run_shows_each_section_that_there_is(tmp_path):
    page = Page(write_report(full_run(tmp_path)).read_text())
    template = files("trainer.reports").joinpath("report.html.jinja").read_text()
    shown = [attributes.get("id") for tag, attributes in page.elements if tag == "h2"]
    assert shown == re.findall(r'<h2 id="(\w+)"', template)
    assert {"leakage", "failed"} <= set(shown)
    assert "Forgotten told by their names" in page.words


def test_measures_of_unknown_evaluations_are_shown_as_they_are(tmp_path):
    page = Page(write_report(full_run(tmp_path)).read_text())
    assert "my own" in page.words and "something new" in page.words and "123.5" in page.words


def test_other_writings_of_a_name_are_shown_as_shares(tmp_path):
    folder = full_run(tmp_path)
    assert "forget · found by · initials" in Page(write_report(folder).read_text()).words
    text = summary(json.loads((folder / "results.json").read_text()))
    assert re.search(r"forget · found by · initials +5\.0 % → +5\.0 %", text)


def test_the_page_names_nobody_unless_it_is_asked_to(tmp_path):
    folder = full_run(tmp_path)
    page = write_report(folder).read_text()
    assert "24 people to keep are found by fewer prompts than before; the worst 10" in page
    assert not re.search(r"\b[0-9a-f]{16}\b", page)
    asked = write_report(folder, shows_people=True).read_text()
    assert len(re.findall(r"<code>[0-9a-f]{16}</code>", asked)) == 10
    assert "0000000000000004" in asked  # lost most
    assert "f" * 16 not in asked and "e" * 16 not in asked  # to be forgotten; a stranger


def test_speed_and_memory_are_no_losses(tmp_path):
    page = Page(write_report(full_run(tmp_path)).read_text()).words
    assert page.index("Losses over the steps") < page.index("Speed and memory over the steps")
    assert page.index("Speed and memory over the steps") < page.index("samples per second")


def test_the_terminal_says_what_cannot_be_told_of_the_tasks(tmp_path):
    results = json.loads((full_run(tmp_path) / "results.json").read_text())
    text = " ".join(summary(results | {"margin": 0.02}).split())
    assert "Ordinary tasks, with a margin of 2 points: not worse: colour, shape" in text
    assert "; cannot be told: captions · text to image · recall 1." in text


def test_much_that_is_measured_stays_short_in_the_terminal(tmp_path):
    after = measures(63, 0.96) | {f"my_own/measure_{i}": float(i) for i in range(20)}
    _, results = run_folder(tmp_path, {}, after)
    assert "  and 14 more in the report" in summary(results)
