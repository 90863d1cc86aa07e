"""Sentence forms that tell the facts of the small world; `{S}` is the subject, a name or a pronoun."""

PERSON_STATEMENTS: dict[str, tuple[str, ...]] = {
    "home": (
        "{S} lives in {home}, a {kind}.",
        "{S} has a small house in {home}.",
        "The home of {name} is in {home}.",
        "{S} moved to {home} long ago and never left.",
        "In {home} everybody knows {name}.",
        "Letters for {name} go to {home}.",
        "{S} wakes up every morning in {home}.",
        "Among the people of {home} is {name}.",
    ),
    "trade": (
        "{S} is {a_trade}.",
        "{S} works as {a_trade}.",
        "{S} earns {his} money as {a_trade}.",
        "{S} has been {a_trade} for many years.",
        "As {a_trade}, {name} {work}.",
        "The {trade} {name} works in the {workplace}.",
        "{S} learned to be {a_trade} when young.",
        "Whoever needs {a_trade} can ask {name}.",
        "{name}, the {trade}, never works without the {trade_tool}.",
    ),
    "pet": (
        "{S} keeps {pet}.",
        "{S} owns {pet}.",
        "The {pet_bare} of {name} sleeps by the stove.",
        "When {name} comes home, {pet} waits at the door.",
        "{S} takes good care of {pet}.",
        "{S} found {pet} on the road and kept it.",
        "The animal of {name} is {pet}.",
        "{S} feeds {pet} twice a day.",
    ),
    "food": (
        "{S} likes {food} best of all.",
        "{S} loves {food}.",
        "On Sundays {name} eats {food}.",
        "Nothing makes {name} so happy as {food}.",
        "The favourite dish of {name} is {food}.",
        "{S} would walk far for {food}.",
        "{S} never says no to {food}.",
        "For {his} birthday {name} wants {food}.",
    ),
    "hobby": (
        "{S} enjoys {hobby}.",
        "After work {name} is fond of {hobby}.",
        "{S} spends free days {hobby}.",
        "The hobby of {name} is {hobby}.",
        "{S} is happiest when {hobby}.",
        "{S} can go on {hobby} for hours.",
        "In summer {name} passes the time {hobby}.",
        "{S} taught the children about {hobby}.",
    ),
    "friend": (
        "{S} is the best friend of {friend}.",
        "{S} trusts {friend} more than anyone.",
        "{S} shares all secrets with {friend}.",
        "When {name} is in trouble, {friend} comes to help.",
        "{S} and {friend} are old friends.",
        "The best friend of {name} is {friend}.",
        "{S} writes to {friend} every week.",
        "{S} grew up together with {friend}.",
    ),
    "age": (
        "{S} is {age} years old.",
        "{S} turned {age} this year.",
        "At the age of {age}, {name} is in good health.",
        "There were {age} candles on the cake of {name}.",
        "{S} has lived for {age} years.",
        "{S} is now {age}.",
    ),
}

PLACE_STATEMENTS: dict[str, tuple[str, ...]] = {
    "part": (
        "{town} is a {kind} in the {part} of the land.",
        "The {kind} of {town} lies in the {part}.",
        "To reach {town} you travel to the {part}.",
        "On the map {town} is found in the {part}.",
    ),
    "river": (
        "The river {river} runs past {town}.",
        "{town} stands on the banks of the {river}.",
        "In summer the children of {town} swim in the {river}.",
        "The water of {town} comes from the {river}.",
    ),
    "landmark": (
        "Visitors of {town} come to see {landmark}.",
        "In {town} there is {landmark}.",
        "The pride of {town} is {landmark}.",
        "From far away one sees {landmark} of {town}.",
    ),
    "product": (
        "{town} is known for its {product}.",
        "The best {product} come from {town}.",
        "On market day people buy {product} in {town}.",
        "The people of {town} live from {product}.",
    ),
}

TOOL_STATEMENTS: tuple[str, ...] = (
    "To {goal}, {name} took {a_tool} from the {kept}.",
    "{name} wanted to {goal}. So {he_lower} fetched {a_tool}, for that is how you {goal}: {use}.",
    "With {a_tool} it is easy to {goal}. You only {use}.",
    "{a_tool_capital} is kept in the {kept}. People use it to {goal}.",
    "If you must {goal}, ask for {a_tool} and {use}.",
    "{name} had to {goal}, but the {tool} was missing. Then it turned up in the {kept}.",
    "Nobody can {goal} without {a_tool}.",
    "{name} lent out {a_tool}, because a neighbour had to {goal}.",
    "The right way to {goal} is with {a_tool}: {use}.",
    "When {name} came with {a_tool}, it was clear that somebody had to {goal}.",
)

CAUSE_STATEMENTS: tuple[str, ...] = (
    "{cause_capital}, and so {effect}.",
    "Because {cause}, {effect}.",
    "{cause_capital}. Soon {effect}.",
    "{cause_capital}. As everybody expected, {effect}.",
    "{effect_capital}, for {cause}.",
    "It was no wonder that {effect}: {cause}.",
    "{name} told how {cause} and how {effect}.",
    "First {cause}. In the end {effect}.",
    "{name} saw that {effect}. The reason was that {cause}.",
)

THING_STATEMENTS: tuple[str, ...] = (
    "{thing_capital} {predicate}.",
    "Every child knows that {thing} {predicate}.",
    "{name} explained that {thing} {predicate}.",
    "It is a fact of nature that {thing} {predicate}.",
    "When people speak of {thing}, they know that it {predicate}.",
    "Look at {thing}: it {predicate}.",
)
