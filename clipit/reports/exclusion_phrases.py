"""Trigger phrases about what has or has not been ruled out, in all their forms."""

from itertools import product

_ADVERBS = (
    "", "entirely", "completely", "definitely", "definitively", "fully", "totally", "absolutely", "conclusively",
    "confidently", "reliably", "formally", "safely", "certainly", "with certainty",
)  # fmt: skip
_NOT = ("not", "cannot", "'t", "\u2019t")  # can't, doesn't
_ATTEMPTS = (
    "not able to", "not possible to", "unable to", "impossible to", "difficult to", "hard to", "no evidence to",
    "not sufficient to", "insufficient to",
)  # fmt: skip
_ACTIVE, _PASSIVE = ("exclude", "rule out", "r/o"), ("excluded", "ruled out", "excludable")
_RELATIVE = ("", ", ", ", which ", ", that ")  # a comma ends the scope of other triggers that follow a mention


def not_excluding() -> list[str]:
    """Return phrases before a mention that leave it uncertain, such as "cannot entirely exclude"."""
    active = product((*_NOT, *_ATTEMPTS), _ADVERBS, _ACTIVE)
    return [*map(_join, active), "exclude", "exclusion of"]


def not_excluded() -> list[str]:
    """Return phrases after a mention that leave it uncertain, such as "has not been completely ruled out"."""
    forms = [
        *product(_NOT, _ADVERBS, _PASSIVE),
        *product(_NOT, ("be", "been"), _ADVERBS, _PASSIVE),
        *product(_NOT, _ADVERBS, ("be", "been"), _PASSIVE),
        *product(("should be", "must be", "to be", "neither"), _PASSIVE),
        *product(("neither", "neither be", "neither been"), ("confirmed nor",), _PASSIVE),
        *product(("neither", "neither be", "neither been"), _PASSIVE, ("nor confirmed",)),
    ]
    return [relative + phrase for phrase in map(_join, forms) for relative in _RELATIVE]


def excluding() -> list[str]:
    """Return phrases before a mention that negate it, such as "rules out"."""
    return ["excludes", "rules out", "ruling out", "has ruled out", "have ruled out", "had ruled out"]


def _join(parts: tuple[str, ...]) -> str:
    return " ".join(filter(None, parts))
