"""Texts of examples: split to the context length, deduplicated, and compared with the evaluation prompts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64

from clipit.errors import counted, shortlist
from clipit.prompts.prompt_set import PromptSet
from clipit.reports.cleaning import clean_text, drop_long_words, strip_markup
from clipit.reports.encodings import describe_escaped, describe_replaced, describe_truncated, find_misread
from clipit.reports.snippets import split_reports
from clipit.types import TokenCounter
from clipit.vlm_training.bag_batches import BagExamples, Members


@dataclass(frozen=True)
class FittedTexts:
    """Distinct texts within the context length.

    Attributes:
        texts: Distinct texts, sorted.
        members: Rows of the texts of each example.
        counts: Numbers of texts that were empty, repeated within an example, or split, and of long words dropped.
    """

    texts: list[str]
    members: Members
    counts: dict[str, int]


def describe_caption_faults(texts: Sequence[str]) -> list[str]:
    """Describe faults that another program left in texts within the context length, which are not cleaned."""
    misread, marked = find_misread(texts), [text for text in texts if strip_markup(text) != text]
    faults = [describe(texts, "text") for describe in (describe_replaced, describe_escaped, describe_truncated)]
    if misread:
        faults.append(f"misread characters in texts, such as {shortlist(misread, 3)}: export the texts again as UTF-8")
    if marked:
        found = counted(len(marked), "text contains", "texts contain")
        shown = shortlist([text[:60] for text in marked], 3)
        faults.append(f"{found} HTML, such as {shown}: export the texts again as plain text")
    return list(filter(None, faults))


def fit_texts(captions: Sequence[Sequence[str]], count_tokens: TokenCounter, budget: int) -> FittedTexts:
    """Split texts over the context length into snippets, and merge identical texts.

    Texts within the context length are not changed. The others are cleaned and split like reports, without words of
    more than 500 characters, and each piece becomes a text of the example.

    Args:
        count_tokens: Function that counts the tokens of each text, including special tokens, without truncation.
        budget: Maximum number of tokens of a text, including special tokens.
    """
    distinct = [text for text in dict.fromkeys(text for each in captions for text in each) if _has_words(text)]
    too_long = [text for text, n in zip(distinct, count_tokens(distinct), strict=True) if n > budget]
    cleaned = [drop_long_words(clean_text(text)) for text in too_long]
    pieces = split_reports([text for text, _ in cleaned], count_tokens, budget)
    pieces_of = {text: [piece.text for piece in each] for text, each in zip(too_long, pieces, strict=True)}
    fitted = [
        [piece_text for text in each if _has_words(text) for piece_text in pieces_of.get(text, [text])]
        for each in captions
    ]
    texts = sorted({text for each in fitted for text in each})
    row_of = {text: row for row, text in enumerate(texts)}
    members = [list(dict.fromkeys(row_of[text] for text in each)) for each in fitted]
    counts = {
        "empty_texts": sum(not _has_words(text) for each in captions for text in each),
        "repeated_texts": sum(map(len, fitted)) - sum(map(len, members)),
        "split_texts": len(too_long),
        "long_words": sum(len(dropped) for _, dropped in cleaned),
    }
    return FittedTexts(texts, Members.of(members), counts)


def count_prompt_texts(
    examples: BagExamples,
    prompts: PromptSet | None,
    classes: Sequence[str],
    split: str,
    log: Callable[[str], None],
) -> dict[str, int]:
    """Count the texts that equal a class name or a prompt, and warn about them, because such texts are labels.

    Args:
        split: Split of the examples, for the warning.
        log: Function that logs the warning.

    Returns:
        `texts_like_prompts`, the number of distinct such texts, and `examples_like_prompts`, the number of
        examples with such a text.
    """
    known = {_normalised(name) for name in classes}
    if prompts is not None:
        for name in prompts.classes:
            known |= {_normalised(text) for text in (name, *prompts.classes[name], *prompts.texts(name))}
    equal = np.asarray([_normalised(text) in known for text in examples.texts], dtype=np.bool_)
    used = equal[examples.texts_of.values]
    example_of: Int64[np.ndarray, "m"] = np.repeat(np.arange(len(examples.texts_of)), examples.texts_of.lengths)
    count, affected = int(np.unique(examples.texts_of.values[used]).size), int(np.unique(example_of[used]).size)
    if count:
        log(
            f"{counted(count, 'text equals', 'texts equal')} a class name or a prompt of the evaluated tiles (in "
            f"{affected:,} of {len(examples):,} {split} examples): the adaptation is trained on labels, so compare it "
            "with supervised training, not with zero-shot classification"
        )
    return {"texts_like_prompts": count, "examples_like_prompts": affected}


def _has_words(text: str) -> bool:
    return any(map(str.isalnum, text))


def _normalised(text: str) -> str:
    return " ".join(text.casefold().split()).rstrip(" .")
