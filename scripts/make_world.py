"""Write a synthetic world (tiles, reports, prompts); another seed gives another world."""

import argparse

from clipit.config.paths import option_path
from clipit.errors import user_errors


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="seed of the world; the demo uses 0")
    parser.add_argument("--output", type=option_path, required=True, help="folder of the world")
    arguments = parser.parse_args()
    with user_errors():
        from clipit.synthetic.world import WorldConfig, add_cases, ensure_world

        config = WorldConfig(seed=arguments.seed)
        folder = ensure_world(arguments.output, config)
        add_cases(folder, config)
        print(folder)


if __name__ == "__main__":
    main()
