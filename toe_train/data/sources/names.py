"""How names of classes and files are shown in messages, and lists of classes compared."""

import unicodedata
from collections import defaultdict
from collections.abc import Iterable

NAMES_SHOWN = 5  # of a longer list in a message
FIRST_BYTE_OF_NO_TEXT = 0xDC00  # Python holds a byte of a name that is no text as this plus the byte (PEP 383)


def shorten(names: list[str]) -> str:
    """Join names for a message, only the first few of many."""
    shown = ", ".join(map(legible, names[:NAMES_SHOWN]))
    return shown if len(names) <= NAMES_SHOWN else f"{shown}, ... ({len(names)} in all)"


def legible(name: str) -> str:
    """Return a name as it is, or quoted where its look deceives: 'bee ', 'cafe\\u0301', 'caf\\xe9'.

    Quoted are names with a space at an end, with characters that are not printed, in a Unicode form that is not the
    composed one, with letters of Latin and of another script, and with bytes that are no text.
    """
    return quoted(name) if _deceives(name) else name


def quoted(name: str) -> str:
    """Return a name in quotes, in which every character beyond ASCII is an escape; bytes that are no text as \\xNN."""
    return f"'{escaped(name)}'"


def escaped(text: str) -> str:
    """Return a text in ASCII: every other character is an escape, and so is one that is not printed."""
    parts = (f"\\x{byte:02x}" if (byte := _byte(char)) is not None else ascii(char)[1:-1] for char in text)
    return "".join(parts)


def lookalikes(names: Iterable[str]) -> list[tuple[str, ...]]:
    """Return the groups of names that a reader takes for one: they differ in spaces, unprinted characters or form."""
    groups = defaultdict(list)
    for name in names:
        groups[_appearance(name)].append(name)
    return [tuple(group) for group in groups.values() if len(group) > 1]


def compare_classes(first: list[str], second: list[str], whose: tuple[str, str] = ("train", "val")) -> str | None:
    """Return the fault of two class lists that differ, else None: labels are numbered by the sorted names."""
    if first == second:
        return None
    own = sorted(set(first) - set(second)), sorted(set(second) - set(first))
    alike = {name for group in lookalikes([*own[0], *own[1]]) for name in group}
    differences = [
        f"only in {name} ({len(names)}): {_listed(names, alike)}"
        for name, names in zip(whose, own, strict=True)
        if names
    ]
    return (
        f"{whose[0]} has {len(first)} classes and {whose[1]} {len(second)}, and they must be the same, else labels do "
        f"not agree; {'; '.join(differences) or 'their order differs'}: rename, add or remove the class folders"
    )


def _listed(names: list[str], alike: set[str]) -> str:
    """Those that look like another come first, in quotes."""
    return shorten_quoted(sorted(names, key=lambda name: name not in alike), alike)


def shorten_quoted(names: list[str], alike: set[str]) -> str:
    """Join names as `shorten` does, those of `alike` in quotes."""
    shown = ", ".join(quoted(name) if name in alike else legible(name) for name in names[:NAMES_SHOWN])
    return shown if len(names) <= NAMES_SHOWN else f"{shown}, ... ({len(names)} in all)"


def _deceives(name: str) -> bool:
    return (
        name != name.strip()
        or not name.isprintable()  # false for bytes that are no text too
        or not unicodedata.is_normalized("NFC", name)
        or _mixes_scripts(name)
    )


def _mixes_scripts(name: str) -> bool:
    scripts = {unicodedata.name(char, "?").split()[0] for char in name if char.isalpha()}
    return "LATIN" in scripts and bool(scripts & {"CYRILLIC", "GREEK"})


def _appearance(name: str) -> str:
    plain = unicodedata.normalize("NFKC", name)
    return " ".join("".join(char for char in plain if char.isprintable() or char.isspace()).split())


def _byte(char: str) -> int | None:
    """Return the byte that stands in a name as `char`, None for a character of a text."""
    byte = ord(char) - FIRST_BYTE_OF_NO_TEXT
    return byte if 0x80 <= byte <= 0xFF else None
