"""Where a run lives: its folder, checkpoints, log, processes, signals and clock.

In reading order:
    parcel.py: a value taken apart, so that its tensors are sent one by one.
    joining.py: how a process finds its device and its fellows.
    processes.py: the processes of a run, one code path from one up.
    default_group.py: what functions that stand alone ask the other processes.
    sealed.py: files that are whole or absent, and that know when they were damaged.
    folder.py: the run folder, and what a run writes of its own origin.
    checkpoints.py: the checkpoints of a run, found whole.
    leftovers.py: what lies beside a run and it no longer needs.
    clock.py: where an epoch's time goes.
    progress.py: where a run stands.
    jobs.py: what started this command, and whether it did so again by itself
    log.py: what a run tells: metrics.jsonl.
    console.py: the same for a person at a terminal.
    curves.py: the points that an epoch's and a step's numbers are of curves.
    tensorboard.py: the same as curves, and pictures.
    tracker.py: the same for a library of others, from a thread of its own.
    wandb_tracker.py: Weights & Biases.
    mlflow_tracker.py: MLflow.
    polling.py: when the processes tell each other what only one of them may know.
    preemption.py: being asked to stop by a signal.
    memory.py: running out of device memory, answered by smaller micro-batches.

Nothing here knows of a configuration, a model or data.
"""
