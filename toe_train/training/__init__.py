"""Training: how a run trains, whatever it learns and however it is made cheaper. No configuration comes in here.

loop.py             the Trainer: epochs, evaluation, checkpoints
step.py             one optimiser step
cadence.py          what happens when
inputs.py           what is read; device_batches.py puts it on the device, one ahead
evaluation.py       how good a model is; resolution.py trains at smaller images, and evaluates at full size
keeper.py           a trainer's state as checkpoints
draws.py            the forward pass's random numbers, by place in the run
optim.py            optimiser and learning rates
precision.py        number formats and loss scaling
compiling.py        torch.compile of the step
guard.py            numbers that are not finite, noticed; recovery.py goes back from them and reports
pictures.py         what a run shows of its images: the interface
records.py          what the log's lines tell of the training; window.py sums it up between them
"""
