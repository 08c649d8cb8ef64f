"""How a run is carried out: processes, loss, optimiser, loop, evaluation, checkpoints, log; `build` makes the parts."""
