import json

import pytest

from tests.trainer.reports.test_report import Page
from tests.trainer.run_folders import NO_NAMES, full_run, measures, run_folder
from trainer.reports.comparison import write_comparison


def page_of(runs, tmp_path) -> Page:
    return Page(write_comparison(runs, tmp_path / "comparison.html").read_text())


def test_each_run_has_a_column_and_what_it_did_not_measure_is_a_dash(tmp_path):
    first = full_run(tmp_path, name="first")
    second, _ = run_folder(tmp_path, measures(0, 0.97), measures(60, 0.9), name="second")
    page = page_of([first, second], tmp_path)
    assert "first" in page.words and "second" in page.words
    assert "100.0 % → 1.6 %" in page.words and "100.0 % → 6.2 %" in page.words
    assert "123.5 → 123.5\n–" in page.words.replace("\n\n", "\n")


def test_what_failed_and_what_the_seconds_are_of_is_told_of_each_run(tmp_path):
    failed = [{"evaluation": "identity_inference", "step": 0, "cause": NO_NAMES}]
    first, _ = run_folder(tmp_path, {}, {}, name="first", resumed_at=480)
    second, _ = run_folder(tmp_path, {}, {}, name="second", failed=failed)
    words = page_of([first, second], tmp_path).words
    assert "Steps20 of 500 (since it was resumed)500" in words
    assert (
        f"second. Failed, and not measured then: identity_inference at step 0: {NO_NAMES}" in words
    )


def test_two_attacks_of_a_run_have_a_section_each(tmp_path):
    found = measures(0, 0.9)
    harder = {name.replace("y_inference", "y_inference/harder"): v for name, v in found.items()}
    runs = [run_folder(tmp_path, found, found | harder, name=f"run{i}")[0] for i in range(2)]
    words = page_of(runs, tmp_path).words
    assert "People to forget\n" in words and "People to forget (harder)\n" in words


def test_only_options_that_differ_are_listed(tmp_path):
    configs = ["optimizer: {lr: 0.1}\nsteps: 5\noutput: a", "optimizer: {lr: 0.2}\nsteps: 5"]
    runs = [full_run(tmp_path, name=f"run{i}", config=one) for i, one in enumerate(configs)]
    words = page_of(runs, tmp_path).words
    differing = words[words.index("Where the configurations differ") :].split()
    assert differing[-2:] == ["Optionrun0run1", "optimizer.lr0.10.2"]


def test_options_that_differ_beyond_what_is_shown_are_listed_where_they_do(tmp_path):
    long = "/a/path/that/is/longer/than/all/that/is/shown/of/an/option/here"
    configs = [f"roster: {long}/{name}.csv" for name in ("first", "second")]
    runs = [full_run(tmp_path, name=f"run{i}", config=one) for i, one in enumerate(configs)]
    words = page_of(runs, tmp_path).words
    assert "shown/of/an/option/here/first.csv" in words and "option/here/second.csv" in words


def test_of_more_options_than_are_listed_the_rest_is_counted(tmp_path):
    configs = ["\n".join(f"a{j}: {i}" for j in range(45)) for i in range(2)]
    runs = [full_run(tmp_path, name=f"run{i}", config=one) for i, one in enumerate(configs)]
    words = page_of(runs, tmp_path).words
    assert "a3901" in words and "a4001" not in words and "and 5 more" in words


def test_a_configuration_that_is_no_yaml_is_named(tmp_path):
    runs = [full_run(tmp_path, name=f"run{i}", config="a: 1") for i in range(2)]
    (runs[1] / "config.yaml").write_text("a: [")
    with pytest.raises(ValueError, match="run1/config.yaml is no YAML; name the folder"):
        page_of(runs, tmp_path)


def test_attacks_on_the_way_are_drawn_with_a_line_for_each_run(tmp_path):
    runs = [full_run(tmp_path, name=f"relearning_{i}") for i in range(3)]
    runs.append(run_folder(tmp_path, measures(0, 0.9), measures(9, 0.9), name="no_curve")[0])
    page = page_of(runs, tmp_path)
    lines = [attributes for tag, attributes in page.elements if tag == "polyline"]
    assert len(lines) == 4 * 3  # groups; the three runs that were measured on the way
    assert "By the number of people" not in page.words


def test_runs_with_other_numbers_of_people_are_drawn_by_that_number(tmp_path):
    runs = [
        run_folder(
            tmp_path, measures(0, 0.9), measures(left, 0.9), name=f"of_{n}_{i}", identities=n
        )[0]
        for i, (n, left) in enumerate(((1, 63), (8, 60), (8, 40), (64, 0)))
    ]
    page = page_of(runs, tmp_path)
    [line, *_] = [attributes for tag, attributes in page.elements if tag == "polyline"]
    xs, ys = zip(*(map(float, point.split(",")) for point in line["points"].split()))
    assert xs == (46.0, 187.0, 328.0)  # 1, 8 and 64: doublings are as far apart
    dots = [dot for tag, dot in page.elements if tag == "circle" and dot["class"] == "dot d0"]
    of_8 = [float(dot["cy"]) for dot in dots if float(dot["cx"]) == 187.0]
    assert len(of_8) == 2 and of_8[0] != of_8[1]
    assert ys[1] == pytest.approx(sum(of_8) / 2, abs=0.1)  # the line joins the means


def test_runs_of_another_recipe_have_lines_of_their_own(tmp_path):
    """Whatever their seed, steps and rosters."""
    runs = []
    for n in (8, 64):
        for i, lr in enumerate((0.1, 0.1, 0.2)):
            config = f"seed: {i}\nsteps: {n}\noptimizer: {{lr: {lr}}}\n"
            config += f"objectives: {{names: {{roster: a/{i}.csv}}}}\n"
            run = run_folder(
                tmp_path, measures(0, 0.9), measures(64 - n, 0.9), name=f"of_{n}_{i}",
                identities=n, config=config,
            )[0]  # fmt: skip
            runs.append(run)
    page = page_of(runs, tmp_path)
    lines = [attributes for tag, attributes in page.elements if tag == "polyline"]
    assert len(lines) == 2 * 4  # recipes, groups
    assert "as of_8_0" in page.words and "as of_8_2" in page.words


def test_runs_of_the_same_name_are_told_apart_by_the_folder_above(tmp_path):
    runs = []
    for above in ("monday", "tuesday"):
        (tmp_path / above).mkdir()
        runs.append(full_run(tmp_path / above))
    words = page_of(runs, tmp_path).words
    assert "monday/demo" in words and "tuesday/demo" in words


def test_a_run_named_twice_is_refused(tmp_path):
    run = full_run(tmp_path)
    with pytest.raises(ValueError, match="a run is named twice; name each folder once"):
        write_comparison([run, run], tmp_path / "comparison.html")


def test_a_folder_without_configuration_is_refused(tmp_path):
    run = full_run(tmp_path)
    (run / "config.yaml").unlink()
    with pytest.raises(FileNotFoundError, match="config.yaml is not there; name the folder of a"):
        write_comparison([run, full_run(tmp_path, name="other")], tmp_path / "comparison.html")


def test_hostile_names_are_shown_and_not_run(tmp_path):
    run = full_run(tmp_path, config="a: <script>alert(1)</script>\n")
    other = full_run(tmp_path, name="other", config="a: 2\n")
    results = json.loads((other / "results.json").read_text())
    results["after"]["<script>/x"] = 1.0
    (other / "results.json").write_text(json.dumps(results))
    page = page_of([run, other], tmp_path)
    assert page.count("script") == 0 and "<script>alert(1)</script>" in page.words


def test_addresses_that_differ_are_listed_without_their_secrets(tmp_path):
    address = "data: {{shards: ['https://me:s3cr3t@h/{}.tar?sig=s3cr3t', b]}}\n"
    runs = [full_run(tmp_path, name=f"run{i}", config=address.format(i)) for i in range(2)]
    words = page_of(runs, tmp_path).words
    assert "https://h/0.tar" in words and "https://h/1.tar" in words and "s3cr3t" not in words
