"""Runs: where a run lives. Nothing in here knows a model or a configuration.

folder.py       the run folder
checkpoints.py  a run's checkpoints; sealed.py is their file format
log.py          what a run tells
progress.py     where a run stands
processes.py    processes; handing.py gives one's objects to all
preemption.py   stopping on a signal; polling.py agrees on it
memory.py       running out of memory
clock.py        where an epoch's time goes
"""
