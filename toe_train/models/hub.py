"""Files of the Hugging Face hub: from its cache, or fetched; a hub out of reach is told at once.

The hub's own client would try again and again for a minute.
"""

from __future__ import annotations

import threading
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path

import huggingface_hub
from huggingface_hub.constants import ENDPOINT, HF_HUB_OFFLINE
from huggingface_hub.errors import EntryNotFoundError

from toe_train.errors import UserError

SECONDS = 5.0  # to wait for the server's first answer


def cached_file(repository: str, files: Sequence[str]) -> str | None:
    """The first of some files of a repository that is in the cache; None where none is."""
    found = (huggingface_hub.try_to_load_from_cache(repository, file) for file in files)
    return next((path for path in found if isinstance(path, str)), None)


def require_hub(what: str, remedy: str) -> None:
    """Refuses what is to be fetched where the hub is out of reach.

    Args:
        what: is to be fetched, the beginning of a sentence.
        remedy: its end.

    Raises:
        UserError: naming both, and what was tried.
    """
    if reason := silence():
        raise UserError(f"{what} not on this machine, and {ENDPOINT} does not answer ({reason}); {remedy}")


def hub_file(repository: str, file: str, option: str) -> Path | None:
    """A small file of a repository, from the cache or fetched; None where the repository is known to have none.

    Args:
        repository: such as facebook/dinov2-small.
        file: its name.
        option: what asks for it, for messages.

    Raises:
        UserError: the hub is out of reach, or has no such repository.
    """
    cached = huggingface_hub.try_to_load_from_cache(repository, file)
    if cached is not None:
        return Path(cached) if isinstance(cached, str) else None
    remedy = "give a folder that is there, or check the connection"
    require_hub(f"{option}: there is no such folder; taken for a name on the hub, its files are", remedy)
    try:
        return Path(huggingface_hub.hf_hub_download(repository, file))
    except EntryNotFoundError:
        return None
    except Exception as error:  # whatever a download may raise, and names that are none
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{option}: is no folder here, and of the hub {file} is not to be had ({reason})") from None


def silence() -> str:
    """Why the hub does not answer; empty where it does.

    It is asked in a thread, as the look-up of its name may take minutes and cannot be given a time.
    """
    if HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    heard: list[str] = []

    def ask() -> None:
        try:
            urllib.request.urlopen(urllib.request.Request(ENDPOINT, method="HEAD"), timeout=SECONDS).close()
            heard.append("")
        except urllib.error.HTTPError:  # it answers
            heard.append("")
        except (OSError, ValueError) as error:
            heard.append(str(getattr(error, "reason", error)) or type(error).__name__)

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(2 * SECONDS)
    return heard[0] if heard else f"nothing within {2 * SECONDS:g} seconds"
