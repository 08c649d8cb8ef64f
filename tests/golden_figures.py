"""How tests read the figures of tests/golden, and the rule by which those of whole models got their weights."""

import json
from pathlib import Path

import numpy as np
import torch

GOLDEN = Path(__file__).with_name("golden")


def figures(name):
    """The arrays of a file as tensors, by name, without its `meta`."""
    with np.load(GOLDEN / name) as file:
        return {key: torch.from_numpy(np.asarray(file[key])) for key in file.files if key != "meta"}


def meta(name):
    """What a file says of its cases."""
    with np.load(GOLDEN / name) as file:
        return json.loads(str(file["meta"]))


def cases(name):
    """The cases of a file that lists them, each with its number."""
    return list(enumerate(meta(name)))


def near(actual, expected, atol):
    torch.testing.assert_close(actual, expected, atol=atol, rtol=0)


def by_rule(state, seed=0):
    """The weights of the golden folder's rule, under the keys and in the shapes of `state`."""
    found = {}
    for index, key in enumerate(sorted(state), seed):
        value = state[key]
        if not value.is_floating_point():
            found[key] = value
            continue
        drawn = np.random.RandomState(index).standard_normal(value.numel()).astype(np.float32)
        drawn = torch.from_numpy(drawn).view(value.shape)
        if key.endswith("running_var"):
            found[key] = 1 + 0.1 * drawn.abs()
        elif value.ndim > 1:
            found[key] = 0.05 * drawn
        else:
            found[key] = 1 + 0.1 * drawn if key.endswith("weight") else 0.1 * drawn
    return found
