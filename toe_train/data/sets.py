"""What loaders read: TrainSet and EvalSet, a source's images with the transform.

A training image is addressed by its place in the run and not by its index.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from PIL import Image
from torch.utils.data import Dataset

from toe_train.data.augmentation.device_augment import View
from toe_train.data.augmentation.joint_transform import JointTransform
from toe_train.data.augmentation.pixels import Pixels
from toe_train.data.augmentation.transforms import Transform, TwoSizes
from toe_train.data.labels.files import TokenLabelFiles, TokenMap, TokenTarget
from toe_train.data.order.positions import SampleKey
from toe_train.data.order.randomness import derive_seed, preserved, reseed
from toe_train.data.sources.skipping import SkippedImages
from toe_train.data.sources.source import ImageSource
from toe_train.errors import NoMemory, UserError, host_memory

NOT_COUNTED = -1  # label of an image that evaluation leaves out
MAX_SUBSTITUTES = 20


class Read(NamedTuple):
    """An image as it is in the data set, at `index`."""

    index: int  # type: ignore[assignment]  # hides tuple.index
    image: Image.Image
    label: Any
    cells: TokenMap | None


Shown = Pixels | View  # an image, made or to be made


class TrainSet(Dataset[tuple[Shown, int | TokenTarget]]):
    """Augmented training images with their classes, addressed by place in the run and not by index.

    `transform` ends in `Pixels`, see `ending_in_pixels`, or is a `DrawView`. With `labels`, of an image folder, a
    `TokenTarget` takes the class's place and `transform` is a `JointTransform`.

    What a transform draws depends on (seed, epoch, global position) only; the global generators of the process are left
    as they were.

    An unreadable image or label file, or an image that the transform cannot take, raises UserError or NoMemory; with
    `skipped` the image is noted there and another one, label included, takes its place: a choice of (seed, epoch,
    global position) too. MAX_SUBSTITUTES of them in a row raise UserError.
    """

    def __init__(
        self,
        dataset: ImageSource,
        transform: Callable[[Image.Image], Shown] | JointTransform,
        seed: int,
        skipped: SkippedImages | None = None,
        labels: TokenLabelFiles | None = None,
    ) -> None:
        self.dataset = dataset
        self._transform: Callable[..., Any] = transform
        self._seed = seed
        self._skipped = skipped
        self._labels = labels

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: SampleKey) -> tuple[Shown, int | TokenTarget]:
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: list[SampleKey]) -> list[tuple[Shown, int | TokenTarget]]:
        """A batch of them, for which an image that stands in it several times is read and decoded once."""
        samples: dict[SampleKey, tuple[Shown, int | TokenTarget]] = {}
        held = None
        with preserved():
            for key in sorted(keys):  # by index
                samples[key], held = self._sample(key, held)
        return [samples[key] for key in keys]

    def _sample(self, key: SampleKey, held: Read | None) -> tuple[tuple[Shown, int | TokenTarget], Read]:
        """What a place in the run shows, and the image that it was made of; `held` was read last."""
        index = key.index
        for attempt in range(MAX_SUBSTITUTES):
            try:
                read = held if held is not None and held.index == index else self._read(index)
                return self._augmented(key, read), read
            except (UserError, NoMemory) as fault:
                if self._skipped is None:
                    raise
                self._skipped.note(self.dataset.describe(index), str(fault))
            index = derive_seed(self._seed, "substitute", key.epoch, key.position, attempt) % len(self.dataset)
        raise UserError(
            f"{MAX_SUBSTITUTES} images in a row could not be read; `toe-tools doctor --config FILE` lists all"
        )

    def _augmented(self, key: SampleKey, read: Read) -> tuple[Shown, int | TokenTarget]:
        shown, target = made(self.dataset.describe(read.index), read.image, self._transformed, key, read)
        return shown, target

    def _transformed(self, image: Image.Image, key: SampleKey, read: Read) -> tuple[Shown, Any]:
        reseed(derive_seed(self._seed, "sample", key.epoch, key.position))
        if read.cells is None:
            return self._transform(image), read.label
        shown, target = self._transform(image, read.cells, read.label)
        return shown, target

    def _read(self, index: int) -> Read:
        image, label = self.dataset[index]
        if self._labels is None:
            return Read(index, image, label, None)
        return Read(index, image, label, self._labels.read(self.dataset.describe(index), label))


class EvalSet(Dataset[tuple[Any, int]]):
    """Evaluation images, (C, S, S) float32 or a pair of them, by index; the transform draws nothing.

    An unreadable image, or one that the transform cannot take, raises UserError or NoMemory; with `skipped` it is noted
    there and comes as a black one with the label NOT_COUNTED.
    """

    def __init__(
        self, dataset: ImageSource, transform: Transform | TwoSizes, skipped: SkippedImages | None = None
    ) -> None:
        self.dataset = dataset
        self._transform = transform
        self._skipped = skipped

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        try:
            image, label = self.dataset[index]
            return made(self.dataset.describe(index), image, self._transform), label
        except (UserError, NoMemory) as fault:
            if self._skipped is None:
                raise
            self._skipped.note(self.dataset.describe(index), str(fault))
        return self._transform(Image.new("RGB", (64, 64))), NOT_COUNTED


def made(name: str, image: Image.Image, transform: Callable[..., Any], *labels: Any) -> Any:
    """What `transform` makes of a decoded image, and of its labels.

    Raises UserError or NoMemory, with the image's name, where it cannot.
    """
    try:
        with host_memory():
            return transform(image, *labels)
    except MemoryError:
        raise NoMemory(f"the memory does not hold what is made of {name} ({image.width} x {image.height})") from None
    except (ValueError, ArithmeticError, OSError) as fault:
        raise UserError(
            f"{name} ({image.width} x {image.height}) cannot be brought to the size that the run takes ({fault}): "
            "replace or remove it"
        ) from fault
