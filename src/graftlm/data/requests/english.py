"""English requests."""

from __future__ import annotations

from graftlm.data.requests.english_templates import TEMPLATES
from graftlm.data.requests.vocabulary import City, Dice, Item, Language, Pool

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
    ),
    heldout=(
        "Amelia", "Ben", "Chloe", "Derek", "Elena", "Frank", "Gloria", "Harry", "Isla", "Jonas",
        "Kira", "Lukas", "Molly", "Noah", "Penny", "Quentin", "Rosa", "Samir", "Tessa", "Wyatt",
        "Aisha", "Boris", "Naomi", "Rupert",
    ),
)  # fmt: skip


def _item(one: str, many: str | None = None) -> Item:
    return Item(record=one, one=one, many=many or one + "s")


ITEMS = Pool(
    train=(
        _item("tote bag"), _item("coffee mug"), _item("scented candle"), _item("notebook"),
        _item("wool sock"), _item("phone case"), _item("gift card"),
        _item("birthday cake"), _item("cheese pizza"), _item("green tea box", "green tea boxes"),
        _item("rain jacket"), _item("water bottle"), _item("photo frame"), _item("beef burger"),
        _item("chocolate bar"), _item("yoga mat"), _item("rose bouquet"), _item("baby blanket"),
        _item("running shirt"), _item("leather wallet"), _item("fruit basket"), _item("wine glass",
        "wine glasses"), _item("garden chair"), _item("chicken wrap"), _item("picture book"),
        _item("cotton towel"), _item("honey jar"), _item("apple pie"), _item("sun hat"),
        _item("hand cream"),
    ),
    heldout=(
        _item("silk pillow"), _item("lunch box", "lunch boxes"), _item("veggie sandwich",
        "veggie sandwiches"), _item("desk plant"), _item("travel adapter"), _item("denim apron"),
        _item("lemon tart"), _item("beach umbrella"), _item("paper lantern"), _item("spice rack"),
        _item("linen shirt"), _item("almond cookie"),
    ),
)  # fmt: skip

DEVICES = Pool(
    train=(
        "desk lamp", "kettle", "blender", "rice cooker", "bluetooth speaker", "keyboard", "toaster",
        "hair dryer", "coffee maker", "vacuum cleaner", "steam iron", "wall clock", "phone charger",
        "printer", "fan heater", "smart watch", "power drill", "wireless mouse", "microwave",
        "tablet",
    ),
    heldout=(
        "deep fryer", "webcam", "power bank", "juicer", "beard trimmer", "sewing machine",
        "game controller", "ceiling fan", "night light", "label maker",
    ),
)  # fmt: skip

CITIES = Pool(
    train=(
        City("New York", ("New York", "NYC", "New York City")),
        City("Los Angeles", ("Los Angeles", "LA")),
        City("San Francisco", ("San Francisco", "SF", "San Fran")),
        *(
            City(name, (name,))
            for name in (
                "London", "Boston", "Chicago", "Dublin", "Sydney", "Toronto", "Oxford", "Denver",
                "Manchester", "Seattle", "Dallas", "Cardiff",
            )
        ),
    ),
    heldout=tuple(
        City(name, (name,))
        for name in ("Bristol", "Austin", "Glasgow", "Perth", "Portland", "York")
    ),
)  # fmt: skip

PROBLEMS = {
    "broken": (
        "arrived broken", "stopped working", "won't turn on", "has a crack in it",
        "died after a day", "came damaged", "makes a burning smell",
    ),
    "late": (
        "still hasn't arrived", "is a week late", "was due last Monday and is not here yet",
        "never showed up", "has been in transit for three weeks",
    ),
    "wrong": (
        "is the wrong colour", "is not the model I ordered", "is the wrong size",
        "is not what I asked for", "looks nothing like the one I picked",
    ),
    "incomplete": (
        "came without the cable", "has a part missing", "is missing a screw",
        "came with no manual", "came without the power plug",
    ),
}  # fmt: skip

WISHES = {
    "refund": (
        "I want my money back", "Please refund me", "I'd like a refund", "Give me back what I paid",
        "Return the money to my card please",
    ),
    "replacement": (
        "Please send a new one", "I'd like a replacement", "Can you swap it for another one",
        "I want to exchange it", "Please replace it",
    ),
    None: ("Please look into it", "What should I do", "Please call me back", "Not good enough"),
}  # fmt: skip


def _people(dice: Dice, number: int) -> str:
    return dice.pick((str(number), NUMBERS[number]))


def _count(dice: Dice, item: Item, number: int) -> str:
    if number == 1:
        article = "an" if item.one[0] in "aeiou" else "a"
        return f"{dice.pick((article, 'one', '1'))} {item.one}"
    if number == 12 and dice.chance(0.5):
        return f"a dozen {item.many}"
    return f"{dice.pick((str(number), NUMBERS[number], f'{number}x'))} {item.many}"


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
        15: f"quarter past {NUMBERS[twelve]}",
        30: f"half past {NUMBERS[twelve]}",
        45: f"quarter to {NUMBERS[twelve % 12 + 1]}",
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
        return "tonight" if part == "evening" and dice.chance(0.7) else f"this {part}"
    if day == "tomorrow":
        return f"tomorrow {part}"
    return f"{dice.pick(('on ', ''))}{WEEKDAYS[day][0]} {part}"


ENGLISH = Language(
    templates=TEMPLATES,
    names=NAMES,
    items=ITEMS,
    devices=DEVICES,
    cities=CITIES,
    problems=PROBLEMS,
    wishes=WISHES,
    openers=("Hi!", "Hey!", "Hello.", "Good morning!", "Hi there!"),
    closers=("Thanks!", "Thank you", "Cheers", "🙏", "😊", "Bye"),
    shorthand={
        "please": "pls", "Please": "Pls", "you": "u", "your": "ur", "thanks": "thx",
        "Thanks": "Thx", "people": "ppl", "because": "cuz", "Could you": "Cud u", "are": "r",
    },
    people=_people,
    count=_count,
    when=_when,
)  # fmt: skip
