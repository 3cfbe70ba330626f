"""Speed of embedding tiles into a store, end to end, relative to the bare image tower on batches in memory."""

from itertools import count

import numpy as np

from benchmarks.harness import Measurement, Options, alternate, ratios, seconds
from benchmarks.inputs import SIZE, make_tiles, make_vlm

_BATCH, _BATCH_GPU = 64, 256  # tiles per batch on a CPU and on a GPU
_CONCH = 448
"""Input size of CONCH in pixels; its image tower is a ViT-B/16."""


def measure(options: Options) -> list[Measurement]:
    """Measure the tiles per second of `embed_tiles` (read, decode, forward, write) relative to the bare model.

    On a GPU, a tower as large as that of CONCH is also measured.
    """
    return [_measure(options, pixels) for pixels in ((SIZE, _CONCH) if options.gpu else (SIZE,))]


def _measure(options: Options, size: int) -> Measurement:
    import torch

    from clipit.stores.embed import embed_tiles
    from clipit.tiles.pixel_source import PixelSource
    from clipit.vectors import unit

    folder = options.folder / f"{size}px"
    tiles = make_tiles(folder / "tiles", options.size(256, 4, 8192), size=size)
    vlm = make_vlm(folder / "vlm", options, size)
    batch_size = options.size(_BATCH, _BATCH, _BATCH_GPU)
    starts = range(0, len(tiles), batch_size)
    ready = []
    for start in starts:
        pixels = [vlm.preprocess.pixels(tiles.read(row)) for row in range(start, min(start + batch_size, len(tiles)))]
        ready.append(vlm.preprocess.normalise(torch.from_numpy(np.stack(pixels)).to(vlm.device)))
    number = count()

    def embed() -> float:
        root = folder / f"root{next(number)}"
        return seconds(lambda: embed_tiles(root, vlm, tiles, batch_size=batch_size))

    @torch.inference_mode()
    def forward() -> list[torch.Tensor]:
        with torch.autocast(vlm.device.type, dtype=torch.bfloat16, enabled=options.gpu):
            return [vlm.towers.image(batch) for batch in ready]

    def reading() -> None:
        batches = [np.arange(start, min(start + batch_size, len(tiles))) for start in starts]
        for _ in PixelSource(tiles, vlm.preprocess.pixels).ahead(batches):
            pass

    samples = alternate({"embed_tiles": embed, "forward": lambda: seconds(forward)}, options)
    samples["reading"] = [seconds(reading) for _ in range(options.repeats)]
    expected = unit(torch.cat(forward()).float().cpu().numpy())
    store = embed_tiles(folder / "root0", vlm, tiles, batch_size=batch_size)
    cosines = (store.rows(np.arange(len(tiles))) * expected).sum(axis=1)
    facts = {
        "tiles": len(tiles),
        "pixels": vlm.preprocess.size,
        "batch": batch_size,
        "tiles_per_second": {name: len(tiles) / min(times) for name, times in samples.items()},
        "image_tower": ("ViT-B/16" if size > SIZE else "ViT-L/16") + ", bfloat16"
        if options.gpu
        else "ViT-S/16, float32",
        "lowest_cosine_between_both": float(cosines.min()),
    }
    values = ratios(samples, "forward", "embed_tiles")
    name = f"embed_tiles at {size} px: tiles/s relative to the bare forward pass"
    return Measurement("embedding", name, values, goal=0.97, at_least=True, samples=samples, facts=facts)
