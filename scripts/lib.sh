# What the scripts of the paper's tables and figures share. They take
#
#   --proxy        the small stand-in on CIFAR-10 (configs/proxy*.yaml) in place of ImageNet
#   --cpu          of the proxy, a model and a schedule that a CPU does in minutes a run
#   --smoke        of the proxy, runs of seconds on scikit-learn's digits: whether all of it works
#   --seeds N      runs of each row, with seeds 0 ... N-1 (default: 1); A-B for seeds A ... B
#   --output DIR   gets a run folder for each row and seed, and report/ (default: runs/<script>)
#   KEY=VALUE      for every run, e.g. data.root=/path/to/imagenet
#
# and continue where they were broken off: what is finished is passed over, what is not goes on from its checkpoint.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
PATH="$PWD/.venv/bin:$PATH"

proxy= scale=full seeds=0-0 output= extra=()
while [ $# -gt 0 ]; do
    case $1 in
    --proxy) proxy=yes ;;
    --cpu) scale=cpu ;;
    --smoke) scale=smoke ;;
    --seeds) case $2 in *-*) seeds=$2 ;; *) seeds=0-$(($2 - 1)) ;; esac && shift ;;
    --output) output=$2 && shift ;;
    *=*) extra+=("$1") ;;
    *) sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0" >&2 && sed -n '/^# *--/s/^# *//p' scripts/lib.sh >&2 && exit 2 ;;
    esac
    shift
done
if [ "$scale" != full ] && [ -z "$proxy" ]; then
    echo "error: --cpu and --smoke are scales of --proxy; give it too" >&2
    exit 2
fi
script=$(basename "$0" .sh)
output=${output:-runs/$script${proxy:+-proxy}}
runs=() # run folders, in the order of the table

# scale_down CONFIG: adds to `given` what brings a configuration of the proxy to its scale; stages keep their shares.
scale_down() {
    local thirds="[0, 5, 10]" fifths="[0, 3, 6, 9, 12]" batch=64
    given+=(train.precision=fp32 evaluate.every_epochs=5 data.workers=0 schedule.warmup_epochs=1)
    if [ "$scale" = cpu ]; then
        given+=(optim.lr=1e-3 epochs=15 "model.kwargs={patch_size: 4, embed_dim: 64, depth: 6, num_heads: 2}")
    else
        thirds="[0, 2, 4]" fifths="[0, 1, 2, 3, 4]" batch=128
        given+=(epochs=5 "model.kwargs={patch_size: 4, embed_dim: 32, depth: 4, num_heads: 2}")
        given+=(data.root="$output/digits")
        digits
    fi
    given+=(train.global_batch=$batch augment.mix_group=$batch)
    case $1 in *_toe_* | *_random) given+=("expansion.stage_epochs=$thirds") ;; esac
    case $1 in *_et | *_et_*)
        given+=("curriculum.stage_epochs=$fifths" "curriculum.micro_batches=[$batch, $batch, $batch, $batch, $batch]")
        ;;
    esac
}

# run NAME CONFIG PROXY [KEY=VALUE ...]: the row of the table called NAME, by CONFIG or with --proxy by PROXY; "-" is none.
run() {
    local name=$1 config=$2 seed folder given=()
    [ -z "$proxy" ] || config=$3
    shift 3
    [ "$config" != - ] || return 0
    [ "$scale" = full ] || scale_down "$config"
    for ((seed = ${seeds%-*}; seed <= ${seeds#*-}; seed++)); do
        folder=$output/$name-s$seed
        runs+=("$folder")
        echo "== $folder"
        toe-train --config "configs/$config.yaml" --output "$folder" "${given[@]}" "$@" "${extra[@]}" seed=$seed
    done
}

# The digits as an image folder, for --smoke.
digits() {
    [ -d "$output/digits/val" ] || python - "$output/digits" <<'END'
import sys
from pathlib import Path
from toe_train.data import open_datasets
for split, images in zip(("train", "val"), open_datasets("digits", None)):
    for number in range(0, len(images), 2):
        image, label = images[number]
        folder = Path(sys.argv[1]) / split / images.classes[label]
        folder.mkdir(parents=True, exist_ok=True)
        image.resize((32, 32)).save(folder / f"{number}.png")
END
}

# data_root NAME: where the images of a row's first run lie.
data_root() {
    python -c 'import sys, yaml; print(yaml.safe_load(open(sys.argv[1]))["data"]["root"])' "${runs[0]%/*}/$1-s${seeds%-*}/config.yaml"
}

# report TITLE: the table of all runs beside the paper's, printed and in $output/report.
report() {
    toe-tools report "${runs[@]}" --title "$1" --output "$output/report"
}
