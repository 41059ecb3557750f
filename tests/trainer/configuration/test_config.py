from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import get_args

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.trainer.test_registry import OBJECTIVE, write_plugin
from trainer.configuration.config import Config, ConfigError, load_config, validate
from trainer.configuration.sections import Tracker

RUN = """\
model: {name: ViT-B-32}
data: {shards: "{00000..00002}.tar"}
objectives:
  keep: {kind: preserve, batch_size: 8}
optimizer: {lr: 1e-4}
steps: 40
"""


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))


def load(text: str = RUN, *overrides: str) -> Config:
    path = Path("a_run.yaml")
    path.write_text(text, encoding="utf-8")
    return load_config(path, overrides)


def mistakes(text: str = RUN, *overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(text, *overrides)
    return str(caught.value).splitlines()


# What is right.


def test_a_run_is_read_with_its_defaults_and_made():
    config = load()
    assert config.data.shards == ["{00000..00002}.tar"]
    assert config.optimizer.lr == 1e-4 and config.optimizer.betas == (0.9, 0.98)
    assert config.objectives["keep"].kind == "preserve"
    assert config.objectives["keep"].options.batch_size == 8
    assert config.evaluations == {} and config.trackers == () and config.seed == 0
    assert config.output == Path("runs/a_run")


def test_a_configuration_cannot_be_changed():
    config = load()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.steps = 3  # type: ignore[misc]
    with pytest.raises(ValueError, match="frozen"):
        config.optimizer.lr = 3.0


def test_overrides_are_yaml_in_their_places():
    config = load(
        RUN,
        "objectives.keep.weight=0.8",
        "objectives.keep.towers=[text]",
        "optimizer.clip=null",
        "optimizer.anchor=1e-2",
        "output=elsewhere",
        "model.pretrained=a=b",
    )
    assert config.objectives["keep"].options.weight == 0.8
    assert len(config.objectives["keep"].towers) == 1
    assert config.optimizer.clip is None and config.optimizer.anchor == 0.01
    assert config.output == Path("elsewhere") and config.model.pretrained == "a=b"


def test_an_override_adds_an_objective():
    config = load(RUN, "objectives.more.kind=contrastive", "objectives.more.batch_size=2")
    assert list(config.objectives) == ["keep", "more"]


def test_the_seed_reaches_what_is_made():
    assert load(RUN, "seed=7").objectives["keep"].seed == 7


@pytest.mark.parametrize("written", ["1e-4", "1E-4", "1.e-4", ".1e-3", "+1e-4", "0.0001", "1.0e-4"])
def test_every_way_to_write_a_float_is_a_number(written):
    assert load(RUN.replace("1e-4", written)).optimizer.lr == 1e-4
    assert load(RUN, f"optimizer.lr={written}").optimizer.lr == 1e-4


@pytest.mark.parametrize("written", ["12e45ab", "1e", "e32", "1e-4.tar"])
def test_text_that_begins_like_a_float_stays_text(written):
    assert load(RUN, f"model.pretrained={written}").model.pretrained == written


def test_names_may_look_like_numbers_or_truth_values():
    config = load(RUN.replace("  keep:", "  no: {kind: preserve, batch_size: 4}\n  1:"))
    assert list(config.objectives) == ["no", "1"]


def test_merged_sections_may_say_an_option_again():
    text = RUN.replace(
        "  keep: {kind: preserve, batch_size: 8}",
        "  a: &a {kind: preserve, batch_size: 8}\n"
        "  b: &b {<<: *a, batch_size: 9}\n"
        "  c: {<<: *b, batch_size: 10}",
    )
    sizes = [one.options.batch_size for one in load(text).objectives.values()]
    assert sizes == [8, 9, 10]


def test_an_override_changes_one_place_of_what_an_anchor_shares():
    text = RUN.replace("keep: {", "keep: &k {").replace("optimizer", "  other: *k\noptimizer")
    config = load(text, "objectives.other.batch_size=2")
    assert config.objectives["keep"].options.batch_size == 8
    assert config.objectives["other"].options.batch_size == 2


def test_a_section_whose_lines_are_commented_out_is_absent():
    assert load(RUN + "evaluations:\n#  colour: {kind: zero_shot}\n").evaluations == {}


def test_plugins_are_found_from_the_files_own_folder(tmp_path, monkeypatch):
    plugin = write_plugin(tmp_path, OBJECTIVE)
    text = RUN.replace("preserve", "mine") + f"plugins: [./{plugin.name}]\n"
    (tmp_path / "run.yaml").write_text(text)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    config = load_config("../run.yaml")
    assert config.objectives["keep"].kind == "mine"
    assert config.plugins == (str(plugin),)


def test_what_is_saved_gives_the_same_run_from_another_folder(tmp_path):
    plugin = write_plugin(tmp_path, OBJECTIVE)
    text = RUN.replace("optimizer", "  own: {kind: mine, batch_size: 2}\noptimizer", 1)
    config = load(text + f"plugins: [{plugin.name}]\ntrackers: [wandb]\n")
    saved = tmp_path / "runs" / "a_run" / "config.yaml"
    saved.parent.mkdir(parents=True)
    saved.write_text(config.to_yaml())
    again = load_config(saved)
    assert again.resolved() == config.resolved()
    assert again.output == Path("runs/a_run")


def test_what_is_resolved_is_plain_data_with_every_default():
    resolved = load().resolved()
    assert yaml.safe_load(yaml.safe_dump(resolved)) == resolved
    assert resolved["objectives"]["keep"] == {
        "kind": "preserve",
        "weight": 1.0,
        "batch_size": 8,
        "shards": None,
        "towers": ["text", "image"],
        "distance": "relative",
    }
    assert resolved["optimizer"]["schedule"] == "cosine"


def test_plain_data_is_validated_without_a_file(tmp_path):
    config = validate(yaml.safe_load(RUN.replace("1e-4", "1.0e-4")), tmp_path, "trial")
    assert config.output == Path("runs/trial")


def test_trackers_are_accelerates_but_for_one_that_sends_what_is_not_committed():
    from accelerate.utils import LoggerType

    assert {"all", "clearml", *get_args(Tracker)} == {one.value for one in LoggerType}


# What is wrong.


def test_a_misspelt_option_is_named_with_its_full_path_and_a_suggestion():
    assert mistakes(RUN, "objectives.keep.wieght=1") == [
        "objectives.keep.wieght: unknown option; did you mean 'weight'? "
        "possible: batch_size, distance, shards, towers, weight"
    ]


def test_a_misspelt_option_far_down_is_named_with_its_full_path():
    text = RUN.replace("kind: preserve", "kind: face_to_neutral, roster: x, shares: {forgt: 1}")
    assert mistakes(text) == [
        "objectives.keep.shares.forgt: unknown option; did you mean 'forget'? "
        "possible: forget, replayed, strangers"
    ]


def test_a_misspelt_section_is_named_with_a_suggestion():
    assert mistakes(RUN, "optimzer.lr=1")[0].startswith(
        "optimzer: unknown option; did you mean 'optimizer'? possible: checkpoint, data, "
    )


def test_an_option_like_no_other_is_named_with_the_possible_ones():
    assert mistakes(RUN, "model.zzz=1") == [
        "model.zzz: unknown option; possible: "
        "freeze, freeze_norms, name, pretrained, random_weights"
    ]


def test_an_unknown_kind_is_named_with_the_possible_ones():
    found = mistakes(RUN.replace("preserve", "name_to_persn"))[0]
    assert found.startswith(
        "objectives.keep.kind: found 'name_to_persn'; did you mean 'name_to_person'? "
        "possible: contrastive, face_to_neutral, name_to_person, preserve"
    )


def test_an_evaluations_kind_is_no_objectives():
    found = mistakes(RUN + "evaluations: {colour: {kind: preserve}}")[0]
    assert found.startswith("evaluations.colour.kind: found 'preserve'; possible: ")
    assert "zero_shot" in found


@pytest.mark.parametrize("kind", ["[preserve]", "3", "{a: b}"])
def test_a_kind_that_is_no_text_is_refused(kind):
    assert mistakes(RUN.replace("preserve", kind))[0].startswith("objectives.keep.kind: found ")


def test_a_missing_kind_is_named_with_the_possible_ones():
    found = mistakes(RUN.replace("kind: preserve, ", ""))
    assert found[0].startswith("objectives.keep.kind: missing; possible: contrastive, ")


def test_an_override_of_a_misspelt_objective_suggests_the_right_one():
    found = mistakes(RUN, "objectives.kep.weight=2")
    assert found[0].startswith(
        "objectives.kep.kind: missing; did you mean 'objectives.keep'? possible: "
    )


def test_a_value_out_of_range_is_named_with_what_is_possible():
    assert mistakes(RUN, "steps=-5") == [
        "steps: found -5; must be greater than 0 or must be 'auto'"
    ]


def test_a_value_of_another_type_is_named():
    assert mistakes(RUN, "steps=few") == [
        "steps: found 'few'; must be a valid integer, unable to parse string as an integer "
        "or must be 'auto'"
    ]


def test_a_missing_option_is_named_with_its_description():
    assert mistakes(RUN.replace("name: ViT-B-32", "")) == [
        "model.name: missing; open_clip architecture, local-dir:FOLDER or hf-hub:ID"
    ]


def test_missing_sections_are_named_with_what_they_hold():
    assert mistakes("seed: 0") == [
        "model: missing; the CLIP to change: name, pretrained, ...",
        "data: missing; clean image-text pairs: shards, ...",
        "objectives: missing; what is taught: a name for each, its kind and options",
        "optimizer: missing; lr, ...",
        "steps: missing; optimizer steps; auto: as many as people to forget need",
    ]


def test_all_mistakes_are_told_at_once():
    text = """\
model: {name: 3}
data: {shards: [], lanes: 0}
objectives:
  keep: {kind: preserve, batch_size: 0, towers: [txt]}
  names: {kind: name_to_persn}
  faces: 4
evaluations:
  colour: {kind: zero_shot, classes: 3}
optimizer: {lr: .inf, schedule: cosin, betas: [0.9, 1.5]}
step: 3
trackers: [wandbb]
"""
    found = mistakes(text, "optimizer", "model.name.x=1")
    found = [line for line in found if not line.startswith(("step:", "objectives.names.kind:"))]
    assert found == [
        "override 'optimizer': write it as path.to.option=value",
        "override model.name.x: model.name is 3, not a section with options",
        "model.name: found 3; must be a valid string",
        "data.shards: found []; List must have at least 1 item, not 0",
        "data.lanes: found 0; must be greater than 0",
        "objectives.faces: found 4; must be a section, `option: value` lines",
        "optimizer.lr: found inf; must be a finite number",
        "optimizer.betas.1: found 1.5; must be less than 1",
        "optimizer.schedule: found 'cosin'; must be 'constant', 'cosine' or 'steps'; "
        "did you mean 'cosine'?",
        "steps: missing; optimizer steps; auto: as many as people to forget need",
        "trackers.0: found 'wandbb'; must be 'aim', 'comet_ml', 'dvclive', 'mlflow', "
        "'swanlab', 'tensorboard', 'trackio' or 'wandb'; did you mean 'wandb'?",
        "objectives.keep.batch_size: found 0; must be greater than 0",
        "objectives.keep.towers.0: found 'txt'; must be 'text' or 'image'; did you mean 'text'?",
        "evaluations.colour.shards: missing; local tars of pictures with a `cls`",
        "evaluations.colour.classes: found 3; must be a valid string or must be a valid list",
    ]


@pytest.mark.parametrize("section", ["model", "data", "objectives", "evaluations", "optimizer"])
def test_a_value_in_the_place_of_a_section_is_refused(section):
    assert f"{section}: found 3; must be a section, `option: value` lines" in mistakes(
        RUN, f"{section}=3"
    )


def test_a_run_without_an_objective_is_refused():
    text = RUN.replace("\n  keep: {kind: preserve, batch_size: 8}", " {}")
    assert mistakes(text) == ["objectives: found {}; Dictionary must have at least 1 item, not 0"]


def test_a_run_whose_weights_are_all_0_is_refused():
    assert mistakes(RUN, "objectives.keep.weight=0") == [
        "objectives: found no weight above 0; give one to at least one of them"
    ]


def test_weights_are_not_judged_while_one_is_not_known():
    found = mistakes(RUN, "objectives.keep.weight=0", "objectives.more.kind=preserve")
    assert found == ["objectives.more.batch_size: missing; pairs a step, over all processes"]


@pytest.mark.parametrize("name", ["two words", "a/b", "a.b", ""])
def test_a_name_that_could_not_be_part_of_a_path_is_refused(name):
    found = mistakes(RUN.replace("keep:", f"{name!r}:"))
    assert found == [
        f"objectives.{name}: found {name!r}; a name must be of letters, digits, _ and -"
    ]


def test_milestones_that_nothing_would_heed_or_that_are_missing_are_refused():
    assert mistakes(RUN, "optimizer.schedule=steps") == [
        "optimizer.schedule: found 'steps'; cuts the rate at milestones, and there are none"
    ]
    assert mistakes(RUN, "optimizer.schedule=constant", "optimizer.milestones=[5]") == [
        "optimizer.schedule: found 'constant'; heeds no milestones; take steps or cosine"
    ]


def test_a_warm_up_that_never_ends_is_refused():
    assert mistakes(RUN, "optimizer.warmup_steps=40") == [
        "steps: found 40; must be greater than optimizer.warmup_steps (40)"
    ]
    assert load(RUN, "optimizer.warmup_steps=39").steps == 40


@pytest.mark.parametrize(("people", "steps"), [(1, 200), (64, 400), (1024, 1600), (4096, 3200)])
def test_steps_may_follow_from_the_number_of_people_to_forget(people, steps):
    rows = [f"Joe{i} Doe{i}" for i in range(people)]
    Path("roster.csv").write_text("\n".join(["name", *rows]))
    names = "objectives.names={kind: name_to_person, batch_size: 8, roster: roster.csv}"
    assert load(RUN, "steps=auto", names).steps == steps
    assert mistakes(RUN, "steps=auto") == [
        "steps: auto counts people to forget, and there are none; give a number"
    ]
    assert mistakes(RUN, "steps=auto", "optimizer.warmup_steps=200") == [
        "steps: found 'auto'; must be greater than optimizer.warmup_steps (200)"
    ]


@pytest.mark.parametrize(("people", "steps"), [(1, 200), (64, 800), (512, 4530)])
def test_pictures_of_many_take_more_steps_than_their_names(people, steps):
    for i in range(people):
        Path(f"joe{i}").mkdir()
        Path(f"joe{i}/0.jpg").write_bytes(b"not opened to count people")
    rows = [f"Joe{i} Doe{i},joe{i}" for i in range(people)]
    Path("roster.csv").write_text("\n".join(["name,faces", *rows]))
    options = "batch_size: 8, roster: roster.csv"
    names = f"objectives.names={{kind: name_to_person, {options}}}"
    faces = f"objectives.faces={{kind: face_to_neutral, target: text, {options}}}"
    assert load(RUN, "steps=auto", names, faces).steps == steps


def test_steps_to_trace_that_are_none_are_refused():
    assert mistakes(RUN, "profile.steps=[25, 20]") == [
        "profile.steps: found [25, 20]; must be the first step and the last, counted from 1: "
        "[20, 25]"
    ]
    assert load(RUN, "profile.steps=[20, 25]").profile.steps == (20, 25)


def test_a_tracker_named_twice_is_refused():
    assert mistakes(RUN, "trackers=[wandb, aim, wandb]") == [
        "trackers: found ['wandb', 'aim', 'wandb']; wandb stands there twice"
    ]


@pytest.mark.parametrize("output", [".", "..", "/", "''"])
def test_an_output_that_holds_the_current_folder_is_refused(output):
    found = mistakes(RUN, f"output={output}")
    assert len(found) == 1
    assert found[0].endswith("must be a folder of its own, not one that holds the current folder")


def test_plugins_that_are_no_list_are_refused():
    assert mistakes(RUN, "plugins=mine.py") == ["plugins: found 'mine.py'; must be a valid list"]
    assert mistakes(RUN, "plugins=[3]") == ["plugins.0: found 3; must be a valid string"]


def test_a_plugin_that_is_not_there_is_told_with_the_other_mistakes(tmp_path):
    assert mistakes(RUN, "plugins=[absent.py]", "steps=0") == [
        "steps: found 0; must be greater than 0 or must be 'auto'",
        f"plugins: plugin {tmp_path / 'absent.py'} is not there; write the path of a .py file",
    ]


def test_what_an_objective_finds_wrong_when_made_is_told_with_its_path():
    text = RUN.replace("kind: preserve", "kind: name_to_person, target: x, roster: absent.csv")
    assert mistakes(text) == ["objectives.keep: roster absent.csv is not there"]


def test_who_is_kept_is_in_no_roster_of_people_to_forget(tmp_path):
    """Who is in one is certified as asked to be forgotten."""
    options = "class Options(Objective.Options):\n            roster: str"
    of_kept = OBJECTIVE.replace("trains =", f"{options}\n        trains =")
    plugin = write_plugin(tmp_path, of_kept)
    run = RUN.replace("preserve", "mine") + f"plugins: [{plugin.name}]\n"
    assert mistakes(run, "objectives.keep.roster=kept.csv") == [
        "objectives.keep.roster: mine forgets nobody, but who is in a `roster` is certified as "
        "asked to be forgotten; the plugin must call that option otherwise"
    ]


def test_an_evaluation_named_as_a_group_of_one_of_its_kind_is_refused():
    evaluations = """\
evaluations:
  identity_inference: &attack
    {kind: identity_inference, groups: {forget: a.csv, kept: b.csv}, distractors: c.txt}
  forget: {<<: *attack, pictures: 3}
  harder: {<<: *attack, pictures: 4}
  kept: {kind: zero_shot, shards: 0.tar}
"""
    assert mistakes(RUN + evaluations) == [
        "evaluations.forget: identity_inference, of the same kind, has a group of that name; "
        "rename the evaluation, or their measures are taken for each other's"
    ]


def test_every_bad_row_of_a_roster_is_told_below_the_objectives_path():
    Path("people.csv").write_text("name,id\n,1\n,2\n")
    text = RUN.replace("kind: preserve", "kind: name_to_person, target: x, roster: people.csv")
    first, *rows = mistakes(text)
    assert first.startswith("objectives.keep: roster people.csv")
    assert len(rows) == 2 and all(row.startswith("  ") for row in rows)


@pytest.mark.parametrize("wrong", ["steps=0", "objectives.more.kind=preserve", "nothing"])
def test_nothing_is_made_while_an_option_is_wrong(tmp_path, wrong):
    text = OBJECTIVE + "\n    Mine.__init__ = lambda self, options, seed: open('made', 'w').close()"
    plugin = write_plugin(tmp_path, text)
    run = RUN.replace("preserve", "mine") + f"plugins: [{plugin.name}]\n"
    mistakes(run, wrong)
    assert not Path("made").exists()
    load(run)
    assert Path("made").exists()


@pytest.mark.parametrize("override", ["steps", "=3", ".steps=3", "optimizer.=3", "a..b=3"])
def test_an_override_that_is_no_path_and_value_is_refused(override):
    assert mistakes(RUN, override) == [f"override {override!r}: write it as path.to.option=value"]


def test_an_override_below_a_list_is_refused():
    assert mistakes(RUN + "trackers: [wandb]", "trackers.0=aim") == [
        "override trackers.0: trackers is ['wandb'], not a section with options"
    ]


def test_an_override_that_yaml_cannot_read_asks_for_quotes():
    found = mistakes(RUN, "data.shards=*.tar")
    assert len(found) == 1 and found[0].startswith("override data.shards line 1: ")
    assert found[0].endswith("; text with signs of YAML's own needs quotes")
    assert load(RUN, "data.shards='*.tar'").data.shards == ["*.tar"]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "a_run.yaml: found nothing; a configuration is `option: value` lines"),
        ("- 3", "a_run.yaml: found [3]; a configuration is `option: value` lines"),
        (RUN + "steps: 3\n", "a_run.yaml line 7: steps is given twice"),
        (RUN + "export: {a: x,\n  a: y}", "a_run.yaml line 8: a is given twice"),
        ("steps: [3", "a_run.yaml line 1: expected ',' or ']', but got '<stream end>'"),
        ("a: 1\nb:\n\t- 3", "a_run.yaml line 3: found character '\\t' that cannot start any token"),
        ("a: !!python/object/apply:os.getcwd []", "a_run.yaml line 1: could not determine a"),
        ("seed: 2024-13-45", "a_run.yaml: this is no YAML: month must be in 1..12"),
        ("a: \0", "a_run.yaml: this is no YAML: unacceptable character #x0000"),
        ("seed: !!int", "a_run.yaml: this is no YAML: string index out of range"),
        ("[" * 5000, "a_run.yaml: nested too deep"),
        ("a: 1\n---\nb: 2", "a_run.yaml line 2: but found another document"),
    ],
)
def test_what_is_no_yaml_of_ours_is_refused_in_one_line(text, problem):
    found = mistakes(text)
    assert len(found) == 1 and found[0].startswith(problem)


def test_a_file_that_is_not_there_is_named():
    with pytest.raises(ConfigError, match=r"^absent\.yaml: No such file or directory$"):
        load_config("absent.yaml")


def test_a_folder_is_no_configuration(tmp_path):
    with pytest.raises(ConfigError, match=r": Is a directory$"):
        load_config(tmp_path)


def test_a_file_that_is_no_text_is_refused():
    Path("weights.pt").write_bytes(b"\x80\xff\xfe")
    with pytest.raises(ConfigError, match=r"^weights\.pt is no UTF-8 text; is it a configuration"):
        load_config("weights.pt")


def test_a_file_too_large_for_a_configuration_is_refused():
    Path("large.yaml").write_text("#" * 1_000_001)
    with pytest.raises(ConfigError, match=r"^large\.yaml is larger than 1000000 bytes"):
        load_config("large.yaml")


def test_a_message_stays_short_whatever_was_found():
    layers = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    # Whoever walks through all of it does not come back.
    layers += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 30)]
    found = mistakes(RUN + "\n".join([*layers, "steps_: *a29", "seed: *a29", "trackers: *a29"]))
    assert max(map(len, found)) < 1000


OPTIONS = st.sampled_from(
    ["model", "data", "objectives", "evaluations", "optimizer", "steps", "trackers", "plugins"]
    + ["seed", "output", "export", "kind", "name", "shards", "weight", "batch_size", "keep"]
    + ["preserve", "zero_shot", "name_to_person", "towers", "shares", "forget", "classes", "text"]
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4) | OPTIONS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(OPTIONS, inner, max_size=5),
    max_leaves=20,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(OPTIONS, VALUES, max_size=6))
def test_whatever_is_written_is_told_as_mistakes(raw):
    raw = yaml.safe_load(RUN) | raw | {"optimizer": {}}
    with pytest.raises(ConfigError) as caught:
        validate(raw, Path(), "any")
    assert "optimizer.lr: missing" in str(caught.value)
