"""Documents of the small world: profiles, stories, dialogues, how-to texts, travel notes, readings and questions.

Every document has its own random stream, named by split and number, so any document can be written without the others.
"""

import random
from collections.abc import Callable, Iterator

from questions import (
    Question,
    capital,
    cause_fields,
    person_fields,
    place_fields,
    questions_of_split,
    thing_fields,
    tool_fields,
)
from reading import reading_document
from statements import CAUSE_STATEMENTS, PERSON_STATEMENTS, PLACE_STATEMENTS, THING_STATEMENTS, TOOL_STATEMENTS
from world import PERSON_ATTRIBUTES, PLACE_ATTRIBUTES, Person, Split, World, build_world

Writer = Callable[[random.Random, World], str]

DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
WEATHERS = (
    "The sun was shining.",
    "A light rain was falling.",
    "The wind was cold.",
    "Fog lay over the fields.",
    "The air smelled of spring.",
    "Snow covered the roofs.",
)
ENDINGS = (
    "They laughed and went home.",
    "In the evening all was quiet again.",
    "That was a good day.",
    "Nobody spoke of it afterwards.",
    "Then it was time for supper.",
    "The next day work went on as usual.",
)
OPENINGS = (
    "On {day} morning {name} left the house in {home}.",
    "One {day} {name}, {a_trade} from {home}, met {friend}.",
    "It was {day}, and {name} had no work at the {workplace}.",
    "Late on {day} {name} came back to {home}.",
    "{name} from {home} will not forget that {day}.",
    "On {day} {name} and {friend} went for a walk near {home}.",
    "Last {day} {pet} of {name} ran through the streets of {home}.",
)


def _statement(rng: random.Random, world: World, person: Person, attribute: str, is_first: bool) -> str:
    fields = person_fields(world, person)
    subject = person.name if is_first or rng.random() < 0.4 else rng.choice((fields["he"], person.first))
    return rng.choice(PERSON_STATEMENTS[attribute]).format(S=subject, **fields)


def _tool_statement(rng: random.Random, world: World, person: Person) -> str:
    fields = person_fields(world, person) | tool_fields(rng.choice(world.tools))
    return rng.choice(TOOL_STATEMENTS).format(**fields)


def _cause_statement(rng: random.Random, world: World, person: Person) -> str:
    fields = person_fields(world, person) | cause_fields(rng.choice(world.causes))
    return rng.choice(CAUSE_STATEMENTS).format(**fields)


def _thing_statement(rng: random.Random, world: World, person: Person) -> str:
    fields = person_fields(world, person) | thing_fields(rng.choice(world.things))
    return capital(rng.choice(THING_STATEMENTS).format(**fields))


def profile(rng: random.Random, world: World) -> str:
    """Two people who are friends, or one alone, told attribute by attribute."""
    person = rng.choice(world.people)
    people = [person, world.people[person.friend]] if rng.random() < 0.5 else [person]
    sentences = []
    for somebody in people:
        attributes = rng.sample(PERSON_ATTRIBUTES, rng.randint(4, 7))
        sentences += [
            _statement(rng, world, somebody, attribute, position == 0) for position, attribute in enumerate(attributes)
        ]
    return " ".join(sentences)


def story(rng: random.Random, world: World) -> str:
    """A day of a person, with facts about them, a tool and something that happens."""
    person = rng.choice(world.people)
    fields = person_fields(world, person)
    sentences = [rng.choice(OPENINGS).format(day=rng.choice(DAYS), **fields), rng.choice(WEATHERS)]
    middle = [_statement(rng, world, person, attribute, False) for attribute in rng.sample(PERSON_ATTRIBUTES, 2)]
    middle += [_tool_statement(rng, world, person) for _ in range(rng.randint(1, 2))]
    middle += [_cause_statement(rng, world, person) for _ in range(rng.randint(1, 2))]
    rng.shuffle(middle)
    return " ".join([*sentences, *middle, rng.choice(ENDINGS)])


def how_to(rng: random.Random, world: World) -> str:
    """Advice about several tools and things."""
    person = rng.choice(world.people)
    count = rng.randint(3, 5)
    sentences = [_tool_statement(rng, world, person) for _ in range(count)]
    sentences += [_thing_statement(rng, world, person) for _ in range(rng.randint(1, 3))]
    rng.shuffle(sentences)
    return " ".join(sentences)


def chronicle(rng: random.Random, world: World) -> str:
    """What happened in a town, as a list of causes and effects."""
    person = rng.choice(world.people)
    opening = f"The chronicle of {person.home.name} tells of a strange {rng.choice(('week', 'month', 'year'))}."
    sentences = [_cause_statement(rng, world, person) for _ in range(rng.randint(3, 5))]
    return " ".join([opening, *sentences])


def travel_note(rng: random.Random, world: World) -> str:
    """One or two towns and some of their people."""
    sentences = []
    for place in rng.sample(world.places, rng.randint(1, 2)):
        for attribute in rng.sample(PLACE_ATTRIBUTES, rng.randint(2, 4)):
            sentences.append(rng.choice(PLACE_STATEMENTS[attribute]).format(**place_fields(place)))
        residents = [person for person in world.people if person.home == place]
        for person in rng.sample(residents, min(len(residents), rng.randint(1, 2))):
            sentences.append(
                rng.choice(PERSON_STATEMENTS["home"]).format(S=person.name, **person_fields(world, person))
            )
            sentences.append(_statement(rng, world, person, rng.choice(PERSON_ATTRIBUTES), False))
    return " ".join(sentences)


def dialogue(rng: random.Random, world: World) -> str:
    """Two friends who tell each other facts about somebody and about the world."""
    speaker = rng.choice(world.people)
    other = world.people[speaker.friend]
    subject = rng.choice(world.people)
    lines = [
        f"{speaker.first}: Good {rng.choice(('morning', 'evening', 'day'))}, {other.first}! Do you know {subject.name}?"
    ]
    replies = [_statement(rng, world, subject, attribute, True) for attribute in rng.sample(PERSON_ATTRIBUTES, 2)]
    replies += [_statement(rng, world, subject, rng.choice(PERSON_ATTRIBUTES), False)]
    replies += [rng.choice((_thing_statement, _cause_statement, _tool_statement))(rng, world, subject)]
    for position, reply in enumerate(replies):
        name = (other, speaker)[position % 2].first
        word = rng.choice(("Yes.", "Oh, yes.", "I see.", "Of course.", "That is true."))
        lines.append(f"{name}: {word} {reply}")
    return "\n".join(lines)


def question_writer(split: Split) -> Writer:
    """A writer of question lists which asks only what the split may ask."""
    questions = questions_of_split(build_world(), split)
    kinds = ("person", "person", "person", "person", "tool", "cause", "place", "thing")

    def write(rng: random.Random, _world: World) -> str:
        chosen: list[Question] = [rng.choice(questions[rng.choice(kinds)]) for _ in range(rng.randint(4, 6))]
        return "\n\n".join(f"Question: {question.goal}\nAnswer: {question.answer}" for question in chosen)

    return write


def writers(split: Split) -> tuple[tuple[Writer, int], ...]:
    """The kinds of document and how often each occurs, in hundredths."""
    return (
        (profile, 28),
        (story, 14),
        (how_to, 4),
        (chronicle, 4),
        (travel_note, 6),
        (dialogue, 8),
        (reading_document, 12),
        (question_writer(split), 24),
    )


def documents(split: Split, kinds: tuple[Writer, ...] | None = None) -> Iterator[str]:
    """The endless stream of documents of a split, always the same.

    Args:
        split: names the random stream, and decides which questions may be asked.
        kinds: write only these kinds, in equal shares.
    """
    world = build_world()
    choices = [(kind, 1) for kind in kinds] if kinds else list(writers(split))
    functions, weights = zip(*choices, strict=True)
    number = 0
    while True:
        rng = random.Random(f"{split} {number}")
        yield rng.choices(functions, weights)[0](rng, world)
        number += 1
