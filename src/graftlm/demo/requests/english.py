"""English requests."""

from __future__ import annotations

from graftlm.demo.requests.english_templates import INTRODUCTIONS, SIGNATURES, TEMPLATES
from graftlm.demo.requests.vocabulary import DAYS, Dice, Language, Pool

__all__ = ["ENGLISH"]

NUMBERS = (
    "zero", "one", "two", "three", "four", "five", "six",
    "seven", "eight", "nine", "ten", "eleven", "twelve",
)  # fmt: skip

WEEKDAYS = {
    "mon": ("Monday", "Mon"),
    "tue": ("Tuesday", "Tues"),
    "wed": ("Wednesday", "Wed"),
    "thu": ("Thursday", "Thurs"),
    "fri": ("Friday", "Fri"),
    "sat": ("Saturday", "Sat"),
    "sun": ("Sunday", "Sun"),
}

NAMES = Pool(
    train=(
        "Sarah", "Tom", "Priya", "Carlos", "Emma", "James", "Olivia", "Ahmed", "Grace", "Daniel",
        "Sofia", "Liam", "Hannah", "Kevin", "Maria", "Peter", "Julia", "Omar", "Lucy", "Marcus",
        "Nina", "Oscar", "Rachel", "Simon", "Tara", "Victor", "Wendy", "Adam", "Bella", "Chris",
        "Diana", "Edward", "Fiona", "George", "Helen", "Ivan", "Jasmine", "Karen", "Leo", "Megan",
        "Nathan", "Paula", "Ravi", "Steve", "Tina", "Yusuf", "Zoe", "Alex", "Brian", "Claire",
        "Dmitri", "Erin", "Felix", "Gina", "Hugo", "Irene", "Jack", "Kate", "Laura", "Mike",
        "Agnes", "Bruno", "Celia", "Dylan", "Esther", "Farid", "Greta", "Henry", "Ingrid", "Joel",
        "Keira", "Lars", "Mabel", "Nadia", "Otto", "Petra", "Ruben", "Stella", "Theo", "Ursula",
        "Vera", "Walter", "Ximena", "Yara", "Zach", "Anita", "Basil", "Cora", "Dennis", "Edith",
    ),
    heldout=(
        "Amelia", "Ben", "Chloe", "Derek", "Elena", "Frank", "Gloria", "Harry", "Isla", "Jonas",
        "Kira", "Lukas", "Molly", "Noah", "Penny", "Quentin", "Rosa", "Samir", "Tessa", "Wyatt",
        "Aisha", "Boris", "Naomi", "Rupert",
    ),
)  # fmt: skip

SECOND_NAMES = Pool(
    train=(
        "Miller", "Khan", "Novak", "Baker", "Silva", "Evans", "Moreau", "Tanaka", "Owens", "Reed",
        "Larsen", "Gupta", "Walsh", "Ortiz", "Fischer", "Doyle", "Hughes", "Rossi", "Kim", "Ward",
    ),
    heldout=("Carter", "Lopez", "Singh", "Hansen", "Murphy", "Weber", "Diaz", "Brooks"),
)  # fmt: skip

NOUNS = Pool(
    train=tuple(
        ("", noun)
        for noun in (
            "mug", "lamp", "kettle", "backpack", "blanket", "candle", "notebook", "jacket", "phone",
            "bottle", "chair", "wallet", "towel", "hat", "clock", "printer", "tent", "mirror",
            "speaker", "blender", "pillow", "guitar", "helmet", "camera", "scooter", "teapot",
            "vase", "heater", "tablet", "toaster", "sofa", "bike", "drill", "shirt", "basket",
            "keyboard", "stroller", "suitcase", "raincoat", "frame",
        )
    ),
    heldout=tuple(
        ("", noun)
        for noun in (
            "lantern", "webcam", "apron", "drum", "cushion", "ladder", "monitor", "planter",
            "sweater", "desk", "trolley", "bookcase",
        )
    ),
)  # fmt: skip

ADJECTIVES = Pool(
    train=(
        "red", "small", "brown", "black", "light", "large", "green", "silver", "grey", "round",
        "cheap", "pink", "white", "portable", "vintage", "yellow", "sturdy", "simple",
    ),
    heldout=("blue", "plain", "mini", "orange", "heavy", "striped"),
)  # fmt: skip

CITIES = Pool(
    train=(
        "London", "Boston", "Chicago", "Dublin", "Sydney", "Toronto", "Oxford", "Denver", "Dallas",
        "Manchester", "Seattle", "Cardiff", "New York", "Los Angeles", "San Diego", "Leeds",
        "Ottawa", "Miami", "Brighton", "Houston", "Auckland", "Belfast", "Phoenix", "Liverpool",
        "Vancouver", "Nashville", "Cork", "Brisbane", "Atlanta", "Plymouth",
    ),
    heldout=(
        "Bristol", "Austin", "Glasgow", "Perth", "Portland", "York", "Galway", "Calgary",
        "Memphis", "Norwich",
    ),
)  # fmt: skip

PROBLEMS = {
    "broken": (
        "arrived broken", "fell apart in my hands", "is broken", "came with a crack in it",
        "broke after one day", "came damaged", "was in pieces when I opened the box",
    ),
    "late": (
        "still hasn't arrived", "is a week late", "is late again", "never showed up",
        "has been in transit for three weeks", "was due last week and is not here yet",
    ),
    "wrong": (
        "is the wrong colour", "is the wrong one", "is the wrong size", "is not what I asked for",
        "looks nothing like the picture", "is not the model I chose",
    ),
}  # fmt: skip

WISHES = {
    "refund": (
        "I want my money back", "Please refund me", "I'd like a refund", "Give me my money back",
        "Please return the money to my card",
    ),
    "replacement": (
        "Please send a new one", "I'd like a replacement", "Can you swap it for a new one",
        "I want to exchange it", "Please replace it",
    ),
    None: ("Please look into it", "What should I do", "Please call me back", "Not good enough"),
}  # fmt: skip


def _people(dice: Dice, number: int) -> str:
    return dice.pick((str(number), NUMBERS[number]))


def _count(dice: Dice, classifier: str, item: str, number: int) -> str:
    if number == 1:
        article = "an" if item[0] in "aeiou" else "a"
        return f"{dice.pick((article, 'one', '1'))} {item}"
    if number == 12 and dice.chance(0.5):
        return f"a dozen {item}s"
    return f"{dice.pick((str(number), NUMBERS[number], f'{number}x'))} {item}s"


def _when(dice: Dice, day: str, hour: int, minute: int) -> str:
    """``"Friday at 7:30pm"``, ``"at half past seven tonight"`` or ``"at 19:30 tomorrow"``."""
    twelve = hour % 12 or 12
    style = dice.pick(("digits", "digits", "spoken", "24h"))
    if style == "24h":
        return f"at {hour}:{minute:02d} {_day(dice, day)}"
    if style == "digits":
        clock = f"{twelve}:{minute:02d}" if minute or dice.chance(0.3) else str(twelve)
        clock += dice.pick(("", " ")) + ("am" if hour < 12 else "pm")
        return dice.pick((f"{_day(dice, day)} at {clock}", f"at {clock} {_day(dice, day)}"))
    clock = {
        0: NUMBERS[twelve] + dice.pick(("", " o'clock")),
        30: f"half past {NUMBERS[twelve]}",
    }[minute]
    part = _part_of_day(dice, day, hour)
    return dice.pick((f"{part} at {clock}", f"at {clock} {part}"))


def _day(dice: Dice, day: str) -> str:
    if day == "today":
        return "today"
    if day == "tomorrow":
        return dice.pick(("tomorrow", "tomorrow", "tmr"))
    return dice.pick(("on ", "this ", "")) + dice.pick(WEEKDAYS[day])


def _part_of_day(dice: Dice, day: str, hour: int) -> str:
    part = "morning" if hour < 12 else "afternoon" if hour < 18 else "evening"
    if day == "today":
        return "tonight" if hour > 17 and dice.chance(0.7) else f"this {part}"
    if day == "tomorrow":
        return f"tomorrow {part}"
    return f"{dice.pick(('on ', ''))}{WEEKDAYS[day][0]} {part}"


ENGLISH = Language(
    templates=TEMPLATES,
    introductions=INTRODUCTIONS,
    signatures=SIGNATURES,
    names=NAMES,
    second_names=SECOND_NAMES,
    nouns=NOUNS,
    adjectives=ADJECTIVES,
    cities=CITIES,
    problems=PROBLEMS,
    wishes=WISHES,
    openers=(
        "Hi!", "Hey!", "Hello.", "Good morning!", "Hi there!", "Good evening.", "Hello team!",
    ),
    closers=("Thanks!", "Thank you", "Cheers", "🙏", "😊", "Bye"),
    shorthand={
        "please": "pls", "Please": "Pls", "you": "u", "your": "ur", "thanks": "thx",
        "Thanks": "Thx", "people": "ppl", "because": "cuz", "Could you": "Cud u", "are": "r",
    },
    item=lambda noun, adjective: f"{adjective} {noun}",
    full_name=lambda name, second: f"{name} {second}",
    count=_count,
    people=_people,
    days={day: day for day in DAYS},
    when=_when,
)  # fmt: skip
