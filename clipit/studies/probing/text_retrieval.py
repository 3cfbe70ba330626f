"""Retrieval between tiles and words in the VLM's joint space."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
from jaxtyping import Float32, Int64, Shaped

from clipit.config.studies import ProbingConfig
from clipit.errors import DataError, explain, shortlist
from clipit.evaluation.features import Features
from clipit.evaluation.retrieval import RetrievalScore, class_match, recall_at
from clipit.evaluation.zero_shot import embed_prompts, prompt_embeddings
from clipit.studies.features import Frozen
from clipit.workspace.workspace import Workspace

_COLUMNS = ("tile_id", "text")


def text_retrieval(p: ProbingConfig, workspace: Workspace, joint: Frozen) -> list[tuple[str, RetrievalScore]]:
    """Class-match precision between test tiles and prompts, and Recall@k of true captions where there are any.

    Without prompts and without captions there is nothing to look for, and the list is empty. Tiles and texts are taken
    as the VLM gives them, not centred.

    Returns:
        (what was looked for in what, score).

    Raises:
        DataError: The file of captions is missing, lacks a column or names tiles that are not test tiles.
    """
    known = workspace.all_tiles
    n_classes = len(known.classes)
    test = joint.features(known, "test")
    found: list[tuple[str, RetrievalScore]] = []
    if workspace.prompts is not None:
        classes = np.arange(n_classes, dtype=np.int64)
        means = prompt_embeddings(workspace.prompts, workspace.encode, None, known.classes)
        found += [
            ("text (class prompts) to image", score)
            for score in class_match(_texts(np.asarray(known.classes), means, classes), test, n_classes, p.at)
        ]
        texts = embed_prompts(workspace.prompts, workspace.encode, None, known.classes)
        single = _texts(_numbered(len(texts.texts)), texts.vectors, texts.class_of)
        found += [
            ("image to text (single prompts)", score)
            for score in class_match(test, single, n_classes, p.at)
            if score.k <= len(single)
        ]
    if p.captions is not None:
        tile_ids, words = read_captions(Path(p.captions), test.ids)
        unknown = np.full(len(words), -1, dtype=np.int64)
        captions = _texts(_numbered(len(words)), workspace.encode(words), unknown)
        tiles_of = list(zip(tile_ids, captions.ids.tolist(), strict=True))
        found += [("image to caption", score) for score in recall_at(test, captions, tiles_of, p.at)]
        turned = [(name, tile) for tile, name in tiles_of]
        found += [("caption to image", score) for score in recall_at(captions, test, turned, p.at)]
    return found


def read_captions(path: Path, known: Shaped[np.ndarray, " n"]) -> tuple[list[str], list[str]]:
    """Tile ids and texts of a CSV with the columns tile_id and text.

    Raises:
        DataError: It is missing or unreadable, lacks a column, has an empty text, or names tiles that are not known.
    """
    try:
        # As text from the first row on: numbers in a column would make numbers of the ids.
        options = pyarrow.csv.ConvertOptions(column_types=dict.fromkeys(_COLUMNS, pa.string()))
        table = pyarrow.csv.read_csv(path, convert_options=options)
    except FileNotFoundError:
        raise DataError(explain("no such file of captions", where=path, fix="correct probing.captions")) from None
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(explain(f"unreadable captions: {error}", where=path, fix="give a CSV in UTF-8")) from error
    missing = [name for name in _COLUMNS if name not in table.column_names]
    if missing:
        raise DataError(
            explain(f"missing columns: {', '.join(missing)}", where=path, fix="name the columns tile_id and text")
        )
    ids, texts = table.column("tile_id").to_pylist(), table.column("text").to_pylist()
    strange = sorted({str(name) for name in ids} - set(known.tolist()))
    if strange:
        raise DataError(
            explain(
                f"{len(strange)} captions are of no test tile: {shortlist(strange)}",
                where=path,
                fix="give captions of test tiles, under the ids that predictions.parquet has",
            )
        )
    empty = [str(name) for name, text in zip(ids, texts, strict=True) if not (text or "").strip()]
    if empty or not ids:
        what = f"no text for {shortlist(empty)}" if empty else "no caption in the file"
        raise DataError(explain(what, where=path, fix="give one text per row"))
    return ids, texts


def _texts(
    names: Shaped[np.ndarray, " n"], vectors: Float32[np.ndarray, "n d"], labels: Int64[np.ndarray, " n"]
) -> Features:
    """Texts as features; their ids cannot be those of tiles."""
    ids = np.array([f"text:{name}" for name in names.tolist()], dtype=np.str_)
    return Features(ids, vectors, labels, np.full(len(ids), "", dtype=np.str_))


def _numbered(n: int) -> Shaped[np.ndarray, " n"]:
    return np.array([f"{i:07d}" for i in range(n)], dtype=np.str_)
