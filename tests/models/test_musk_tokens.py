"""Test literal special tokens in texts for MUSK, without its package."""

import pytest

from clipit.models.musk_vlm import text_ids


class Pieces:
    """Replacement for a sentencepiece processor with words as pieces; unknown words have id 0."""

    words = ("<unk>", "mucin", "and", "tumour")

    def encode(self, text: str) -> list[int]:
        return [self.words.index(word) if word in self.words else 0 for word in text.split()]

    def get_piece_size(self) -> int:
        return len(self.words)


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("mucin and tumour", [2, 3, 4]),
        ("mucin else", [2, 3]),
        ("", []),
        ("<s> mucin </s>", [0, 2, 2]),
        ("mucin<s>and", [2, 0, 3]),
        ("<pad><unk><mask>", [1, 3, 5]),
        ("mucin <b> and", [2, 3, 3]),
    ],
)
def test_special_tokens_keep_their_ids(text: str, ids: list[int]) -> None:
    assert text_ids(Pieces(), text) == ids
