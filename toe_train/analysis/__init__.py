"""Analysis: what a run will cost, what it costs, and what came of it; never imported by training.

flops.py            FLOPs of each stage, exact and as the paper counts
tables.py           the plan of a run, and its summary
paper.py            what the paper printed
runs.py             run folders, read and put together by seed
report.py           runs as the paper's tables, with curves
box_scores.py       ... and what else detection runs score
view.py             pictures of what Token Expansion keeps and merges, and of where its tokens lie
benchmark.py        bench: the base of its results
step_speed.py       bench: the training step
steps.py            the steps that benchmarks time
expansion_speed.py  bench: dropping and merging alone
loader_speed.py     bench: the loader, against timm's
end_to_end.py       bench: real steps with loading
saving.py           bench: a checkpoint
timing.py           medians of what takes turns, the device's rate and memory
endless.py          a sampler that goes from epoch to epoch
teacher.py          classifiers that make token labels
label_maker.py      the label files they make
"""
