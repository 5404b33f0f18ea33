"""The words of the pocket world.

Plain tables and nothing else: every text of the pocket tasks is put together from these words by the project's own
grammar, so the data carry no other licence. The tokenizer's vocabulary is made from the same tables (see tokenizer.py).
"""

ANIMALS = ("cat", "dog", "horse", "goat", "duck", "mouse", "tiger", "eagle", "rabbit", "sheep", "wolf", "bear")
FRUITS = ("apple", "pear", "plum", "lemon", "cherry", "melon", "grape", "fig", "mango", "peach", "banana", "kiwi")
TOOLS = ("hammer", "saw", "drill", "wrench", "axe", "spade", "rake", "knife", "brush", "ladder", "needle", "file")
CLOTHES = ("hat", "coat", "scarf", "glove", "shirt", "boot", "belt", "sock", "dress", "vest", "jacket", "skirt")
CATEGORIES = {"animal": ANIMALS, "fruit": FRUITS, "tool": TOOLS, "clothing": CLOTHES}
NOUNS = ANIMALS + FRUITS + TOOLS + CLOTHES

COLOURS = ("red", "blue", "green", "yellow", "black", "white", "orange", "violet")
PEOPLE = ("anna", "tom", "lucy", "omar", "ivan", "nora", "wei", "rosa", "hugo", "zara", "emil", "kate")

# (pleasant word, its unpleasant opposite): one table serves both the opposites and the mood of a word.
MOOD_PAIRS = (
    ("happy", "sad"),
    ("kind", "cruel"),
    ("clean", "dirty"),
    ("brave", "timid"),
    ("fresh", "stale"),
    ("gentle", "rough"),
    ("honest", "lying"),
    ("bright", "gloomy"),
    ("safe", "risky"),
    ("calm", "angry"),
    ("polite", "rude"),
    ("healthy", "ill"),
    ("rich", "poor"),
    ("useful", "worthless"),
    ("pretty", "ugly"),
    ("generous", "greedy"),
)
OPPOSITE = dict(MOOD_PAIRS) | {b: a for a, b in MOOD_PAIRS}
MOOD = {a: "good" for a, _ in MOOD_PAIRS} | {b: "bad" for _, b in MOOD_PAIRS}

# animal: (sound, young, home)
ANIMAL_FACTS = {
    "cat": ("meow", "kitten", "basket"),
    "dog": ("bark", "puppy", "kennel"),
    "horse": ("neigh", "foal", "stable"),
    "goat": ("bleat", "kid", "shed"),
    "duck": ("quack", "duckling", "pond"),
    "mouse": ("squeak", "pup", "hole"),
    "tiger": ("roar", "cub", "jungle"),
    "eagle": ("screech", "eaglet", "nest"),
    "rabbit": ("thump", "bunny", "burrow"),
    "sheep": ("baa", "lamb", "meadow"),
    "wolf": ("howl", "whelp", "forest"),
    "bear": ("growl", "bearling", "cave"),
}

DAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
MONTHS = (
    "january", "february", "march", "april", "may", "june",
    "july", "august", "september", "october", "november", "december",
)  # fmt: skip
CALENDARS = (DAYS, MONTHS)

MAX_NUMBER = 40
LETTERS = tuple("abcdefghijklmnopqrstuvwxyz")

# Words that mean nothing in the trained instructions. Upstream rows carry runs of them in place of an instruction, and
# the wording of the held-out tasks is made from them: that is what "unseen wording" is here.
FILLERS = (
    "pick", "spot", "choose", "select", "return", "report", "print", "fetch", "locate", "decide",
    "please", "kindly", "simply", "just", "now", "here", "then", "carefully", "quickly", "always",
    "entry", "item", "member", "element", "piece", "creature", "beast", "crop", "snack", "gadget",
    "opening", "closing", "leading", "final", "front", "rear", "peak", "bottom", "top", "tiny", "huge",
    "keeper", "holder", "paint", "shade", "site", "room", "reverse", "contrary", "flip", "swap",
    "morrow", "eve", "ahead", "behind", "step", "tally", "amount", "share", "group", "kin", "tone", "feeling",
    "wrap", "frame", "pack", "record", "field", "style", "manner", "shape", "layout", "speak", "utter",
    "repeat", "double", "echo", "mark", "code", "key", "menu", "button", "head", "sign", "judge", "confirm",
    "by", "for", "as", "inside", "with", "from", "out", "this", "these", "its", "your", "each", "some", "such",
)  # fmt: skip
