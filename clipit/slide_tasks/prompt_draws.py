"""Slide scores for sampled prompt sets: one table per slide with the pooled scores of every draw."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import torch
from jaxtyping import Float, Float32, Int64
from numpy import ndarray
from torch import Tensor

from clipit.errors import ModelError
from clipit.evaluation.slide_prompts import pool_prompts
from clipit.evaluation.slide_scores import slide_table
from clipit.output_files.artifacts import make_folder
from clipit.output_files.whole_files import read_frame, write_frame

DRAWS = "prompt_draws.parquet"
"""Table of a slide's scores by draw: the columns of `slide_table`, and `draw` (index of the prompt set in its file)."""
_RESTART = "delete the folder of this slide and start the same command again"


def draw_similarities(
    embeddings: Float[Tensor, "b D"] | None, draws: Float32[Tensor, "N C D"]
) -> Float[Tensor, "b N C"]:
    """Compute the cosine similarities of tiles to the class prompts of every draw.

    Args:
        embeddings: Embeddings of the tiles in the joint space, of any norm.
        draws: Unit-norm class embeddings of every draw.

    Raises:
        ModelError: The model has no joint space.
    """
    if embeddings is None:
        raise ModelError("this model has no joint space for prompts", fix="use a VLM or a student trained with text")
    unit = torch.nn.functional.normalize(embeddings.float(), dim=1)
    return (unit @ draws.flatten(0, 1).T).reshape(len(unit), *draws.shape[:2])


def write_draws(
    folder: Path,
    slide: str,
    similarities: Float32[ndarray, "n N C"],
    cells: Int64[ndarray, "n 2"],
    classes: Sequence[str],
) -> None:
    """Pool the similarities of a slide's tiles for every draw, and write the table.

    Args:
        similarities: Cosine similarity of each tile to the prompts of each draw and class.
        cells: Row and column of each tile in the slide's grid.
    """
    tables = [
        slide_table({slide: pooled}, classes).assign(draw=number)
        for number, pooled in enumerate(pool_prompts(similarities, cells))
    ]
    make_folder(folder)
    write_frame(folder / DRAWS, pd.concat(tables))


def read_draw_scores(folder: Path) -> pd.DataFrame:
    """Read the scores of a slide by draw.

    Raises:
        ArtifactError: The table is missing or damaged.
    """
    return read_frame(folder / DRAWS, _RESTART)


def split_draws(tables: Sequence[pd.DataFrame]) -> list[pd.DataFrame]:
    """Convert one table of scores per slide into one table per draw."""
    if not tables:
        return []
    merged = pd.concat(tables, ignore_index=True)
    return [part.drop(columns="draw") for _, part in merged.groupby("draw", sort=True)]
