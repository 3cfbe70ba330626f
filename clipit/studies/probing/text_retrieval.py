"""Retrieval between tiles and texts in the VLM's joint space."""

from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int64, Shaped

from clipit.annotators.label_table import match_tiles
from clipit.config.studies import ProbingConfig
from clipit.errors import DataError, counted, shortlist
from clipit.evaluation.features import Features
from clipit.evaluation.retrieval import RetrievalScore, class_match, recall_at
from clipit.evaluation.zero_shot import embed_prompt_set, prompt_embeddings
from clipit.input_files.csv_tables import read_utf8_csv
from clipit.input_files.data_files import MISSING_VALUES
from clipit.input_files.mangled_names import check_rounded
from clipit.input_files.nearby_files import similar_names
from clipit.studies.model_features import FrozenFeatures
from clipit.workspace.workspace import Workspace

_COLUMNS = ("tile_id", "text")


def text_retrieval(
    probing: ProbingConfig, workspace: Workspace, joint: FrozenFeatures
) -> list[tuple[str, RetrievalScore]]:
    """Measure class-match precision between test tiles and prompts, and recall@k of the true captions if configured.

    The list is empty if neither prompts nor captions are configured. Embeddings are not centred.

    Returns:
        Pairs of task and score.

    Raises:
        DataError: The caption file is missing, lacks a column, or names tiles that are not in the test split.
    """
    tiles = workspace.all_tiles
    n_classes = len(tiles.classes)
    test = joint.split(tiles, "test")
    scores: list[tuple[str, RetrievalScore]] = []
    if workspace.prompts is not None:
        classes = np.arange(n_classes, dtype=np.int64)
        means = prompt_embeddings(workspace.prompts, workspace.encode, None, tiles.classes)
        scores += [
            ("text (class prompts) to image", score)
            for score in class_match(
                _text_features(np.asarray(tiles.classes), means, classes), test, n_classes, probing.at
            )
        ]
        prompts = embed_prompt_set(workspace.prompts, workspace.encode, None, tiles.classes)
        single = _text_features(_numbered(len(prompts.texts)), prompts.vectors, prompts.class_of)
        scores += [
            ("image to text (single prompts)", score)
            for score in class_match(test, single, n_classes, probing.at)
            if score.k <= len(single)
        ]
    if probing.captions is not None:
        tile_ids, texts = read_captions(Path(probing.captions), test.ids)
        distinct = list(dict.fromkeys(texts))  # equal captions are one item; otherwise, all but one would be misses
        unlabelled = np.full(len(distinct), -1, dtype=np.int64)
        captions = _text_features(_numbered(len(distinct)), workspace.encode(distinct), unlabelled)
        name_of = dict(zip(distinct, captions.ids.tolist(), strict=True))
        tile_pairs = [(tile, name_of[text]) for tile, text in zip(tile_ids, texts, strict=True)]
        scores += [("image to caption", score) for score in recall_at(test, captions, tile_pairs, probing.at)]
        caption_pairs = [(name, tile) for tile, name in tile_pairs]
        scores += [("caption to image", score) for score in recall_at(captions, test, caption_pairs, probing.at)]
    return scores


def read_captions(path: Path, known: Shaped[np.ndarray, " n"]) -> tuple[list[str], list[str]]:
    """Read tile ids and texts from a CSV with the columns tile_id and text; paths as in `match_tiles`.

    Raises:
        DataError: The file is missing or unreadable, lacks a column, has an empty text, names unknown tiles, or a stray
            quotation mark joins rows.
    """
    try:
        table = read_utf8_csv(path)
    except FileNotFoundError:
        advice = f"correct probing.captions; {similar_names(str(path))}"
        raise DataError("no such caption file", where=path, fix=advice) from None
    except OSError as error:
        raise DataError(f"unreadable captions: {error}", where=path, fix="save the file as CSV in UTF-8") from error
    missing = [name for name in _COLUMNS if name not in table.header]
    if missing:
        raise DataError(
            f"missing columns: {', '.join(missing)}",
            where=path,
            fix=table.hint(missing) or "name the columns tile_id and text",
        )
    ids, texts = ([row[table.header.index(name)] for row in table.rows] for name in _COLUMNS)
    ids = [name.strip() for name in ids]
    check_rounded(ids, _COLUMNS[0], lambda row: f"line {table.lines[row]}", path)
    tile_of = match_tiles(ids, known.tolist(), path)
    ids = [tile_of[name] for name in ids]
    tiles = set(known.tolist())
    unknown = sorted(set(ids) - tiles)
    if unknown:
        raise DataError(
            f"{counted(len(unknown), 'caption belongs', 'captions belong')} to no test tile: {shortlist(unknown)}",
            where=path,
            fix="use the ids of test tiles, as in predictions.parquet",
        )
    for line, text in zip(table.lines, texts, strict=True):
        joined = [name for row in text.split("\n")[1:] if (name := row.partition(",")[0].strip('"')) in tiles]
        if joined:
            raise DataError(
                f"this caption contains the rows of {shortlist(joined)}",
                where=f"{path}, line {line}",
                fix="remove the stray quotation marks, or double those that belong to the text",
            )
    empty = [
        name
        for name, text in zip(ids, texts, strict=True)
        if not any(char.isalnum() for char in text) or text.strip() in MISSING_VALUES or "\0" in text
    ]
    if empty or not ids:
        problem = f"no text for {shortlist(empty)}" if empty else "the file contains no captions"
        raise DataError(problem, where=path, fix="write one text per row")
    return ids, texts


def _text_features(
    names: Shaped[np.ndarray, " n"], vectors: Float32[np.ndarray, "n d"], labels: Int64[np.ndarray, " n"]
) -> Features:
    """Represent texts as features, labelled or not; a prefix keeps their ids distinct from tile ids."""
    ids = np.array([f"text:{name}" for name in names.tolist()], dtype=np.str_)
    return Features(ids, vectors, labels, np.full(len(ids), "", dtype=np.str_))


def _numbered(n: int) -> Shaped[np.ndarray, " n"]:
    return np.array([f"{i:07d}" for i in range(n)], dtype=np.str_)
