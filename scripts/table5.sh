#!/usr/bin/env bash
# Table 5: fine-tuning on CIFAR-10 and CIFAR-100 from the runs of Table 2 of the same seed, which come first.
# CIFAR=/path/to/cifar scripts/table5.sh data.root=/path/to/imagenet
# CIFAR holds torchvision's files (default: data/cifar in the repository); data.download=true fetches them there.
# With --proxy the proxy's own runs are trained on once more, on the same images: a check of the machinery, not of the paper.
set -euo pipefail
. "$(dirname "$0")/lib.sh"

run deit_tiny proxy
run deit_tiny_toe_r05 proxy_toe_r05
run deit_small -
run deit_small_toe_r05 -
finish
runs=() # the table is of what follows

# tune NAME CONFIG SOURCE [KEY=VALUE ...]: the row NAME, which starts from the weights of the row SOURCE.
tune() { train "$1" "$2" "model.initial_weights=$output/$3-s{seed}/checkpoints/last.pt" "${@:4}"; }

if [ -n "$proxy" ]; then
    tune proxy_finetune proxy proxy optim.lr=1e-4
    tune proxy_finetune_toe proxy_toe_r05 proxy optim.lr=1e-4
    tune proxy_finetune_from_toe proxy proxy_toe_r05 optim.lr=1e-4
    tune proxy_finetune_from_toe_toe proxy_toe_r05 proxy_toe_r05 optim.lr=1e-4
else
    extra+=("data.root=$(absolute "${CIFAR:-$PWD/data/cifar}")") # after ImageNet's, which it replaces
    for kind in cifar10 cifar100; do
        for model in deit_tiny deit_small; do
            name=finetune_$model end=${kind#cifar10}
            end=${end:+_$kind}
            tune "$name$end" "$name" "$model" data.kind=$kind
            tune "${name}_toe$end" "${name}_toe" "$model" data.kind=$kind
            tune "${name}_from_toe$end" "${name}_from_toe" "${model}_toe_r05" data.kind=$kind
            tune "${name}_from_toe_toe$end" "${name}_from_toe_toe" "${model}_toe_r05" data.kind=$kind
        done
    done
fi
report "Table 5: fine-tuning"
