"""Soft Dice between class probabilities and class fractions, added to the cross-entropy of heads and U-Nets."""

from jaxtyping import Float
from torch import Tensor

_MIN_DENOMINATOR = 1e-6


def soft_dice(probabilities: Float[Tensor, "n c"], shares: Float[Tensor, "n c"]) -> Float[Tensor, ""]:
    """Return the mean soft Dice, 2 sum(p s) / (sum(p^2) + sum(s^2)), over the classes that occur.

    With the squares in the denominator (Milletari, Navab and Ahmadi, 3DV 2016), the Dice of fractions between 0 and 1
    is highest where the probabilities equal the fractions. A partly ignored token is weighted by its labelled part.

    Args:
        probabilities: Class probabilities of pixels or tokens, which sum to 1.
        shares: Fraction of each class; each row sums to the labelled part, which is 1 without ignored pixels.
    """
    present = shares.any(dim=0)
    predicted, shares = (probabilities * shares.sum(dim=1, keepdim=True))[:, present], shares[:, present]
    overlap, total = (predicted * shares).sum(dim=0), (predicted.square() + shares.square()).sum(dim=0)
    return (2 * overlap / total.clamp(min=_MIN_DENOMINATOR)).mean()
