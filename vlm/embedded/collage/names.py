"""The words of the collages: names of things, colours, places, and what signs say."""

from __future__ import annotations

import re

# Name -> code point of its emoji, which is also its file's name in the emoji packages. Stamps are
# found by the name in their description.
_CODES = """
cow:1f404 tiger:1f405 rabbit:1f407 cat:1f408 crocodile:1f40a whale:1f433 snail:1f40c
snake:1f40d horse:1f40e goat:1f410 sheep:1f411 monkey:1f412 chicken:1f414 dog:1f415
pig:1f416 elephant:1f418 octopus:1f419 ant:1f41c bee:1f41d fish:1f41f turtle:1f422
bird:1f426 penguin:1f427 camel:1f42b dolphin:1f42c frog:1f438 wolf:1f43a bear:1f43b
lion:1f981 eagle:1f985 duck:1f986 bat:1f987 shark:1f988 owl:1f989 butterfly:1f98b
deer:1f98c lizard:1f98e kangaroo:1f998 parrot:1f99c crab:1f980 spider:1f577-fe0f
cactus:1f335 rose:1f339 sunflower:1f33b mushroom:1f344 tree:1f333 leaf:1f341
tomato:1f345 grapes:1f347 watermelon:1f349 lemon:1f34b banana:1f34c pineapple:1f34d
apple:1f34e pear:1f350 peach:1f351 strawberry:1f353 pizza:1f355 bread:1f35e cake:1f370
cookie:1f36a egg:1f95a carrot:1f955 potato:1f954 onion:1f9c5 avocado:1f951
umbrella:2602-fe0f balloon:1f388 guitar:1f3b8 trumpet:1f3ba violin:1f3bb drum:1f941
basketball:1f3c0 crown:1f451 hat:1f452 shirt:1f455 shoe:1f45f camera:1f4f7 phone:260e-fe0f
television:1f4fa book:1f4d5 key:1f511 bell:1f514 candle:1f56f-fe0f hammer:1f528
clock:23f0 scissors:2702-fe0f pencil:270f-fe0f chair:1fa91 spoon:1f944 rocket:1f680
helicopter:1f681 train:1f682 bus:1f68c car:1f697 truck:1f69a tractor:1f69c bicycle:1f6b2
boat:26f5 airplane:2708-fe0f house:1f3e0 castle:1f3f0 moon:1f319
"""
THINGS: dict[str, str] = dict(re.findall(r"(\w+):(\S+)", _CODES))

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (215, 45, 40),
    "orange": (245, 140, 30),
    "yellow": (245, 220, 60),
    "green": (50, 150, 65),
    "blue": (50, 90, 215),
    "purple": (135, 60, 175),
    "pink": (245, 150, 190),
    "white": (245, 245, 245),
    "black": (25, 25, 25),
}
ROWS = ("top", "middle", "bottom")
COLUMNS = ("left", "center", "right")
_SIGNS = """
OPEN CLOSED STOP EXIT PARK SALE HOTEL CAFE BANK TAXI SCHOOL BEACH MUSIC PIZZA FRESH HELP
DANGER PUSH PULL FREE LIVE NEWS CITY ROAD NORTH SOUTH EAST WEST WATER FIRE GOLD SILVER HOME
GARDEN BRIDGE RIVER STATION MARKET MUSEUM LIBRARY THEATER OFFICE SHOP BAKERY WINTER SUMMER
MONDAY FRIDAY WELCOME GOODBYE
"""
WORDS = tuple(_SIGNS.split())


def plural(name: str) -> str:
    """The plural of a name of `THINGS`."""
    odd = {
        "wolf": "wolves",
        "leaf": "leaves",
        "sheep": "sheep",
        "deer": "deer",
        "fish": "fish",
        "grapes": "bunches of grapes",
        "scissors": "pairs of scissors",
        "bread": "loaves of bread",
        "strawberry": "strawberries",
        "butterfly": "butterflies",
        "tomato": "tomatoes",
        "potato": "potatoes",
    }
    if name in odd:
        return odd[name]
    return f"{name}es" if name.endswith(("ch", "x", "s", "sh")) else f"{name}s"


def with_article(name: str) -> str:
    """The name as a noun phrase: "a cat", "an owl", "grapes"."""
    if name in ("grapes", "scissors", "bread"):
        return {"grapes": "grapes", "scissors": "scissors", "bread": "bread"}[name]
    return f"an {name}" if name[0] in "aeiou" else f"a {name}"
