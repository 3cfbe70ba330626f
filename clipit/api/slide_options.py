"""Options shared by the slide functions: the tile grid, the prompts, and the scoring model."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipit.config.data import SlidesConfig
from clipit.errors import ConfigError
from clipit.input_files.nearby_files import similar_names

if TYPE_CHECKING:
    from clipit.config.run import VLMConfig
    from clipit.models.inference import Classifier
    from clipit.runs.tile_scorer import TileScorer


def zero_shot_classes(vlm: "str | VLMConfig | None", prompts: str | Path | None) -> tuple[str, ...] | None:
    """Return the classes of the prompts without loading the VLM; None if no VLM is given.

    Raises:
        ConfigError: Only one of `vlm` and `prompts` is given.
        DataError: The prompt set does not exist, or its file is invalid.
    """
    from clipit.prompts.files import unknown_prompts
    from clipit.runs.prediction_inputs import read_prompts

    if (vlm is None) != (prompts is None):
        raise ConfigError(
            "a zero-shot arm needs a VLM and prompts", fix="pass both --vlm and --prompts, or neither of them"
        )
    if prompts is None:
        return None
    prompt_set = read_prompts(str(prompts), None)
    if prompt_set is None:
        raise unknown_prompts(prompts, "sets", "--prompts")
    return tuple(prompt_set.classes)


def grid_options(
    folder: Path,
    tile_mpp: float | None,
    tile_pixels: int | None,
    overlap: float,
    min_tissue: float,
    contours: str | Path | None,
) -> tuple[SlidesConfig, list[str]]:
    """Return the options of the tile grid, and the names of those among `mpp` and `pixels` that the user set.

    Raises:
        ConfigError: An option is out of range, or `contours` does not exist.
    """
    from pydantic import ValidationError

    options: dict[str, Any] = {"mpp": tile_mpp, "pixels": tile_pixels}
    options = {name: value for name, value in options.items() if value is not None}
    try:
        config = SlidesConfig(
            overlap=overlap,
            min_tissue=min_tissue,
            contours=None if contours is None else str(contours),
            grids=str(folder / "grids"),
            **options,
        )
    except ValidationError as error:
        listed = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise ConfigError(f"invalid tile options: {listed}", fix="correct them (see --help)") from None
    if contours is not None and not Path(contours).exists():
        advice = f"correct --contours; {similar_names(str(contours))}"
        raise ConfigError("no such contour file or folder", where=contours, fix=advice)
    return config, list(options)


def vlm_section(
    vlm: "str | VLMConfig | None", bf16: bool = False, trust_remote_code: bool = False
) -> "VLMConfig | None":
    """Return the configuration of a VLM that is given by name or as a configuration."""
    from clipit.config.run import VLMConfig

    if not isinstance(vlm, str):
        return vlm
    return VLMConfig(name=vlm, precision="bf16" if bf16 else "fp32", trust_remote_code=trust_remote_code)


def open_scorer(
    classifier: "str | Path | Classifier | None",
    prompts: str | Path | None,
    classes: str | Sequence[str] | None,
    vlm: "str | VLMConfig | None",
    device: str | None,
    bf16: bool,
    trust_remote_code: bool,
) -> "TileScorer":
    """Load the model that scores tiles, after checking the options.

    Raises:
        ConfigError: There is neither a classifier nor a VLM with prompts, both `prompts` and `classes` are given, or a
            classifier is given with a VLM but without prompts.
        DataError: The prompt set does not exist, or its file is invalid.
    """
    from clipit.prompts.files import unknown_prompts
    from clipit.runs.prediction_inputs import check_vlm_use, read_prompts

    if prompts is not None and classes is not None:
        raise ConfigError("both prompts and classes are given", fix="use --prompts or --classes")
    name = None if prompts is None else str(prompts)
    prompt_set = read_prompts(name, classes) or name  # the name may refer to a prompt set of the classifier
    if classifier is None and (vlm is None or prompt_set is None):
        raise ConfigError(
            "no scoring model is given",
            fix="pass a classifier (--classifier outputs/run), or a VLM and prompts (--vlm NAME --prompts NAME)",
        )
    check_vlm_use(vlm, prompt_set)
    if classifier is None and isinstance(prompt_set, str):
        raise unknown_prompts(prompt_set, "sets", "--prompts")
    from clipit.distributed import get_processes
    from clipit.runs.predict_tiles import open_exported
    from clipit.runs.tile_scorer import classifier_scorer, vlm_scorer

    if classifier is None:
        from clipit.models.vlm import load_vlm
        from clipit.prompts.prompt_set import load_prompt_draws

        section = vlm_section(vlm, bf16, trust_remote_code)
        if section is None or prompt_set is None or isinstance(prompt_set, str):
            raise ConfigError("a VLM needs prompts", fix="add --prompts or --classes")
        sampled = load_prompt_draws(name) if name is not None else []
        draws = sampled if len(sampled) > 1 else []
        return vlm_scorer(load_vlm(section, device or get_processes().device), prompt_set, draws)
    loaded = (
        open_exported(
            classifier, device, vlm=vlm, dtype="bfloat16" if bf16 else None, trust_remote_code=trust_remote_code
        )
        if isinstance(classifier, str | Path)
        else classifier
    )
    return classifier_scorer(loaded, prompt_set)
