"""Write a synthetic world (tiles, reports, prompts); another seed gives another world."""

import argparse

from clipit.config.paths import option_path
from clipit.errors import user_errors


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
    arguments = parser.parse_args()
    with user_errors():
        if arguments.cases:
            from clipit.synthetic.case_world import add_variants, check_variants, ensure_case_world
            from clipit.synthetic.cases import CaseWorldConfig

            cases = CaseWorldConfig(seed=arguments.seed)
            check_variants(cases, arguments.variant)  # writing the world takes a while
            folder = ensure_case_world(arguments.output, cases)
            add_variants(folder, cases, arguments.variant)
        else:
            from clipit.errors import ConfigError
            from clipit.synthetic.world import WorldConfig, add_cases, ensure_world

            if arguments.variant:
                raise ConfigError("only a world of cases has variants", where="--variant", fix="add --cases")
            config = WorldConfig(seed=arguments.seed)
            folder = ensure_world(arguments.output, config)
            add_cases(folder, config)
        print(folder)
