#!/usr/bin/env bash
# A table as a Slurm array: a task for each row and seed, over as many nodes as it is given. From the top of the checkout:
#
#   table="table2 --seeds 3 --output /shared/table2 data.root=/data/imagenet"
#   sbatch --array=0-$(($(bash scripts/slurm_table.sh $table | wc -l) - 1))%4 --partition=gpu --account=me \
#       --nodes=1 --gpus-per-node=8 --ntasks-per-node=8 --cpus-per-task=12 --time=24:00:00 \
#       --output=logs/%x-%A-%a.out --mail-type=END,FAIL scripts/slurm_table.sh $table
#   bash scripts/table2.sh --seeds 3 --output /shared/table2 data.root=/data/imagenet     # when all are done: the report
#
# Outside of an array it prints the commands of the tasks, which are numbered from 0. %4 is how many run at a time. Each
# task goes on by itself as slurm.sh does, and the report passes over what is finished. Of table5 the rows that start
# from others need these first: give them an array of their own.
#SBATCH --job-name=toe-table
#SBATCH --cpus-per-task=12
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail

fail() {
    echo "error: $1" >&2
    exit 2
}

name=$(basename "${1:-}" .sh)
script=scripts/$name.sh
[ -n "$name" ] || fail "no script: scripts/slurm_table.sh SCRIPT [its options], such as table2 --seeds 3"
[ -d scripts ] || fail "there is no scripts/ here; submit from the top of the checkout"
if [ "$name" = lib ] || ! grep -qs '/lib\.sh"$' "$script"; then
    fail "$1 is none of scripts/ that trains a table's runs; such are table1 ... table10, tableB1, fig3, fig4, proxy"
fi
shift
tasks=$(bash "$script" "$@" --list)
number=${SLURM_ARRAY_TASK_ID:-}
if [ -z "$number" ]; then
    echo "$tasks"
    exit
fi
[[ $number =~ ^[0-9]+$ ]] || fail "SLURM_ARRAY_TASK_ID=$number: tasks are numbered from 0"
task=$(sed -n "$((10#$number + 1))p" <<<"$tasks")
[ -n "$task" ] || fail "--array has a task $number, and there are $(wc -l <<<"$tasks") runs, from 0"
eval "set -- $task"  # toe-train --config FILE ...
shift 2
exec bash scripts/slurm.sh "$@" # in the place of this shell, which Slurm signals
