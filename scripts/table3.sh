#!/usr/bin/env bash
# Table 3: LV-ViT-T/S/M with token labels, plain and with ToE.
# scripts/table3.sh data.root=/path/to/imagenet token_labels.root=/path/to/labels; with --proxy the labels are made first.
set -euo pipefail
. "$(dirname "$0")/lib.sh"

if [ -n "$proxy" ]; then
    kwargs="{patch_size: 4, embed_dim: 64, depth: 2, num_heads: 2, global_pool: avg, class_token: false}"
    student="{patch_size: 4, embed_dim: 60, depth: 3, num_heads: 2, skip_lam: 1.0, stem_width: 16}"
    [ "$scale" = smoke ] || kwargs="{patch_size: 4, embed_dim: 128, depth: 4, num_heads: 4, global_pool: avg, class_token: false}"
    [ "$scale" = smoke ] || student="{patch_size: 4, embed_dim: 120, depth: 4, num_heads: 4, skip_lam: 1.0, stem_width: 32}"
    run teacher - cifar10_teacher "model.kwargs=$kwargs" evaluate.every_epochs=1
    root=$(data_root teacher)
    toe-tools labels --images "$root/train" --output "$output/labels" --workers 1 \
        --teacher-weights "$output/teacher-s${seeds%-*}/checkpoints/last.pt"
    runs=()
    labels=("token_labels.root=$output/labels" "model.kwargs=$student")
    run lvvit - cifar10_lvvit_labels "${labels[@]}"
    run lvvit_toe_r04 - proxy_lvvit_toe_r04 "${labels[@]}"
fi
run lvvit_t lvvit_t -
run lvvit_t_toe_r04 lvvit_t_toe_r04 -
run lvvit_s lvvit_s -
run lvvit_s_toe_r04 lvvit_s_toe_r04 -
run lvvit_m lvvit_m -
run lvvit_m_toe_r04 lvvit_m_toe_r04 -
report "Table 3: LV-ViT"
