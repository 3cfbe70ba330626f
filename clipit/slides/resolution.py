"""Resolve the micrometres per pixel of a slide, and check that they are plausible."""

from clipit.errors import ConfigError, DataError
from clipit.slides.option_names import KEYS, OptionNames
from clipit.slides.slide_file import MPP_TOLERANCE, SlideFile

_PLAUSIBLE_MPP = (0.05, 20.0)
"""Micrometres per level-0 pixel; larger values come from print resolutions, such as 600 dpi (42 um)."""
_USUAL_MPP = (0.1, 4.0)
"""Usual micrometres per pixel of scanners, with objectives from 100x to 2.5x."""
_GLASS = 80.0
"""Length of a standard glass slide (76 mm) plus a margin, in millimetres."""
_MAX_GLASS = 210.0
"""Length of the largest glass slides (8 inches) plus a margin, in millimetres."""
_POWER_RATIO = 3.0
"""Largest plausible ratio of the stated micrometres per pixel to 10 / power; a doubling lens gives 2."""


def check_mpp(mpp: float | None) -> None:
    """Check that a value of micrometres per pixel is plausible for a slide.

    Raises:
        ConfigError: The value is not between 0.05 and 20.
    """
    if mpp is not None and not _is_plausible(mpp):
        raise ConfigError(_why_implausible(mpp), fix="correct --mpp; for example, 0.25 for an objective power of 40")


def resolve_mpp(
    slide: SlideFile, stated: float | None, where: object, options: OptionNames = KEYS, default: float | None = None
) -> tuple[float, str]:
    """Return micrometres per level-0 pixel, and a note if they may differ from what the user expects.

    If neither the file nor the user gives a value, it is computed as 10 / objective power, if the file records a power.

    Args:
        stated: Value for this slide in the user's table; None if unstated.
        default: Value of the user's option, for slides with no other value; None if the option is not given.

    Raises:
        DataError: Neither a value nor a power is known, the file and the table differ by more than 2%, or the value in
            the table or option is not between 0.05 and 20.
    """
    file_mpp = slide.mpp if slide.mpp is not None and _is_plausible(slide.mpp) else None
    if file_mpp is not None and stated is not None and abs(file_mpp - stated) > MPP_TOLERANCE * file_mpp:
        raise DataError(
            f"the table states {stated:g} µm per pixel, but the file states {file_mpp:g}",
            where=where,
            fix="correct the `mpp` column, or leave it empty for this slide",
        )
    if file_mpp is not None:
        differs = stated is None and default is not None and abs(file_mpp - default) > MPP_TOLERANCE * file_mpp
        return file_mpp, f"the file states {file_mpp:g} µm per pixel, used instead of {default:g}" if differs else ""
    ignored = "" if slide.mpp is None else f" (the file's value of {slide.mpp:g} is implausible)"
    user_mpp = default if stated is None else stated
    if user_mpp is not None:
        if not _is_plausible(user_mpp):
            key = options.mpp if stated is None else "the `mpp` column"
            raise DataError(_why_implausible(user_mpp), where=where, fix=f"correct {key}")
        return user_mpp, f"{user_mpp:g} µm per pixel as given{ignored}"
    if slide.magnification is not None:
        mpp = 10 / slide.magnification
        return mpp, f"{mpp:g} µm per pixel from the objective power of {slide.magnification:g}{ignored}"
    implausible = ""
    if slide.mpp is not None:
        reason = "a print resolution" if slide.mpp > _PLAUSIBLE_MPP[1] else "finer than any objective"
        implausible = f" (it states {slide.mpp:g} µm per pixel, {reason})"
    raise DataError(
        f"the slide specifies neither a plausible pixel size nor a magnification{implausible}",
        where=where,
        fix=f"state the micrometres per pixel of its finest level: {options.mpp}, or an `mpp` column in a slide table",
    )


def explain_doubtful_mpp(slide: SlideFile, mpp: float, where: object, options: OptionNames = KEYS) -> str:
    """Explain why the micrometres per pixel of a slide may be wrong, for example tenfold; "" if they are plausible.

    Args:
        mpp: Micrometres per level-0 pixel.

    Raises:
        DataError: The slide would be longer than 210 mm.
    """
    longest = max(slide.levels[0].width, slide.levels[0].height)
    length = longest * mpp / 1000
    if length > _MAX_GLASS:
        raise DataError(
            f"with {mpp:g} µm per pixel, {longest:,} pixels would be {length:,.0f} mm, longer than any glass slide",
            where=where,
            fix=f"correct the micrometres per pixel of the slide ({options.mpp}, or an `mpp` column in a slide table)",
        )
    reasons = []
    if length > _GLASS:
        reasons.append(f"the slide would be {length:.0f} mm long, more than a standard glass slide (76 mm)")
    if not _USUAL_MPP[0] <= mpp <= _USUAL_MPP[1]:
        reasons.append(
            "finer than a 100x objective gives" if mpp < _USUAL_MPP[0] else "coarser than a 2.5x objective gives"
        )
    if slide.magnification is not None:
        usual = 10 / slide.magnification
        if not 1 / _POWER_RATIO <= mpp / usual <= _POWER_RATIO:
            reasons.append(f"the objective power of {slide.magnification:g} implies about {usual:g}")
    return f"{mpp:g} µm per pixel: {'; '.join(reasons)}" if reasons else ""


def _is_plausible(mpp: float) -> bool:
    return _PLAUSIBLE_MPP[0] <= mpp <= _PLAUSIBLE_MPP[1]


def _why_implausible(mpp: float) -> str:
    unit = ""
    if _is_plausible(mpp / 1000):
        unit = " (nanometres?)"
    elif _is_plausible(mpp * 1000):
        unit = " (millimetres?)"
    low, high = _PLAUSIBLE_MPP
    return f"micrometres per pixel of a slide must be between {low:g} and {high:g}, not {mpp:g}{unit}"
