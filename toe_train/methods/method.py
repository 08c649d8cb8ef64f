"""How training is made cheaper: the interface of all methods, whose hooks do nothing. That is plain training.

A method is a file here with a class like this one; its section in `recipes/methods.py`, a `MethodSection`, which says
beforehand what stage and segment each epoch has (`EpochPlan.stage`, `.segment`); and a line in `build/method.py`, which
makes the class from the section. A run has one method. What changes images and batches is no method but a curriculum.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn


class Method:
    """Plain training, and the base of what changes it. The training calls the hooks in the order in which they stand.

    What a method needs beforehand, its stages and the segments of a run that have trainers of their own, is a pure
    function of its section of the configuration: see `recipes.MethodSection`.

    Attributes:
        stage: what it does now; 0 is plain training.
        note: what a run says of it at its beginning, where its figures mean something else than usual.
        own_module: name of the submodule of the model whose FLOPs are the method's own and not the network's.
    """

    stage: int = 0
    own_module: str | None = None
    note: str | None = None

    def prepare(self, model: nn.Module) -> None:
        """Changes a newly built model, on the CPU or on meta.

        Raises:
            ValueError: the method does not go with the model; the message names the reason and the remedy.
        """

    def carry(self, state: dict[str, Any], former: int, segment: int) -> dict[str, Any]:
        """Makes of a checkpoint of another segment one that this trainer's goes on from.

        Args:
            state: see `TrainStep.state`: model, ema, optimizer, scaler, method. Where the optimizer is None in what
                comes back, it begins anew.
            former: the checkpoint's segment, see `MethodSection.segment`; where the configuration is another now, it
                may be any.
            segment: the trainer's.

        Raises:
            ValueError: it cannot be.
        """
        return state

    def join(self, average: Callable[[Tensor], Tensor], steps: int) -> None:
        """Learns of the run, when its parts are put together.

        Args:
            average: gives the mean of a tensor over all processes, which must all call it.
            steps: of the whole run.
        """

    def begin_epoch(self, epoch: int) -> None:
        """Enters the stage of an epoch, counted from 0."""

    def tokens_kept(self, num_tokens: int, stage: int) -> int:
        """Patch tokens of `num_tokens` that training at a stage keeps."""
        return num_tokens

    def idle(self, num_tokens: int, stage: int) -> tuple[int, int]:
        """MACs of a forward pass of one image at a stage that nothing depends on, whether or not they are computed.

        Args:
            num_tokens: of a block, prefix tokens included.
            stage: of the method.

        Returns:
            those of linear layers, and of attention's two products.
        """
        return 0, 0

    def measured(self, on: bool) -> None:
        """Lets the model in eval mode do what it does in training at the stage, or no longer: its cost is measured."""

    def forms(self) -> Iterator[None]:
        """Goes through the kinds of forward pass in training that the stage has, for who must see all of them."""
        yield

    def draw(self, uniform: Callable[[str, int], Tensor]) -> None:
        """Takes its random numbers of a forward pass in training.

        Args:
            uniform: gives for a purpose's name and a number of columns n as many uniform numbers for each image of the
                micro-batch, (b, n) on the device; a function of the images' places in the run.
        """

    def counted(self) -> Tensor | None:
        """Which patch tokens of the last forward pass a dense loss is over, (b, N) bool; None for all."""
        return None

    def after_step(self, good: Tensor) -> None:
        """Between the optimiser's step and the averaged model's; gradients are still there.

        Args:
            good: whether the step was taken, a bool on the device, which must not be waited for.
        """

    def after_average(self, good: Tensor) -> None:
        """After the averaged model's step, before the gradients are dropped."""

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds of it: tensors and plain values."""
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        """Takes up what `state` gave."""
