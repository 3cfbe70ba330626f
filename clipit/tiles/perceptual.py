"""Image hashes for duplicate detection: pixel digests, perceptual hashes in eight orientations, thumbnails."""

import hashlib
from dataclasses import dataclass
from functools import cache

import numpy as np
from jaxtyping import Float32, Float64, Shaped, UInt8, UInt64
from PIL import Image

SIDE = 16
"""Edge length of the thumbnails in pixels."""
_FINE = 32  # edge length of the grey image to hash, in pixels
_KEPT = 8  # number of low frequencies per axis


@dataclass(frozen=True)
class PerceptualHashes:
    """Hashes and thumbnails of n images, one row per image."""

    digests: UInt8[np.ndarray, "n 16"]
    """Digests of size and pixels; zero for images of a single colour, which would all match each other."""
    hashes: UInt64[np.ndarray, "n 8"]
    """Perceptual hash of each orientation; column 0 is the image as stored."""
    thumbnails: UInt8[np.ndarray, "n 16 16"]
    """Grey images of 16 x 16 pixels."""

    @property
    def spread(self) -> Float64[np.ndarray, " n"]:
        """Standard deviation of the pixels of each thumbnail (0 to 127.5); near 0 for empty background."""
        return np.asarray(self.thumbnails.reshape(len(self.thumbnails), SIDE * SIDE).std(axis=1), dtype=np.float64)


def perceptual_hashes(images: list[Image.Image]) -> PerceptualHashes:
    """Hash RGB images of any size."""
    digests = np.zeros((len(images), 16), dtype=np.uint8)
    fine = np.empty((len(images), _FINE, _FINE), dtype=np.float32)
    for row, image in enumerate(images):
        digests[row] = pixel_digest(image)
        grey = image.convert("L").resize((_FINE, _FINE), Image.Resampling.BILINEAR)
        fine[row] = np.asarray(grey, dtype=np.float32)
    coarse = fine.reshape(len(images), SIDE, _FINE // SIDE, SIDE, _FINE // SIDE).mean(axis=(2, 4))
    return PerceptualHashes(digests, dihedral_hashes(fine), coarse.round().astype(np.uint8))


def pixel_digest(image: Image.Image) -> UInt8[np.ndarray, "16"]:
    """Compute the 16-byte digest of an image's size and pixels; zeros if all pixels are equal."""
    pixels = np.asarray(image)
    if (pixels == pixels[0, 0]).all():
        return np.zeros(16, dtype=np.uint8)
    digest = hashlib.blake2b(f"{image.size}{image.mode}".encode() + pixels.tobytes(), digest_size=16)
    return np.frombuffer(digest.digest(), dtype=np.uint8)


def dihedral_hashes(grey: Float32[np.ndarray, "n 32 32"]) -> UInt64[np.ndarray, "n 8"]:
    """Compute 64-bit hashes of grey images in all eight orientations (quarter turns, with and without a flip).

    Each bit is the sign of one coefficient of the two-dimensional discrete cosine transform at the 8 x 8 lowest
    frequencies, with the constant term replaced by the next one on the diagonal. Signs are invariant to brightness
    and contrast. A flip changes the signs of odd frequencies, and transposing an image transposes its coefficients, so
    one transform suffices for all orientations. Column o is the hash of `oriented(image, o)`.
    """
    basis = _cosines()
    spectrum = np.einsum("ui,nij,vj->nuv", basis, grey, basis, optimize=True)
    odd = np.where(np.arange(_KEPT + 1) % 2, -1.0, 1.0).astype(np.float32)
    hashes = np.empty((len(grey), 8), dtype=np.uint64)
    for orientation in range(8):
        coefficients = spectrum.transpose(0, 2, 1) if orientation & 4 else spectrum
        if orientation & 1:
            coefficients = coefficients * odd[:, None]
        if orientation & 2:
            coefficients = coefficients * odd
        hashes[:, orientation] = _pack_signs(coefficients)
    return hashes


def oriented(images: Shaped[np.ndarray, "*n side side"], orientation: int) -> Shaped[np.ndarray, "*n side side"]:
    """Reorient images: bit 2 of `orientation` transposes, then bit 0 reverses the rows and bit 1 the columns."""
    if orientation & 4:
        images = np.swapaxes(images, -1, -2)
    if orientation & 1:
        images = images[..., ::-1, :]
    if orientation & 2:
        images = images[..., ::-1]
    return images


@cache
def _cosines() -> Float32[np.ndarray, "9 32"]:
    """Return the DCT-II basis, lowest frequencies first, unscaled because only signs matter."""
    angles = (np.arange(_FINE) + 0.5) * np.pi / _FINE
    return np.asarray(np.cos(np.outer(np.arange(_KEPT + 1), angles)), dtype=np.float32)


def _pack_signs(spectrum: Float32[np.ndarray, "n 9 9"]) -> UInt64[np.ndarray, " n"]:
    """Pack the signs of 64 coefficients so that the bits of each 16-bit band are far apart in frequency."""
    bits = spectrum[:, :_KEPT, :_KEPT].reshape(len(spectrum), _KEPT * _KEPT) > 0
    bits[:, 0] = spectrum[:, _KEPT, _KEPT] > 0
    spread = bits.reshape(len(bits), 16, 4).transpose(0, 2, 1).reshape(len(bits), 64)
    packed = np.packbits(spread, axis=1, bitorder="little")
    return np.asarray(packed.view("<u8").reshape(-1), dtype=np.uint64)
