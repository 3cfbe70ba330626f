"""Generate a synthetic data set ("world") of tiles, reports and prompts, or slides; each seed gives a different one."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from clipit.config.computing_options import OptionParser
from clipit.config.paths import option_path
from clipit.errors import ConfigError, user_errors

if TYPE_CHECKING:
    from clipit.synthetic.synthetic_annotators import AnnotatorsConfig


def main() -> None:
    """Run the command."""
    parser = OptionParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="seed for the world; the demo uses 0")
    parser.add_argument("--output", type=option_path, required=True, help="folder for the world")
    parser.add_argument(
        "--cases",
        action="store_true",
        help="generate a case world, in which tiles and reports come from the same patients",
    )
    parser.add_argument(
        "--variant",
        nargs="+",
        action="append",
        default=[],
        metavar="KEY=SHARE",
        help="with --cases or --reports: additional reports of the same patients, such as "
        "`--variant reported=0.25 wrong=0.4`, which writes reports_reported0.25_wrong0.4.jsonl; keys: "
        "reported, silent, wrong, earlier; may be repeated",
    )
    parser.add_argument(
        "--slides",
        type=int,
        metavar="N",
        help="write whole-slide images with exact masks instead: N per split (train, validation, test)",
    )
    parser.add_argument(
        "--reports",
        action="store_true",
        help="with --slides: write a report per patient that states the molecular status of the tumour",
    )
    parser.add_argument(
        "--size",
        type=int,
        default=None,
        metavar="PIXELS",
        help="with --slides: edge length of a slide, at 1 µm per pixel (default: 1536)",
    )
    parser.add_argument(
        "--annotators",
        type=int,
        metavar="N",
        help="also write annotations.csv: tile labels from N simulated annotators",
    )
    parser.add_argument(
        "--skills",
        nargs="+",
        type=float,
        metavar="P",
        help="with --annotators: probability of the correct label, one per annotator (default: evenly spaced from 0.9 "
        "to 0.5)",
    )
    parser.add_argument(
        "--biased",
        type=int,
        metavar="N",
        help="with --annotators: number of annotators who label most high-grade tumours as low-grade (default: 0)",
    )
    parser.add_argument(
        "--coverage",
        type=float,
        metavar="SHARE",
        help="with --annotators: probability that an annotator labels a tile (default: 1)",
    )
    parser.add_argument(
        "--annotated",
        type=float,
        metavar="SHARE",
        help="with --annotators: probability that a tile is annotated at all (default: 1)",
    )
    arguments = parser.parse_args()
    with user_errors():
        _check_options(arguments)
        annotators = _annotators(arguments)
        if arguments.slides is not None:
            folder = _write_slides(arguments)
        elif arguments.cases:
            from clipit.synthetic.case_latents import CaseWorldConfig
            from clipit.synthetic.case_world import add_variants, check_variants, ensure_case_world

            cases = CaseWorldConfig(seed=arguments.seed)
            check_variants(cases, arguments.variant)  # before writing the world, which takes a while
            folder = ensure_case_world(arguments.output, cases)
            add_variants(folder, cases, arguments.variant)
        else:
            from clipit.synthetic.tile_world import WorldConfig, add_cases, ensure_world

            config = WorldConfig(seed=arguments.seed)
            folder = ensure_world(arguments.output, config)
            add_cases(folder, config)
        if annotators is not None:
            from clipit.synthetic.synthetic_annotators import add_annotators

            add_annotators(folder, annotators)
        print(folder)


def _check_options(arguments: argparse.Namespace) -> None:
    """Check that all options apply.

    Raises:
        ConfigError: An option would have no effect.
    """
    if arguments.seed < 0:
        raise ConfigError("a seed cannot be negative", where="--seed", fix="use a non-negative whole number")
    if arguments.slides is not None and arguments.cases:
        raise ConfigError("--slides and --cases cannot be combined", where="--slides", fix="remove --cases or --slides")
    if arguments.variant and not (arguments.cases or arguments.reports):
        raise ConfigError(
            "--variant applies only to case worlds and to slide worlds with reports",
            where="--variant",
            fix="add --cases or --reports",
        )
    if arguments.reports and arguments.slides is None:
        raise ConfigError(
            "--reports applies only to slides; other worlds always have reports",
            where="--reports",
            fix="add --slides N",
        )
    if arguments.size is not None and arguments.slides is None:
        raise ConfigError("--size applies only to slides", where="--size", fix="add --slides N")
    if arguments.annotators is not None and arguments.slides is not None:
        raise ConfigError(
            "annotators label tiles, not slides", where="--annotators", fix="remove --slides or --annotators"
        )
    for name in ("skills", "biased", "coverage", "annotated"):
        if getattr(arguments, name) is not None and arguments.annotators is None:
            raise ConfigError(
                f"--{name} applies only to simulated annotators", where=f"--{name}", fix="add --annotators N"
            )


def _annotators(arguments: argparse.Namespace) -> "AnnotatorsConfig | None":
    if arguments.annotators is None:
        return None
    from clipit.synthetic.synthetic_annotators import make_annotators

    return make_annotators(
        arguments.annotators,
        seed=arguments.seed,
        skills=arguments.skills or (),
        biased=arguments.biased or 0,
        coverage=1.0 if arguments.coverage is None else arguments.coverage,
        annotated=1.0 if arguments.annotated is None else arguments.annotated,
    )


def _write_slides(arguments: argparse.Namespace) -> Path:
    from pydantic import ValidationError

    from clipit.synthetic.case_world import check_variants
    from clipit.synthetic.reported_slides import ReportedSlidesConfig, add_slide_variants, ensure_reported_slides
    from clipit.synthetic.slide_world import SlideWorldConfig, ensure_slides

    count = arguments.slides
    keys = {
        "seed": arguments.seed,
        "train": count,
        "validation": count,
        "test": count,
        **({} if arguments.size is None else {"size": arguments.size}),
    }
    try:
        config = (ReportedSlidesConfig if arguments.reports else SlideWorldConfig).model_validate(keys)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors())
        raise ConfigError(
            f"invalid options for slides: {problems}",
            where="--slides, --size or --seed",
            fix="use a positive number of slides, a size from 256 to 8192 in steps of 64, and a non-negative seed",
        ) from error
    if not isinstance(config, ReportedSlidesConfig):
        return ensure_slides(arguments.output, config)
    check_variants(config, arguments.variant)  # before writing the world, which takes a while
    folder = ensure_reported_slides(arguments.output, config)
    add_slide_variants(folder, config, arguments.variant)
    return folder
