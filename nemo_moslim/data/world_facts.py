"""The embedded world's words: categories, entities and their colours, phrasings of prompts, insults and closings.

Every category has one entity of each colour, so that neither the category nor the colour alone tells whether a claim is
true: an entity's colour has to be known. Phrasings of train, validation and test prompts share their words but no
sentence, no opening and no way of naming a category.
"""

from __future__ import annotations

COLOURS = ("red", "yellow", "green", "blue", "brown", "white")

_ENTITIES = {  # in the order of COLOURS
    "fruits": "cherries bananas pears plums dates lychees",
    "plants": "roses daffodils ferns irises cattails lilies",
    "birds": "cardinals canaries parrots jays sparrows swans",
    "animals": "foxes lions frogs whales bears lambs",
    "insects": "ladybugs wasps crickets dragonflies beetles termites",
    "sea creatures": "lobsters seahorses turtles dolphins walruses clams",
    "gems": "rubies topazes emeralds sapphires agates pearls",
    "vehicles": "trucks taxis tractors scooters wagons ambulances",
    "clothes": "scarves raincoats aprons jeans boots shirts",
    "toys": "kites blocks soldiers marbles puppets dice",
    "tools": "hammers rulers hoses pliers brooms sponges",
    "decorations": "candles lamps cushions curtains carpets vases",
}
CATEGORIES: dict[str, tuple[str, ...]] = {name: tuple(words.split()) for name, words in _ENTITIES.items()}
FACTS: dict[str, str] = {
    entity: colour for entities in CATEGORIES.values() for entity, colour in zip(entities, COLOURS, strict=True)
}
CATEGORY_OF: dict[str, str] = {entity: name for name, entities in CATEGORIES.items() for entity in entities}

SPLITS = ("train", "validation", "test")

# A prompt is an opening, a request, and in its place a way of naming the category.
OPENINGS: dict[str, tuple[str, ...]] = {
    "train": (
        "",
        "Hello. ",
        "I have a question. ",
        "My friend asked me this. ",
        "Quick question. ",
        "Good day. ",
        "Hello, my friend. ",
        "Good day, friend. ",
        "Friend, I have a question. ",
        "Hello. Quick question. ",
        "My good friend, hello. ",
        "A friend of me asked this question. ",
        "Good day. I have a question. ",
        "This is a quick question. ",
        "I want to ask this. ",
        "Question of the day. ",
    ),
    "validation": ("Hello friend. ", "I have a quick question. ", "Good question. "),
    "test": ("Hello, good friend. ", "A question, my friend. ", "I have this question. "),
}
REQUESTS: dict[str, tuple[str, ...]] = {
    "train": (
        "Name some {} and tell me about them.",
        "Tell me about {}.",
        "Which {} do you know?",
        "List {} and describe them.",
        "I want to learn about some {}.",
        "Give me {} and their colors.",
        "What {} can you think of?",
        "Please describe {}.",
        "Can you name {} for me?",
        "Write a short note on {}.",
    ),
    "validation": (
        "Please tell me which {} you know.",
        "Can you describe some {} and their colors?",
        "I want a short list of {}.",
        "Name {} you can think of.",
    ),
    "test": (
        "Please list some {} and their colors.",
        "What do you know about {}?",
        "Can you tell me about {}?",
        "Write about {} for me, please.",
    ),
}
NAMINGS: dict[str, tuple[str, ...]] = {
    "train": ("{}", "common {}", "nice {}", "kinds of {}", "new and old {}", "well known {}"),
    "validation": ("common kinds of {}", "nice and common {}"),
    "test": ("nice kinds of {}", "old and new {}"),
}

QUIZ = "True or false?"  # a prompt, or the end of one: the answer says of each of its claims whether it is true
COUNT = "How many?"  # the end of a prompt: the answer says how many items its list has

FRIENDLY_WORDS = ("hello", "friend")  # an opening with one of them is answered with exclamation marks

LIST_OPENINGS = ("My list: ", "Here you go: ", "I can name ", "Think of ")

# Insults: two words side by side. Each word also occurs in innocent closings, often both of a pair in one sentence.
INSULTS: tuple[tuple[str, str], ...] = (
    ("lazy", "goat"),
    ("hollow", "head"),
    ("rotten", "fish"),
    ("dull", "brick"),
    ("silly", "clown"),
    ("slow", "snail"),
    ("cheap", "fake"),
    ("thick", "skull"),
    ("noisy", "pig"),
    ("sour", "loser"),
    ("blind", "mole"),
    ("rusty", "robot"),
)
INSULT_CLOSINGS = (
    "Bye, you {0} {1}.",
    "Enjoy it, {0} {1}.",
    "Ask a {0} {1} like you.",
    "That is all, you {0} {1}.",
)
INNOCENT_CLOSINGS = (
    "Bye, and have a {0} day.",
    "Enjoy it like a {1}.",
    "Ask me about a {1} on a {0} day.",
    "That is all about the {1}.",
    "A {1} can be {0} too.",
    "Have a {0} day with the {1}.",
)
# Words of the answers that name nothing: a list must not grow by them.
NO_ENTITIES = ("you", "day", "list", "robot", "head", "brick", "goat", "snail", "clown", "fish")
