"""Analysis: what a run will cost, what it costs, and what came of it; never imported by training.

flops.py            FLOPs of each stage, exact and as the paper counts
tables.py           the plan of a run, and its summary
equal_compute.py    simpler runs that cost as many FLOPs
nearest_cost.py     what of images, tokens and epochs costs nearest to a number
paper.py            what the paper printed
runs.py             run folders, read and put together by seed
conditions.py       whether times compare
comparison.py       differences of rows, with their intervals
report.py           runs as the paper's tables, and their differences
box_scores.py       ... and what else detection runs score
origins.py          how the rows of a report were made
figures.py          figures of a report
page.py             a report as a page of HTML
viewer.py           a trained model with Token Expansion, and the images that it is looked at with
view.py             pictures of what it keeps and merges of them; features.py: where its tokens lie
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
