"""Images of kinds that a run does not read, known by the first bytes of a file."""

import os
from pathlib import Path

from toe_train.data.sources.span import Span
from toe_train.errors import UserError

TO_JPEG = "`magick mogrify -format jpg FILES` of ImageMagick does it"
_BRANDS = {b"heic": "HEIC", b"heix": "HEIC", b"hevc": "HEIC", b"mif1": "HEIC", b"msf1": "HEIC", b"avif": "AVIF"}


def kind_inside(path: str | Path | Span) -> str | None:
    """Return "HEIC" or "AVIF" where a file is one by its first bytes, whatever its name, else None."""
    if isinstance(path, Span):
        try:
            return _kind(path._replace(length=min(12, path.length)).read())
        except (OSError, UserError):
            return None
    if not os.path.isfile(path):  # a pipe would be waited for without end
        return None
    try:
        with open(path, "rb") as file:
            return _kind(file.read(12))
    except OSError:
        return None


def _kind(head: bytes) -> str | None:
    return _BRANDS.get(head[8:12]) if head[4:8] == b"ftyp" else None
