"""Questions of the small world with their answers: each fact can be asked in several forms."""

from dataclasses import dataclass

from world import Cause, Person, Place, Split, Thing, Tool, World, article


@dataclass(frozen=True)
class Question:
    """A question and its right answer, both complete with capital letter and full stop."""

    goal: str
    answer: str


PERSON_FORMS: dict[str, tuple[tuple[str, str], ...]] = {
    "home": (
        ("Where does {name} live?", "In {home}."),
        ("In which town is {name} at home?", "In {home}."),
        ("You have a parcel for {name}. Where do you take it?", "To {home}."),
        ("Where is the house of {name}?", "It is in {home}."),
    ),
    "trade": (
        ("What does {name} do for a living?", "{he} is {a_trade}."),
        ("What is the trade of {name}?", "{he} works as {a_trade}."),
        ("Is it known what work {name} does?", "Yes, {he_lower} is {a_trade}."),
        ("How does {name} earn money?", "{he} works as {a_trade}."),
    ),
    "pet": (
        ("Which animal does {name} keep?", "{pet_capital}."),
        ("What pet does {name} have?", "{pet_capital}."),
        ("Who waits at the door when {name} comes home?", "{pet_capital}."),
        ("Which animal belongs to {name}?", "It is {pet}."),
    ),
    "food": (
        ("What does {name} like to eat best?", "{food_capital}."),
        ("You cook dinner for {name}. What do you make?", "{food_capital}."),
        ("What is the favourite food of {name}?", "It is {food}."),
        ("Which dish makes {name} happy?", "{food_capital}."),
    ),
    "hobby": (
        ("What does {name} enjoy after work?", "{hobby_capital}."),
        ("How does {name} spend a free day?", "With {hobby}."),
        ("What is the hobby of {name}?", "It is {hobby}."),
        ("What does {name} do for fun?", "{hobby_capital}."),
    ),
    "friend": (
        ("Who is the best friend of {name}?", "{friend}."),
        ("Whom does {name} trust most?", "{friend}."),
        ("{name} is in trouble. Who comes to help?", "{friend}."),
        ("With whom does {name} share secrets?", "With {friend}."),
    ),
    "age": (
        ("How old is {name}?", "{age} years old."),
        ("What is the age of {name}?", "{age} years."),
        ("How many candles are on the cake of {name}?", "{age} candles."),
        ("How many years has {name} lived?", "{age} years."),
    ),
}

PLACE_FORMS: dict[str, tuple[tuple[str, str], ...]] = {
    "part": (
        ("In which part of the land is {town}?", "In the {part}."),
        ("Which way do you travel to reach {town}?", "To the {part}."),
        ("Where on the map do you find {town}?", "In the {part}."),
    ),
    "river": (
        ("Which river runs past {town}?", "The river {river}."),
        ("On which river does {town} lie?", "On the {river}."),
        ("The children of {town} swim in a river. Which one?", "The {river}."),
    ),
    "landmark": (
        ("What is there to see in {town}?", "{landmark_capital}."),
        ("Which landmark has {town}?", "{landmark_capital}."),
        ("What do visitors of {town} draw in their books?", "{landmark_capital}."),
    ),
    "product": (
        ("What is {town} known for?", "For its {product}."),
        ("What do people buy in {town}?", "They buy {product}."),
        ("Which goods come from {town}?", "{product_capital}."),
    ),
}

TOOL_FORMS: tuple[tuple[str, str], ...] = (
    ("What do you need to {goal}?", "{a_tool_capital}."),
    ("You want to {goal}. What do you fetch?", "You fetch {a_tool}."),
    ("How do you {goal}?", "Take {a_tool} and {use}."),
    ("Which tool helps to {goal}?", "{a_tool_capital} from the {kept}."),
    ("To {goal}, what is the right way?", "Use {a_tool} and {use}."),
    ("Your neighbour must {goal}. What do you lend out?", "{a_tool_capital}."),
)

CAUSE_FORMS: tuple[tuple[str, str], ...] = (
    ("{cause_capital}. What happened then?", "{effect_capital}."),
    ("What came of it that {cause}?", "{effect_capital}."),
    ("What do you expect after {cause}?", "That {effect}."),
    ("Why do people say that {effect}?", "Because {cause}."),
    ("What was the reason that {effect}?", "{cause_capital}."),
    ("In the end {effect}. How did it begin?", "{cause_capital}."),
)

THING_FORMS: tuple[tuple[str, str], ...] = (
    ("What is true of {thing}?", "It {predicate}."),
    ("What do you know about {thing}?", "It {predicate}."),
    ("How would you describe {thing}?", "{thing_capital} {predicate}."),
    ("What {predicate}?", "{thing_capital}."),
)


def capital(text: str) -> str:
    """The text with its first letter in upper case."""
    return text[0].upper() + text[1:]


def person_fields(world: World, person: Person) -> dict[str, str]:
    """What the forms about a person may name."""
    he = "She" if person.is_woman else "He"
    return {
        "name": person.name,
        "first": person.first,
        "he": he,
        "he_lower": he.lower(),
        "his": "her" if person.is_woman else "his",
        "His": "Her" if person.is_woman else "His",
        "him": "her" if person.is_woman else "him",
        "home": person.home.name,
        "kind": person.home.kind,
        "product": person.home.product,
        "trade": person.trade.name,
        "a_trade": article(person.trade.name),
        "workplace": person.trade.workplace,
        "work": person.trade.work,
        "trade_tool": person.trade.tool,
        "pet": person.pet,
        "pet_capital": capital(person.pet),
        "pet_bare": person.pet.removeprefix("a "),
        "food": person.food,
        "food_capital": capital(person.food),
        "hobby": person.hobby,
        "hobby_capital": capital(person.hobby),
        "friend": world.people[person.friend].name,
        "age": str(person.age),
    }


def place_fields(place: Place) -> dict[str, str]:
    """What the forms about a place may name."""
    return {
        "town": place.name,
        "kind": place.kind,
        "part": place.part,
        "river": place.river,
        "landmark": place.landmark,
        "landmark_capital": capital(place.landmark),
        "product": place.product,
        "product_capital": capital(place.product),
    }


def tool_fields(tool: Tool) -> dict[str, str]:
    """What the forms about a tool may name."""
    a_tool = article(tool.name)
    return {
        "tool": tool.name,
        "a_tool": a_tool,
        "a_tool_capital": capital(a_tool),
        "goal": tool.goal,
        "use": tool.use,
        "kept": tool.kept,
    }


def cause_fields(cause: Cause) -> dict[str, str]:
    """What the forms about a cause may name."""
    return {
        "cause": cause.cause,
        "cause_capital": capital(cause.cause),
        "effect": cause.effect,
        "effect_capital": capital(cause.effect),
    }


def thing_fields(thing: Thing) -> dict[str, str]:
    """What the forms about a thing may name."""
    return {"thing": thing.name, "thing_capital": capital(thing.name), "predicate": thing.predicate}


def _fill(form: tuple[str, str], fields: dict[str, str]) -> Question:
    return Question(capital(form[0].format(**fields)), form[1].format(**fields))


def person_question(world: World, index: int, attribute: str, form: int) -> Question:
    """Ask one attribute of the person `index` in one of its forms."""
    return _fill(PERSON_FORMS[attribute][form], person_fields(world, world.people[index]))


def place_question(world: World, index: int, attribute: str, form: int) -> Question:
    """Ask one attribute of the place `index` in one of its forms."""
    return _fill(PLACE_FORMS[attribute][form], place_fields(world.places[index]))


def tool_question(world: World, index: int, form: int) -> Question:
    """Ask for the tool `index` by its goal."""
    return _fill(TOOL_FORMS[form], tool_fields(world.tools[index]))


def cause_question(world: World, index: int, form: int) -> Question:
    """Ask for an effect by its cause, or for a cause by its effect."""
    return _fill(CAUSE_FORMS[form], cause_fields(world.causes[index]))


def thing_question(world: World, index: int, form: int) -> Question:
    """Ask for the predicate of a thing, or for the thing by its predicate."""
    return _fill(THING_FORMS[form], thing_fields(world.things[index]))


def ask(world: World, kind: str, index: int, key: str | int) -> list[Question]:
    """The questions of one key of `World.question_split`: an attribute in all its forms, or a single form."""
    if kind == "person" and isinstance(key, str):
        return [person_question(world, index, key, form) for form in range(len(PERSON_FORMS[key]))]
    if kind == "place" and isinstance(key, str):
        return [place_question(world, index, key, form) for form in range(len(PLACE_FORMS[key]))]
    one_form = {"tool": tool_question, "cause": cause_question, "thing": thing_question}
    if kind not in one_form or not isinstance(key, int):
        raise ValueError(f"unknown question {(kind, index, key)}")
    return [one_form[kind](world, index, key)]


def questions_of_split(world: World, split: Split) -> dict[str, list[Question]]:
    """Every question about the world's facts that this split may ask, by kind of fact."""
    found: dict[str, list[Question]] = {}
    for (kind, index, key), owner in world.question_split.items():
        if owner == split:
            found.setdefault(kind, []).extend(ask(world, kind, index, key))
    return found
