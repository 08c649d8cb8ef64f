#!/usr/bin/env bash
# Every speed figure of this project, for the machine that it runs on: a JSON file for each benchmark and all tables in
# one FOLDER. What is there already is passed over.
#
#   scripts/speed.sh FOLDER data.root=/path/to/imagenet [--batch N] [--rounds N] [KEY=VALUE ...]
#
# --batch: images of a step (default: 256; on a CPU take 32). --rounds: timed repeats (default: 30). KEY=VALUE: for the
# benchmarks that read images, e.g. data.workers=16. They time DeiT-T, S and B in every stage beside the full-token step,
# as shipped and as the paper ran them (eager, fp16); the compared methods beside ToE; batch, image size and keep rate;
# dropping and merging alone; the loader beside timm's; step and loader together; saving.
set -uo pipefail
here=$PWD
cd "$(dirname "$(realpath "$0")")/.." || exit 2
command -v toe-tools >/dev/null || PATH="$PWD/.venv/bin:$PATH"

fail() {
    echo "error: $1" >&2
    exit 2
}

# absolute PATH: a relative one is the caller's.
absolute() {
    case $1 in /*) echo "$1" ;; *) echo "$here/$1" ;; esac
}

folder='' batch=256 rounds=30 images=()
while [ $# -gt 0 ]; do
    case $1 in
    --batch | --rounds)
        [[ ${2:-} =~ ^[1-9][0-9]{0,5}$ ]] || fail "$1 ${2:-}: give a whole number from 1 up"
        if [ "$1" = --batch ]; then batch=$2; else rounds=$2; fi
        shift
        ;;
    -*) fail "there is no option $1; there are --batch and --rounds" ;;
    data.root=?*) images+=("data.root=$(absolute "${1#*=}")") ;;
    *=*) images+=("$1") ;;
    *)
        [ -z "$folder" ] || fail "$1: one folder is enough, and there is $folder; KEY=VALUE for what the loader reads"
        folder=$(absolute "$1")
        ;;
    esac
    shift
done
[ -n "$folder" ] || fail "name the folder of the figures: scripts/speed.sh results/MACHINE data.root=/path/to/imagenet"
case " ${images[*]-} " in *" data.root="*) ;; *) fail "data.root=/path/to/imagenet: the loader is timed on real images" ;; esac
[ $((batch % 8)) -eq 0 ] || fail "--batch $batch must be a multiple of 8, since a quarter of it is timed too; use $((batch / 8 * 8 + 8))"
mkdir -p "$folder" || fail "$folder cannot be made"
failed=()

# bench NAME CONFIG [OPTION ...] [KEY=VALUE ...]: one benchmark.
bench() {
    local name=$1 config=$2 table
    shift 2
    [ ! -s "$folder/$name.json" ] || return 0
    echo "== $name"
    if table=$(toe-tools bench --config "configs/$config.yaml" --rounds "$rounds" --json "$folder/$name.json" "$@"); then
        printf '%s\n\n' "== $name" "$table" | tee -a "$folder/tables.txt" | tail -n +3
    else
        failed+=("$name")
    fi
}

for model in tiny small base; do
    bench "step_deit_$model" "deit_${model}_toe_r05" --batch "$batch"
    bench "step_deit_${model}_as_the_paper_ran" "deit_${model}_toe_r05" --batch "$batch" \
        train.compile=false train.precision=fp16
done
bench step_deit_small_sizes deit_small_toe_r05 --batch "$((batch / 4)),$batch" --sizes 160,224,384
bench step_deit_small_rates deit_small_toe_r05 --batch "$((batch / 4)),$batch" \
    "expansion.keep_rates=[0.4, 0.5, 0.6, 0.75, 1.0]" "expansion.stage_epochs=[0, 60, 120, 180, 240]"
bench step_deit_small_et deit_small_et_toe_r06 --batch "$batch"
bench step_lvvit_small lvvit_s_toe_r04 --batch "$batch"
bench methods_deit_tiny deit_tiny --batch "$batch" \
    --beside configs/deit_tiny_{toe_r05,tome_r8,networkexpansion_6_12,s2vite}.yaml
bench methods_deit_small deit_small --batch "$batch" \
    --beside configs/deit_small_{toe_r05,tome_r8,networkexpansion_6_12}.yaml
bench methods_deit_base deit_base --batch "$((batch / 2))" \
    --beside configs/deit_base_{toe_r05,networkexpansion_6_12,stackbert}.yaml
for model in tiny small; do
    bench "expansion_deit_$model" "deit_${model}_toe_r05" --what expansion --batch "$batch"
done
bench loader deit_tiny --what loader "${images[@]}"
bench loader_on_device deit_tiny --what loader "${images[@]}" augment.on_device=true
for model in tiny small base; do
    bench "end_to_end_deit_$model" "deit_${model}_toe_r05" --what end-to-end "${images[@]}"
done
for model in tiny small base; do
    bench "saving_deit_$model" "deit_$model" --what saving --output "$folder"
done
if [ ${#failed[@]} -gt 0 ]; then
    echo "error: without figures: ${failed[*]}; the same command tries them again" >&2
    exit 1
fi
