"""The facts of the small world, and which questions about them are kept out of the training text."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

from lexicon import CAUSES, FOODS, HOBBIES, MEN, PET_COLOURS, PETS, SURNAMES, THINGS, TOOLS, TOWNS, TRADES, WOMEN

Split = Literal["train", "validation", "test"]

WORLD_SEED = 20261122
PEOPLE = 240
TOOL_QUESTION_FORMS = 6
CAUSE_QUESTION_FORMS = 6
THING_QUESTION_FORMS = 4

PERSON_ATTRIBUTES = ("home", "trade", "pet", "food", "hobby", "friend", "age")
PLACE_ATTRIBUTES = ("part", "river", "landmark", "product")


@dataclass(frozen=True)
class Place:
    """A town and what is true of it."""

    name: str
    kind: str
    part: str
    river: str
    landmark: str
    product: str


@dataclass(frozen=True)
class Trade:
    """A trade, where it is done, what it does and the tool it is known by."""

    name: str
    workplace: str
    work: str
    tool: str


@dataclass(frozen=True)
class Tool:
    """A tool, the goal it serves, how it is used and where it is kept."""

    name: str
    goal: str
    use: str
    kept: str


@dataclass(frozen=True)
class Cause:
    """A cause and its effect, both in the past tense."""

    cause: str
    effect: str


@dataclass(frozen=True)
class Thing:
    """A thing and a predicate that is true of it."""

    name: str
    predicate: str


@dataclass(frozen=True)
class Person:
    """A person and what is true of them; `friend` is an index into the people of the world."""

    first: str
    surname: str
    is_woman: bool
    home: Place
    trade: Trade
    pet: str
    food: str
    hobby: str
    age: int
    friend: int

    @property
    def name(self) -> str:
        """First name and surname."""
        return f"{self.first} {self.surname}"


@dataclass(frozen=True)
class World:
    """Everything that is true, and the split that each question belongs to.

    `question_split` maps a question's key, such as ("person", 17, "home") or ("tool", 3, 5), to the one split whose
    documents and items may ask it. Statements about the same facts occur in every split.
    """

    people: tuple[Person, ...]
    places: tuple[Place, ...]
    trades: tuple[Trade, ...]
    tools: tuple[Tool, ...]
    causes: tuple[Cause, ...]
    things: tuple[Thing, ...]
    question_split: dict[tuple[str, int, str | int], Split]


def article(noun: str) -> str:
    """The noun with its indefinite article."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def _people(rng: random.Random, places: tuple[Place, ...], trades: tuple[Trade, ...]) -> tuple[Person, ...]:
    names = [(first, surname, True) for first in WOMEN for surname in SURNAMES]
    names += [(first, surname, False) for first in MEN for surname in SURNAMES]
    chosen = rng.sample(names, PEOPLE)
    order = list(range(PEOPLE))
    rng.shuffle(order)
    friend = {}
    for left, right in zip(order[::2], order[1::2], strict=True):
        friend[left], friend[right] = right, left
    return tuple(
        Person(
            first=first,
            surname=surname,
            is_woman=is_woman,
            home=rng.choice(places),
            trade=rng.choice(trades),
            pet=f"a {rng.choice(PET_COLOURS)} {rng.choice(PETS)}",
            food=rng.choice(FOODS),
            hobby=rng.choice(HOBBIES),
            age=rng.randint(20, 79),
            friend=friend[index],
        )
        for index, (first, surname, is_woman) in enumerate(chosen)
    )


def _assign_held_out(rng: random.Random, world: World) -> None:
    """Give each held-out split one attribute of every person and place, and some question forms of every other fact."""
    splits = world.question_split

    def assign(kind: str, index: int, keys: Sequence[str | int], held_out: tuple[Split, ...]) -> None:
        chosen = rng.sample(list(keys), len(held_out))
        for key in keys:
            splits[(kind, index, key)] = "train"
        for split, key in zip(held_out, chosen, strict=True):
            splits[(kind, index, key)] = split

    for index in range(len(world.people)):
        assign("person", index, PERSON_ATTRIBUTES, ("validation", "test"))
    for index in range(len(world.places)):
        assign("place", index, PLACE_ATTRIBUTES, ("validation", "test"))
    for index in range(len(world.tools)):
        assign("tool", index, range(TOOL_QUESTION_FORMS), ("validation", "test", "test"))
    for index in range(len(world.causes)):
        assign("cause", index, range(CAUSE_QUESTION_FORMS), ("validation", "test", "test"))
    for index in range(len(world.things)):
        assign("thing", index, range(THING_QUESTION_FORMS), ("validation", "test"))


@cache
def build_world() -> World:
    """The one world of this generator; always the same."""
    rng = random.Random(WORLD_SEED)
    places = tuple(Place(*fields) for fields in TOWNS)
    trades = tuple(Trade(*fields) for fields in TRADES)
    world = World(
        people=_people(rng, places, trades),
        places=places,
        trades=trades,
        tools=tuple(Tool(*fields) for fields in TOOLS),
        causes=tuple(Cause(*fields) for fields in CAUSES),
        things=tuple(Thing(*fields) for fields in THINGS),
        question_split={},
    )
    _assign_held_out(rng, world)
    return world
