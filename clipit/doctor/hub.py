"""The Hugging Face hub: mode, token, what is cached here, and what may be fetched."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from clipit.doctor.findings import Finding

Access = Literal["granted", "gated", "absent", "offline", "unreachable"]
_PATIENCE_S = 5.0
_WEIGHTS = (".safetensors", ".bin", ".pth", ".pt")


def hub_findings(hub: "Hub | None" = None) -> list[Finding]:
    """Mode and token; the token itself is never shown.

    Args:
        hub: That was asked about models before this; None: nobody was.
    """
    from huggingface_hub import constants, get_token

    if constants.HF_HUB_OFFLINE:
        mode = Finding(
            "PASS", "hub", "HF_HUB_OFFLINE is set: nothing is fetched, models must be cached or given as folders"
        )
    elif hub is not None and hub.silent:
        mode = Finding(
            "WARN", "hub", f"{constants.ENDPOINT} does not answer; cache: {constants.HF_HUB_CACHE}",
            "without a network give models as folders, and set HF_HUB_OFFLINE=1: no run waits for the hub then",
        )  # fmt: skip
    else:
        how = "answers" if hub is not None and hub.asked else "not asked, nothing was needed of it"
        mode = Finding("PASS", "hub", f"{constants.ENDPOINT}: {how}; cache: {constants.HF_HUB_CACHE}")
    if get_token():
        return [mode, Finding("PASS", "token", "present")]
    return [mode, Finding("WARN", "token", "none: gated models cannot be fetched", "hf auth login (or set HF_TOKEN)")]


def in_cache(hub_id: str) -> bool:
    """Whether a snapshot with weights of this repository lies in the local cache."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    name, _, _ = hub_id.partition("@")
    snapshots = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=name, repo_type="model") / "snapshots"
    return any(path.suffix in _WEIGHTS and path.exists() for path in snapshots.glob("*/**/*"))


@dataclass
class Hub:
    """Asks the hub about repositories: each once, and none any more after one question got no answer."""

    ask: Callable[[str], Access] | None = None
    """In place of the hub, for tests."""
    patience: float = _PATIENCE_S
    """Seconds."""
    _known: dict[str, Access] = field(default_factory=dict)
    _silent: bool = False

    @property
    def silent(self) -> bool:
        """Whether a question got no answer."""
        return self._silent

    @property
    def asked(self) -> bool:
        """Whether there was any question."""
        return bool(self._known)

    def access(self, hub_id: str) -> Access:
        """Whether this user may fetch the repository; an answer comes in a few seconds in any case."""
        name, _, _ = hub_id.partition("@")
        if self._silent:
            return "unreachable"
        if name not in self._known:
            box: list[Access] = []
            # A daemon: what hangs in the network does not keep the program from ending.
            thread = threading.Thread(target=lambda: box.append((self.ask or _ask)(name)), daemon=True)
            thread.start()
            thread.join(self.patience)
            self._known[name] = box[0] if box else "unreachable"
            self._silent = self._known[name] == "unreachable"
        return self._known[name]


def _ask(hub_id: str) -> Access:
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    if constants.HF_HUB_OFFLINE:
        return "offline"
    try:
        HfApi().auth_check(hub_id)
    except GatedRepoError:
        return "gated"
    except RepositoryNotFoundError:
        return "absent"
    except Exception:  # whatever the network stack raises: there was no answer
        return "unreachable"
    return "granted"
