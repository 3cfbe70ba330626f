"""Embedding tiles into a store, end to end, against the bare image tower on batches in memory."""

from itertools import count

import numpy as np

from benchmarks.harness import Figure, Options, alternate, ratios, seconds
from benchmarks.inputs import make_tiles, make_vlm

_BATCH = 64


def measure(options: Options) -> list[Figure]:
    """Tiles per second of `embed_tiles` (unzip, decode, normalise, forward, write) as a share of the model's own."""
    import torch

    from clipit.stores.embed import embed_tiles, unit

    tiles = make_tiles(options.folder / "tiles", options.size(256, 12))
    vlm = make_vlm(options.folder / "vlm", quick=options.quick)
    starts = range(0, len(tiles), _BATCH)
    ready = []
    for start in starts:
        pixels = [vlm.preprocess.pixels(tiles.read(row)) for row in range(start, min(start + _BATCH, len(tiles)))]
        ready.append(vlm.preprocess.normalise(torch.from_numpy(np.stack(pixels)).to(vlm.device)))
    number = count()

    def ours() -> float:
        root = options.folder / f"root{next(number)}"
        return seconds(lambda: embed_tiles(root, vlm, tiles, batch_size=_BATCH))

    @torch.inference_mode()
    def forward() -> list[torch.Tensor]:
        return [vlm.towers.image(batch) for batch in ready]

    samples = alternate({"embed_tiles": ours, "forward": lambda: seconds(forward)}, options)
    wanted = unit(torch.cat(forward()).float().cpu().numpy())
    store = embed_tiles(options.folder / "root0", vlm, tiles, batch_size=_BATCH)
    cosines = (store.rows(np.arange(len(tiles))) * wanted).sum(axis=1)
    facts = {
        "tiles": len(tiles),
        "pixels": vlm.preprocess.size,
        "batch": _BATCH,
        "tiles_per_second": {name: len(tiles) / min(taken) for name, taken in samples.items()},
        "lowest_cosine_between_both": float(cosines.min()),
    }
    values = ratios(samples, "forward", "embed_tiles")
    name = "embed_tiles: tiles/s against the bare forward"
    return [Figure("embedding", name, values, goal=0.9, at_least=True, samples=samples, facts=facts)]
