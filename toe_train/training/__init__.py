"""Training: how a run runs.

build.py            a run of all parts; build_model.py, build_inputs.py and build_step.py make them
loop.py             the Trainer: epochs, evaluation, checkpoints
step.py             one optimiser step
device_batches.py   batches on the device, one ahead
compiling.py        torch.compile of the step, a graph a stage
draws.py            the forward pass's random numbers, by place in the run
losses.py           losses
optim.py            optimiser and learning rates
precision.py        number formats and loss scaling
evaluate.py         validation
resolution.py       training at smaller images, and what the next stage takes over
initial_weights.py  weights to start from
checkpoint.py       a run's checkpoints; sealed.py is their file format
resume.py           whether a checkpoint may continue a run
progress.py         where a run stands
stability.py        numbers that are not finite; recovery.py goes back and reports
memory.py           running out of memory
preemption.py       stopping on a signal; polling.py agrees on it
distributed.py      processes
clock.py            where an epoch's time goes
runfolder.py        the run folder; runlog.py what is told there
pictures.py         kept tokens for TensorBoard
export.py           a model for timm and the hub
"""
