"""Who is attacked, with which pictures, among which names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random

from trainer import Identity, Pictures, Unread, fold, names_of, read_names, read_roster

UNKNOWN = "unknown"  # the group of people who were never learnt
PUBLISHED = 1000  # names that the published attack chooses among


@dataclass(frozen=True)
class Group:
    """The people of one roster who have enough pictures, and where these are."""

    name: str
    people: list[Identity]
    places: list[int]  # of each of them in `pictures`
    pictures: Pictures
    num_dropped: int


def read_groups(paths: Mapping[str, str], num_pictures: int) -> list[Group]:
    """The known first. Raises ValueError where a group has nobody or two groups share someone."""
    names = sorted(paths, key=lambda name: name == UNKNOWN)
    groups = [_read_group(name, paths[name], num_pictures) for name in names]
    _refuse_shared_people(groups, paths)
    return groups


def _read_group(name: str, path: str, num_pictures: int) -> Group:
    roster = read_roster(path)
    shown = [person for person in roster if person.faces]
    pictures = Pictures.of(shown)
    places = [i for i in range(len(shown)) if pictures.count(i) >= num_pictures]
    if not places:
        most = max((pictures.count(i) for i in range(len(shown))), default=0)
        raise ValueError(
            f"group {name}: none of the {len(roster)} people of {path} has {num_pictures} "
            f"pictures, the most are {most}; lower `pictures` or add to their faces"
        )
    dropped = len(roster) - len(places)
    return Group(name, [shown[i] for i in places], places, pictures, dropped)


def _refuse_shared_people(groups: Sequence[Group], paths: Mapping[str, str]) -> None:
    """A name in two groups has no one true owner."""
    owner: dict[str, str] = {}
    for group in groups:
        names = {fold(person.name) for person in group.people}
        if shared := names & owner.keys():
            first = owner[min(shared)]
            raise ValueError(
                f"{len(shared)} people of group {group.name} ({paths[group.name]}) are in another "
                f"group too, one of them in {first} ({paths[first]}); list each once"
            )
        owner |= dict.fromkeys(names, group.name)


def attack_pictures(groups: Sequence[Group], num_pictures: int) -> Unread:
    """The first `m` pictures of each person of each group."""
    people = [(group.pictures, place) for group in groups for place in group.places]

    def read(index: int) -> bytes:
        pictures, place = people[index // num_pictures]
        return pictures.read(place, index % num_pictures)

    return Unread(len(people) * num_pictures, read)


def draw_candidates(
    people: Sequence[Identity],
    path: str,
    count: int | None,
    seed: int,
    others: Sequence[str] = (),
) -> list[str]:
    """The people's own names, in their order, then others, then names drawn from a file, `count`
    in all; None: as many as the published attack has, but no more than half of them people's."""
    num_own = len(people) + len(others)
    if count is None:
        count = max(PUBLISHED, 2 * num_own)
    wanted = count - num_own
    if wanted < 0:
        beside = f" beside {len(others)} others" if others else ""
        raise ValueError(
            f"candidates is {count}, but {len(people)} people are attacked{beside}; "
            "their names alone are more: raise it"
        )
    own = {fold(name) for name in others}
    free = [name for name in names_of_nobody(people, path) if fold(name) not in own]
    if len(free) < wanted:
        raise ValueError(
            f"{path} has {len(free)} names that no attacked person bears; "
            f"{wanted} are needed to make {count} candidates: add to it, or lower `candidates`"
        )
    return [*(person.name for person in people), *others, *Random(seed).sample(free, wanted)]


def names_of_nobody(people: Sequence[Identity], path: str) -> list[str]:
    """A file's names, each once, without those that someone bears: choosing one would be right."""
    taken = {fold(name) for name in names_of(people)}
    others = {fold(name): name for name in read_names(path)}
    return [name for folded, name in others.items() if folded not in taken]
