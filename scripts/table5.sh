#!/usr/bin/env bash
# Table 5: fine-tuning on CIFAR-10 from the runs of table2.sh, which come first; data.kind=cifar100 for CIFAR-100.
# scripts/table5.sh data.root=/path/to/cifar data.download=true
# With --proxy the proxy's own runs are trained on once more, on the same images: a check of the machinery, not of the paper.
set -euo pipefail
. "$(dirname "$0")/lib.sh"

if [ -n "$proxy" ]; then
    run pretrained - proxy
    run pretrained_toe - proxy_toe_r05
    runs=()
    base=$output/pretrained-s${seeds%-*}/checkpoints/last.pt toe=$output/pretrained_toe-s${seeds%-*}/checkpoints/last.pt
else
    base=runs/table2/deit_tiny-s0/checkpoints/last.pt toe=runs/table2/deit_tiny_toe_r05-s0/checkpoints/last.pt
    small=runs/table2/deit_small-s0/checkpoints/last.pt small_toe=runs/table2/deit_small_toe_r05-s0/checkpoints/last.pt
fi
fine=${proxy:+optim.lr=1e-4}
run finetune_deit_tiny finetune_deit_tiny proxy model.initial_weights="$base" ${fine:+"$fine"}
run finetune_deit_tiny_toe finetune_deit_tiny_toe proxy_toe_r05 model.initial_weights="$base" ${fine:+"$fine"}
run finetune_deit_tiny_from_toe finetune_deit_tiny_from_toe proxy model.initial_weights="$toe" ${fine:+"$fine"}
run finetune_deit_tiny_from_toe_toe finetune_deit_tiny_from_toe_toe proxy_toe_r05 model.initial_weights="$toe" ${fine:+"$fine"}
run finetune_deit_small finetune_deit_small - model.initial_weights="${small:-}"
run finetune_deit_small_toe finetune_deit_small_toe - model.initial_weights="${small:-}"
run finetune_deit_small_from_toe finetune_deit_small_from_toe - model.initial_weights="${small_toe:-}"
run finetune_deit_small_from_toe_toe finetune_deit_small_from_toe_toe - model.initial_weights="${small_toe:-}"
report "Table 5: fine-tuning"
