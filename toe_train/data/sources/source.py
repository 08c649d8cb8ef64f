"""What every collection of labelled images is to the rest of the program."""

from typing import Any, Protocol

from PIL import Image


class ImageSource(Protocol):
    """A labelled collection of images; `classes[label]` is the name of a label.

    What comes with an image is its label, or what else there is to learn of it.
    """

    classes: list[str]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[Image.Image, Any]: ...

    def describe(self, index: int) -> str:
        """Name an image so that a person finds it."""
        ...

    def require_here(self) -> None:
        """Raise UserError where the images cannot be read on this machine, though another one listed them."""
        ...

    def counts(self) -> list[int]:
        """Return the number of images of each class."""
        ...

    def notes(self) -> list[str]:
        """Return a line on each thing that a person should know: what was passed over when they were listed."""
        ...

    def digest(self) -> str:
        """Sum up which images stand in which order under which labels; the same wherever the data set lies."""
        ...
