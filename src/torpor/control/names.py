"""Names for databases whose makers didn't care: two words and a number, easy to say and to type. Pure but for chance."""

import secrets
from collections.abc import Callable

_ADJECTIVES = (
    "amber", "brave", "brisk", "calm", "clear", "cosy", "crisp", "dapper", "deep", "eager", "early", "fair", "fleet", "fond", "gentle",
    "glad", "golden", "happy", "hazel", "humble", "jolly", "keen", "kind", "lively", "lucky", "mellow", "merry", "mild", "misty", "nimble",
    "noble", "polite", "proud", "quick", "quiet", "rapid", "ready", "rosy", "royal", "sharp", "shy", "silent", "silver", "smart", "snug",
    "soft", "solid", "steady", "still", "sunny", "swift", "tidy", "tiny", "vivid", "warm", "wise", "witty", "young",
)  # fmt: skip
_ANIMALS = (
    "badger", "bat", "bear", "beaver", "bee", "bison", "crane", "deer", "dormouse", "dove", "duck", "eagle", "falcon", "ferret", "finch",
    "fox", "frog", "gecko", "goose", "hare", "hawk", "hedgehog", "heron", "hummingbird", "ibex", "jay", "kestrel", "lark", "lemur", "lynx",
    "marmot", "marten", "mole", "moth", "newt", "otter", "owl", "panda", "pika", "poorwill", "puffin", "quail", "raven", "robin", "seal",
    "shrew", "sloth", "snail", "sparrow", "squirrel", "stork", "swallow", "swift", "tern", "toad", "vole", "weasel", "wren",
)  # fmt: skip


def suggest_name(taken: Callable[[str], object]) -> str:
    """A name for which `taken` says nothing."""
    while True:
        name = f"{secrets.choice(_ADJECTIVES)}-{secrets.choice(_ANIMALS)}-{secrets.randbelow(9000) + 1000}"
        if not taken(name):
            return name
