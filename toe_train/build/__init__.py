"""Build: the one place where a configuration meets constructors, and a run's life from its folder to its last epoch.

preflight.py        what can be wrong before anything is made
lifecycle.py        opens the folder, fits to memory, trains stage after stage
trainer.py          a Trainer of all parts
model.py            the model; initial_weights.py is what it starts from
method.py           how training is made cheaper
task.py             what is learned
inputs.py           data sets, transforms, the split of the batch, loaders
step.py             the training step, and the micro-batch that fits
resume.py           whether a checkpoint may continue a run, and what differs
tracking.py         trackers, over all trainers of a run
pictures.py         what TensorBoard shows of a run
evaluation.py       scores of a checkpoint
prediction.py       what a trained model says of images; box_prediction.py: what a detector finds
export.py           a model for timm and the hub; card.py is its model card, onnx_file.py for onnxruntime
"""
