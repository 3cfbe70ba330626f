"""Write a synthetic world (tiles, reports, prompts), or synthetic slides; another seed gives another world."""

import argparse
from pathlib import Path

from clipit.config.paths import option_path
from clipit.errors import ConfigError, user_errors


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="seed of the world; the demo uses 0")
    parser.add_argument("--output", type=option_path, required=True, help="folder of the world")
    parser.add_argument(
        "--cases", action="store_true", help="write a world of cases: tiles and reports of the same patients"
    )
    parser.add_argument(
        "--variant",
        nargs="+",
        action="append",
        default=[],
        metavar="KEY=SHARE",
        help="with --cases: further reports of the same cases, such as `--variant reported=0.25 wrong=0.4`, which "
        "writes reports_reported0.25_wrong0.4.jsonl; keys: reported, silent, wrong, earlier; may be repeated",
    )
    parser.add_argument(
        "--slides",
        type=int,
        metavar="N",
        help="write whole slides with exact masks instead: N each for train, validation and test",
    )
    parser.add_argument(
        "--size", type=int, default=None, metavar="PIXELS", help="with --slides: edge of a slide, 1 µm per pixel (1536)"
    )
    arguments = parser.parse_args()
    with user_errors():
        _check_options(arguments)
        if arguments.slides is not None:
            folder = _write_slides(arguments.output, arguments.seed, arguments.slides, arguments.size)
        elif arguments.cases:
            from clipit.synthetic.case_world import add_variants, check_variants, ensure_case_world
            from clipit.synthetic.cases import CaseWorldConfig

            cases = CaseWorldConfig(seed=arguments.seed)
            check_variants(cases, arguments.variant)  # writing the world takes a while
            folder = ensure_case_world(arguments.output, cases)
            add_variants(folder, cases, arguments.variant)
        else:
            from clipit.synthetic.world import WorldConfig, add_cases, ensure_world

            config = WorldConfig(seed=arguments.seed)
            folder = ensure_world(arguments.output, config)
            add_cases(folder, config)
        print(folder)


def _check_options(arguments: argparse.Namespace) -> None:
    """Check options that contradict each other.

    Raises:
        ConfigError: An option is without effect.
    """
    if arguments.slides is not None and arguments.cases:
        raise ConfigError(
            "slides and cases are different worlds", where="--slides", fix="leave out --cases or --slides"
        )
    if arguments.variant and not arguments.cases:
        raise ConfigError("only a world of cases has variants", where="--variant", fix="add --cases")
    if arguments.size is not None and arguments.slides is None:
        raise ConfigError("only slides have a size", where="--size", fix="add --slides N")


def _write_slides(folder: Path, seed: int, count: int, size: int | None) -> Path:
    from pydantic import ValidationError

    from clipit.synthetic.slides import SlideWorldConfig, ensure_slides

    keys = {
        "seed": seed,
        "train": count,
        "validation": count,
        "test": count,
        **({} if size is None else {"size": size}),
    }
    try:
        config = SlideWorldConfig.model_validate(keys)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, found['loc']))}: {found['msg']}" for found in error.errors())
        raise ConfigError(
            f"no slides of these settings: {problems}",
            where="--slides, --size or --seed",
            fix="use a positive number of slides, a size from 256 to 8192 in steps of 64, and a seed from 0",
        ) from error
    return ensure_slides(folder, config)
