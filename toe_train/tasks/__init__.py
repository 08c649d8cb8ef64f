"""Tasks: what a run learns.

task.py             the interface of all of them
classification.py   classes of images: Mixup and CutMix, cross-entropy, accuracy
token_labelling.py  LV-ViT's: classes of images and of each patch token; MixToken, label maps as targets
scoring.py          accuracy over all processes
detection.py        objects and their boxes (YOLOS): functions; box_detection.py is the task
boxes.py, matching.py, set_loss.py, average_precision.py   what they are made of; box_pictures.py draws boxes

The loop and the step name none of them; `build/task.py` makes the one that a configuration asks for.
"""
