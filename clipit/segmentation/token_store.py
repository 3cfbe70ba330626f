"""Store token maps of images on disk, so that heads can be trained without the model."""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float16
from PIL import Image

from clipit.distributed import build_once, get_processes
from clipit.errors import DataError
from clipit.output_files.artifacts import Artifact, fingerprint
from clipit.output_files.whole_files import write_array, write_parquet, write_text
from clipit.progress import progress
from clipit.segmentation.token_maps import lattice_of, token_map
from clipit.tiles.tileset import TileSet

if TYPE_CHECKING:
    from clipit.models.patch_tokens import PatchTokens

_IDS = "ids.parquet"


@dataclass(frozen=True, eq=False)
class TokenStore:
    """Token maps on disk: one half-precision array per image, memory-mapped when it is read."""

    artifact: Artifact

    @property
    def dim(self) -> int:
        """Dimension of a token."""
        return int(self.artifact.manifest.facts["dim"])

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the model, the images and the windows."""
        return self.artifact.fingerprint

    @cached_property
    def _rows(self) -> dict[str, int]:
        return {name: row for row, name in enumerate(self.artifact.table(_IDS).column("id").to_pylist())}

    @cached_property
    def _digests(self) -> dict[str, int]:
        return {digest: row for row, digest in enumerate(self.artifact.table(_IDS).column("pixels").to_pylist())}

    @property
    def ids(self) -> list[str]:
        """Ids of the images."""
        return list(self._rows)

    def find(self, image: Image.Image, mpp: float) -> Float16[np.ndarray, "rows columns d"] | None:
        """Memory-map the tokens of an image, found by its pixels and resolution; None if they are not stored."""
        row = self._digests.get(_digest(image, mpp))
        return None if row is None else self.artifact.array(_file(row), "r")

    def tokens(self, name: str) -> Float16[np.ndarray, "rows columns d"]:
        """Memory-map the tokens of an image, found by its id.

        Raises:
            DataError: The store has no such image.
        """
        if name not in self._rows:
            raise DataError(
                f"no tokens are stored for image {name}",
                where=self.artifact.folder,
                fix="delete the store and build it again",
            )
        return self.artifact.array(_file(self._rows[name]), "r")


def store_tokens(
    root: Path, tokens: "PatchTokens", tiles: TileSet, *, overlap: float = 0.5, batch_size: int = 64
) -> TokenStore:
    """Compute the token maps of images, or open stored ones; labels and masks are not used.

    An interrupted call resumes at the next image; images are distributed over the processes.

    Args:
        tiles: Images whose token maps are stored.
        overlap: Overlap of adjacent windows as a fraction of their edge length.
        batch_size: Number of windows per forward pass.

    Raises:
        DataError: An image cannot be read, or a token is not finite.
    """
    inputs = {
        "model": tokens.fingerprint,
        "kind": tokens.kind,
        "pixels": tokens.preprocess.size,
        "model_mpp": tokens.mpp,
        "tiles": tiles.fingerprint,
        "mpp": fingerprint([None if np.isnan(value) else float(value) for value in tiles.mpp]),
        "overlap": overlap,
    }

    def make(folder: Path) -> dict[str, Any]:
        if not (folder / _IDS).is_file():  # written last; exists if a process was killed after writing it
            write_tokens(folder)
        if get_processes().main:
            for file in folder.glob("*.pixels"):
                file.unlink()
        return {"images": len(tiles), "dim": tokens.dim, "model": tokens.name}

    def write_tokens(folder: Path) -> None:
        processes = get_processes()
        missing = [row for row in range(len(tiles)) if not (folder / f"{_file(row)}.pixels").is_file()]
        processes.barrier()  # every process lists the missing images before any is written
        with progress("patch tokens", len(tiles), shown=processes.main, done=len(tiles) - len(missing)) as advance:
            for row in processes.share(missing):
                image = tiles.read(row)
                lattice = lattice_of(image.height, image.width, float(tiles.mpp[row]), tokens)
                with np.errstate(over="ignore"):  # reported below
                    values = token_map(image, lattice, tokens, overlap, batch_size).astype(np.float16)
                if not np.isfinite(values).all():
                    raise DataError(
                        f"tokens of image {tiles.ids[row]} are not finite in half precision",
                        where=tokens.name,
                        fix="check this image, or use a different model",
                    )
                write_array(folder / _file(row), values)
                write_text(folder / f"{_file(row)}.pixels", _digest(image, float(tiles.mpp[row])))
                advance(processes.count)
        processes.barrier()
        if processes.main:
            files = [folder / f"{_file(row)}.pixels" for row in range(len(tiles))]
            digests = [file.read_text(encoding="utf-8") for file in files]
            write_parquet(folder / _IDS, pa.table({"id": [str(name) for name in tiles.ids], "pixels": digests}))
        processes.barrier()

    return TokenStore(build_once(root, "token_store", inputs, make))


def _digest(image: Image.Image, mpp: float) -> str:
    """Hash the pixels and the resolution of an image."""
    return hashlib.sha256(f"{image.size}:{mpp}:".encode() + image.convert("RGB").tobytes()).hexdigest()


def _file(row: int) -> str:
    return f"tokens-{row:06d}.npy"
