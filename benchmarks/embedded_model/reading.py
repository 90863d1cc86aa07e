"""Readings: a short story whose question is answered by the story itself, with two things that could be asked for."""

# Lists of words are read more easily in running text.
# ruff: noqa: SIM905

import random

from questions import Question
from world import Person, World

OBJECTS = (
    "key ring letter coin book shoe spoon lamp knife map cup pen watch doll brush button purse bell ball hat".split()
)
PLACES = (
    "in the box,under the bed,on the table,behind the door,in the basket,on the shelf,under the bench,in the drawer,"
    "on the roof,behind the barn,in the well,under the tree"
).split(",")
PUT_FORMS = (
    "{name} put the {thing} {place}.",
    "{name} hid the {thing} {place}.",
    "{name} left the {thing} {place}.",
    "The {thing} of {name} lay {place}.",
)
FILLERS = (
    "Then a neighbour knocked.",
    "Outside it began to rain.",
    "It was getting late.",
    "Nobody else was there.",
    "After that the clock struck four.",
    "A dog barked in the yard.",
)
WHERE_FORMS = ("Where is the {thing}?", "Where must one look for the {thing}?")
WHO_FORMS = ("Whose is the {thing}?", "Who had the {thing}?")
WHAT_FORMS = ("What is {place}?", "What can be found {place}?")


def _two_people(rng: random.Random, world: World) -> tuple[Person, Person]:
    first = rng.choice(world.people)
    return first, rng.choice([person for person in world.people if person.first != first.first])


def reading(rng: random.Random, world: World) -> tuple[str, tuple[Question, Question]]:
    """A story of two things and two questions about it; the right answer of each is a wrong answer of the other."""
    people = _two_people(rng, world)
    things = rng.sample(OBJECTS, 2)
    places = rng.sample(PLACES, 2)
    sentences = [
        rng.choice(PUT_FORMS).format(name=person.first, thing=thing, place=place)
        for person, thing, place in zip(people, things, places, strict=True)
    ]
    sentences.insert(rng.randint(0, 2), rng.choice(FILLERS))
    kind = rng.choice(("where", "who", "what"))
    if kind == "where":
        form = rng.choice(WHERE_FORMS)
        pair = [
            Question(form.format(thing=thing), f"It is {place}.") for thing, place in zip(things, places, strict=True)
        ]
    elif kind == "who":
        form = rng.choice(WHO_FORMS)
        pair = [
            Question(form.format(thing=thing), f"{person.first}.") for thing, person in zip(things, people, strict=True)
        ]
    else:
        form = rng.choice(WHAT_FORMS)
        pair = [
            Question(form.format(place=place), f"The {thing}.") for thing, place in zip(things, places, strict=True)
        ]
    return " ".join(sentences), (pair[0], pair[1])


def reading_document(rng: random.Random, world: World) -> str:
    """Two or three readings, each with one or both of its questions."""
    parts = []
    for _ in range(rng.randint(2, 3)):
        text, questions = reading(rng, world)
        for question in rng.sample(questions, rng.randint(1, 2)):
            parts.append(f"Question: {text} {question.goal}\nAnswer: {question.answer}")
    return "\n\n".join(parts)
