"""What a run found, in the order and the words in which people ask: groups, measures, a verdict."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from trainer.reports.groups import LOW, NONE, SAME, Group, attacked, most_found, of_one_attack
from trainer.reports.results import Measures, Results
from trainer.reports.words import count_people, last_part, share, spoken
from trainer.statistics import Estimate

HALF = "near 0.5"
LOST, WON_BACK = "wrongly_forgotten", "newly_recalled"  # of kept people, after a run
TURNED = {LOST: LOW, WON_BACK: NONE}
OTHERS = {  # evaluations beside the attack and the tasks
    "identity_inference": "The same attack: other writings of the name, and everybody together",
    "encoder_swap": "The same attack, one tower the original's",
    "leakage": "Can the list of the forgotten be read off the model?",
    "text_inference": "Inference from text alone",
    "face_probe": "A classifier taught on few pictures of each person",
    "neighbours": "Neighbours: people whose names are near those to forget",
    "similarity": "How near to the target, how near to before",
    "zero_shot": "Ordinary tasks, other measures of them",
}
TASKS = {  # measures of utility, and what they are shares of
    r"zero_shot/(?:(.+)/)?accuracy": "Ordinary tasks, pictures classified right",
    r"retrieval/(.+/recall_\d+)": "Retrieval, found among the first 1, 5, 10",
}
WRITINGS = r"identity_inference/.+/found_(only_)?by/.+"
SHARES = re.compile(
    r"(.*/)?(tpr(_\d+)?|recall_\d+|top_\d+|(\w+_)?accuracy(_\d+)?|\w+_share|closed_set|flagged"
    rf"|mean_per_class)|{WRITINGS}"
)
AREAS = r"leakage/.*auc(_with_original|_of_text|_of_image)?"  # 0.5: the score tells nothing
COUNTS = ("people", "samples", "pictures", "names", "captions", "candidates")
LEFT_OUT = ("dropped", "skipped")  # told where there are any
LIMITS = (
    "Measured on this model, by these attacks alone: another attack may still find someone. "
    "Low figures are evidence, not a guarantee."
)


class Row(NamedTuple):
    label: str
    before: float | None  # an Estimate where its interval is known, None where not measured
    after: float | None
    wanted: str = NONE
    is_share: bool = True
    change: Estimate | None = None  # after - before, where the same cases were compared


class Section(NamedTuple):
    title: str
    rows: list[Row]


def sections(results: Results) -> list[Section]:
    """People under attack, then tasks; what was not measured is left out."""
    found = []
    for group in attacked(results):
        is_stranger = group.name == "unknown"
        found_by = "found by mistake, by" if is_stranger else "found by the attack, by"
        measures = [("tpr", f"{found_by} {group.prompts(1)} or more")]
        if group.majority:
            most = f"found by {group.prompts(group.majority)} or more"
            measures.append((f"tpr_{group.majority}", most))
        measures += [
            ("held_out/tpr", "found by a prompt that training never used"),
            ("picture_accuracy", "pictures named right, among all names"),
            ("closed_set", "pictures named right, among the known names only"),
            (LOST, "found before, no longer"),
            (WON_BACK, "found now, not before"),
        ]
        rows = [
            Row(label, *results.pair(f"{group.path}/{one}"), TURNED.get(one, group.wanted))
            for one, label in measures
            if f"{group.path}/{one}" in results.names
        ]
        people = results.count(f"{group.path}/people")
        title = f"{group.title} ({people:,.0f})" if people else group.title
        found.append(Section(title, rows))
    return found + tasks(results)


def tasks(results: Results) -> list[Section]:
    """Measures of utility, which are to stay as they were."""
    found = []
    for pattern, title in TASKS.items():
        rows = [
            Row(
                spoken(matched[1] or "zero_shot"),
                *results.pair(name),
                SAME,
                change=results.change(name),
            )
            for name in results.names
            if (matched := re.fullmatch(pattern, name))
        ]
        if rows:
            found.append(Section(title, rows))
    return found


def others(results: Results) -> list[Section]:
    """Every measure of every evaluation that `sections` has no words for, by evaluation."""
    found: dict[str, list[Row]] = {}
    for name in results.names:
        kind, _, rest = name.partition("/")
        pair = results.pair(name)
        is_nothing = not any(pair) if last_part(name) in LEFT_OUT else pair == (None, None)
        if not is_other(name) or is_nothing:
            continue
        wanted = HALF if re.fullmatch(AREAS, name) else NONE
        label = spoken(rest or name)
        if kind == "identity_inference":  # of all groups: the forgotten were known
            label = re.sub("accuracy$", "who was ever known, told rightly", label)
        row = Row(label, *pair, wanted, is_share=is_share(name))
        found.setdefault(kind, []).append(row)
    order = [*OTHERS, *(kind for kind in found if kind not in OTHERS)]
    return [Section(OTHERS.get(kind, spoken(kind)), found[kind]) for kind in order if kind in found]


def is_other(measure: str) -> bool:
    """Neither told by `sections` nor a mere count of what was measured."""
    apart = rf"{WRITINGS}|identity_inference/([^/]+/)?accuracy$|.+/dropped$"
    told = "|".join([rf"(?!{apart})identity_inference/.+", *TASKS])
    return not re.fullmatch(told, measure) and last_part(measure) not in COUNTS


def is_share(measure: str) -> bool:
    """Of what is better read as a percentage."""
    return SHARES.fullmatch(measure) is not None


def _by_other_writings(results: Results, groups: Sequence[Group]) -> float:
    """The share of the people to forget who were found after, of several attacks the most."""
    found = (
        results.pair(f"{group.path}/found_by/any_variant")[1]
        for group in groups
        if group.name == "forget"
    )
    return max((share for share in found if share is not None), default=0.0)


def verdict(results: Results) -> str:
    asked = results.identities
    groups = attacked(results)
    group = most_found(results, groups)
    if group is None:
        if not asked:
            return "Nobody was asked to be forgotten, and no attack on people to forget was run."
        if groups:
            why = "no group of people under attack is called `forget`"
        elif any(one.evaluation.startswith("identity_inference") for one in results.failures):
            why = "the attack failed"
        else:
            why = "no attack was configured"
        return (
            f"{count_people(asked)} asked to be forgotten, and {why}: "
            "nothing here says whether the model still knows them."
        )
    path = group.path
    num_attacked = results.count(f"{path}/people")
    found = [_people(measures, path) for measures in (results.before, results.after)]
    sentence = (
        f"Of {count_people(num_attacked)} asked to be forgotten, the identity inference attack "
        f"found {found[0]} before and {found[1]} after."
    )
    if rewritten := _by_other_writings(results, groups):
        sentence += f" By other writings of their names it still found {share(rewritten)}."
    if num_attacked and asked > num_attacked:
        sentence += f" {asked:,} were asked for; this attack did not look for the others."
    return sentence


def kept(results: Results, groups: Sequence[Group]) -> str:
    """The honest test first: people that training never showed."""
    by_name = of_one_attack(results, groups)
    for name, who in (("unseen", "that training never showed"), ("replayed", "")):
        if name in by_name and (most := by_name[name].majority):
            group = by_name[name]
            moments = (results.before, results.after)
            found = [_people(measures, group.path, most) for measures in moments]
            people = count_people(results.count(f"{group.path}/people"))
            return (
                f"Of {people} to keep {who}".strip()
                + f", it found {found[0]} before and {found[1]} after, "
                f"each by {group.prompts(most)} or more."
            )
    return ""


def harmonic_mean(results: Results) -> tuple[float, float] | None:
    """Of the pictures of the forgotten that are named wrong and of those to keep, unseen if there
    are, that are named right; before and after. As MACE (arXiv 2403.06135) has it: 1 is the best.
    """
    # Those to keep by the same attack where it has them: others may have other names to choose.
    by_name = of_one_attack(results, attacked(results))
    for kept_group in ("unseen", "replayed"):
        if not by_name.keys() >= {"forget", kept_group}:
            continue
        named = [
            results.pair(f"{by_name[name].path}/picture_accuracy")
            for name in ("forget", kept_group)
        ]
        if None not in (*named[0], *named[1]):
            before, after = (
                0.0 if forget == 1 or keep == 0 else 2 / (1 / (1 - forget) + 1 / keep)
                for forget, keep in zip(*named, strict=True)
            )
            return before, after
    return None


def _people(measures: Measures, path: str, at_least: int = 1) -> str:
    """How many people are found by that many prompts, for a sentence."""
    if won := measures.get(f"{path}/prompts_won"):
        return f"{sum(won[at_least:]):,.0f}"
    known = measures.get(f"{path}/tpr" if at_least == 1 else f"{path}/tpr_{at_least}")
    return "(not measured)" if known is None else share(known)
