"""Reject Python code and loader options requested by a model's own files, unless the user trusts them."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from clipit.errors import ModelError, shortlist

_TOKENIZER_OPTIONS = {
    "clean", "strip_sep_token", "language", "additional_special_tokens", "use_fast", "add_prefix_space",
    "model_max_length", "padding_side", "truncation_side",
}  # fmt: skip
"""Tokeniser options that only affect tokenisation, padding and truncation, and cannot cause code to run."""


@contextmanager
def guard_remote_code(trusted: bool, fix: str) -> Iterator[None]:
    """Prevent transformers from running code or kernels from a model's files inside the `with` block, unless trusted.

    The functions that import such code are replaced, so that no option in the model's files can trigger it, and
    transformers does not ask for permission on the terminal.

    Args:
        trusted: Whether the user trusts the code.
        fix: Instruction for the error message: what to do after reading the code.

    Raises:
        ModelError: transformers is about to run such code.
    """
    if trusted:
        yield
        return
    from transformers import dynamic_module_utils
    from transformers.integrations import hub_kernels

    def reject(*arguments: object, **_: object) -> Any:
        raise ModelError(
            "the model requires Python code from its own files, which is not trusted",
            where=" ".join(str(argument) for argument in arguments),
            fix=f"read that code, then {fix}",
        )

    with (
        patch.object(dynamic_module_utils, "get_class_in_module", reject),
        patch.object(dynamic_module_utils, "TIME_OUT_REMOTE_CODE", 0),
        patch.object(hub_kernels, "get_kernel", reject),
    ):
        yield


def check_tokenizer_options(description: Mapping[str, Any], where: object, trusted: bool, fix: str) -> None:
    """Check the tokeniser options in an open_clip configuration, which open_clip passes on to transformers.

    Args:
        description: Content of `open_clip_config.json`.
        trusted: Whether the user trusts the model's files.
        fix: Instruction for the error message: what to do after reading the code.

    Raises:
        ModelError: The files are not trusted, and an option may make transformers run code or read other files.
    """
    options = text_config(description, where).get("tokenizer_kwargs") or {}
    if not isinstance(options, Mapping):
        raise ModelError("tokenizer_kwargs is not a mapping", where=where, fix="copy the model's files again")
    unknown = sorted(set(options) - _TOKENIZER_OPTIONS)
    if unknown and not trusted:
        raise ModelError(
            f"the model's configuration passes tokeniser options that may run code: {shortlist(unknown)}",
            where=where,
            fix=f"read the Python files of the model, then {fix}; or remove these options",
        )


def text_config(description: Mapping[str, Any], where: object) -> Mapping[str, Any]:
    """Return the section of the text tower in an open_clip configuration; empty if there is none."""
    part: Any = description
    for key in ("model_cfg", "text_cfg"):
        part = part.get(key) or {}
        if not isinstance(part, Mapping):
            raise ModelError(f"{key} is not a mapping", where=where, fix="copy the model's files again")
    return dict(part)
