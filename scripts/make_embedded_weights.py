"""Train the tiny VLM and backbone that ship in the package, and measure them (about 10 minutes on one core)."""

import argparse
import json
from pathlib import Path


def main() -> None:
    """Parse, call, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("outputs/embedded"), help="folder for vlm/ and backbone/")
    parser.add_argument("--seed", type=int, default=100, help="of the training draws and the training")
    parser.add_argument("--world-seed", type=int, default=0, help="of the world on which they are measured")
    parser.add_argument("--vlm-tiles", type=int, default=12_000, help="training tiles of the VLM; fewer make it weak")
    parser.add_argument("--vlm-epochs", type=int, default=10, help="its passes over them")
    parser.add_argument(
        "--captions", choices=("graded", "coarse"), default="graded", help="coarse: never tell tumour grades apart"
    )
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of torch")
    parser.add_argument(
        "--small", action="store_true", help="a few steps only: a trial of the program, not of the models"
    )
    arguments = parser.parse_args()

    from clipit.errors import user_errors

    with user_errors():
        from clipit.experiments.embedded_backbone import BackboneRecipe
        from clipit.experiments.embedded_vlm import VLMRecipe
        from clipit.experiments.embedded_weights import make_embedded_weights
        from clipit.synthetic.world import WorldConfig

        world = WorldConfig(seed=arguments.world_seed)
        vlm = VLMRecipe(tiles=arguments.vlm_tiles, epochs=arguments.vlm_epochs, wording=arguments.captions)
        backbone = BackboneRecipe()
        if arguments.small:
            world = WorldConfig(seed=arguments.world_seed, train=160, validation=160, test=80, shift=80, reports=40)
            vlm, backbone = (
                VLMRecipe(tiles=256, epochs=1, wording=arguments.captions),
                BackboneRecipe(tiles=192, epochs=1),
            )
        facts = make_embedded_weights(arguments.output, arguments.seed, vlm, backbone, world, arguments.threads)
        print(json.dumps(facts["scores"], indent=2))
        if not facts["gate"]["passed"]:
            print(f"warning: zero-shot accuracy is below {facts['gate']['zero_shot']}; the demo would show no gain")
        print(f"weights, hashes and measured.json: {arguments.output}")


if __name__ == "__main__":
    main()
