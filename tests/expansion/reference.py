"""Token Expansion step by step, slow and literal: what the fast implementation must agree with.

It keeps two sets of tokens, moves tokens from one to the other, and normalises and scores both anew in every sub-step.
One image at a time, in the dtype of its input. Written from the description of the algorithm, without anything from
toe_train; use it to check results and as the slow side of a benchmark.
"""

import torch


def expand_image(patches, rates, initial_rate, repeats, stage, metric="cosine"):
    """Tokens (K, D) and kept positions (K,) of one image's patch tokens (N, D)."""
    num_tokens = patches.shape[0]
    selected = seed_positions(num_tokens, initial_rate)
    unselected = [i for i in range(num_tokens) if i not in selected]
    for count in sub_steps(num_tokens, rates, initial_rate, repeats, stage):
        nearness, _ = nearest_selected(patches, selected, unselected, metric)
        ranking = sorted(range(len(unselected)), key=lambda i: nearness[i])
        picked = [unselected[i] for i in ranking[:count]]
        selected = selected + picked
        unselected = [i for i in unselected if i not in picked]
    groups = [[position] for position in selected]
    if unselected:
        _, targets = nearest_selected(patches, selected, unselected, metric)
        for position, target in zip(unselected, targets, strict=True):
            groups[target].append(position)
    merged = torch.stack([patches[group].mean(dim=0) for group in groups])
    return merged, torch.tensor(selected)


def expand_batch(x, num_prefix, rates, initial_rate, repeats, stage, metric="cosine"):
    """Tokens (B, P+K, D) and kept positions (B, K) of a batch (B, P+N, D)."""
    outputs, kept = [], []
    for image in x:
        tokens, positions = expand_image(image[num_prefix:], rates, initial_rate, repeats, stage, metric)
        outputs.append(torch.cat([image[:num_prefix], tokens]))
        kept.append(positions)
    return torch.stack(outputs), torch.stack(kept)


def seed_positions(num_tokens, initial_rate):
    count, step, seeds = int(num_tokens * initial_rate), int(1 // initial_rate), []
    for position in range(num_tokens):
        if position % step == 0 and len(seeds) < count:
            seeds.append(position)
    return seeds


def sub_steps(num_tokens, rates, initial_rate, repeats, stage):
    counts, reached = [], initial_rate
    differences = [b - a for a, b in zip([initial_rate, *rates], rates, strict=False)]
    for s in range(1, stage + 1):
        if s == len(rates):
            total = 0.0
            for difference in differences[:-1]:
                total += difference
            reached = initial_rate + total
            budget = int(num_tokens * rates[-1]) - int(num_tokens * reached)
        else:
            budget = int(num_tokens * differences[s - 1])
        for k in range(1, repeats + 1):
            if k < repeats:
                counts.append(budget // repeats)
            else:
                counts.append(budget - (repeats - 1) * (budget // repeats))
    return counts


def nearest_selected(patches, selected, unselected, metric):
    """For each unselected token: nearness of its nearest selected one, and which one (first of equals)."""
    a = patches[unselected].detach()
    b = patches[selected].detach()
    a = a / a.norm(dim=-1, keepdim=True)
    b = b / b.norm(dim=-1, keepdim=True)
    difference = a[:, None, :] - b[None, :, :]
    scores = {
        "cosine": a @ b.T,
        "euclidean": -difference.square().sum(-1).sqrt(),
        "manhattan": -difference.abs().sum(-1),
        # The released code: distances, treated as if they were similarities.
        "euclidean_released": difference.square().sum(-1).sqrt(),
        "manhattan_released": difference.abs().sum(-1),
    }[metric]
    best = scores.max(dim=1)
    return best.values.tolist(), best.indices.tolist()


def expand_literally(x, num_prefix, seeds, counts):
    """Tokens (B, P+K, D) and kept positions (B, K) of a batch, by cosine: the same steps on whole batches.

    This is the way in which the released code spends its time, and the slow side of the benchmark: index tensors as
    wide as the tokens, both sets taken out, normalised, multiplied and sorted in full in every sub-step.
    """
    patches = x[:, num_prefix:]
    batch, num_tokens, width = patches.shape

    def taken(positions):
        return patches.gather(1, positions.unsqueeze(2).repeat(1, 1, width))

    def similarity(unselected, selected):
        with torch.no_grad():
            a, b = taken(unselected), taken(selected)
            return (a / a.norm(dim=-1, keepdim=True)) @ (b / b.norm(dim=-1, keepdim=True)).transpose(1, 2)

    selected = torch.tensor(seeds, device=x.device).repeat(batch, 1)
    others = [position for position in range(num_tokens) if position not in set(seeds)]
    unselected = torch.tensor(others, device=x.device).repeat(batch, 1)
    for count in counts:
        ranking = similarity(unselected, selected).max(dim=2).values.argsort(dim=1)
        unselected = unselected.gather(1, ranking)
        selected, unselected = torch.cat([selected, unselected[:, :count]], dim=1), unselected[:, count:]
    tokens = taken(selected)
    if unselected.shape[1]:
        target = similarity(unselected, selected).max(dim=2).indices
        index = target.unsqueeze(2).repeat(1, 1, width)
        tokens = tokens.scatter_reduce(1, index, taken(unselected), reduce="mean", include_self=True)
    return torch.cat([x[:, :num_prefix], tokens], dim=1), selected
