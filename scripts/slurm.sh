#!/usr/bin/env bash
# A run on several nodes under Slurm that goes on by itself after pre-emption and at the end of its time limit.
#
#   sbatch --nodes=2 --gpus-per-node=8 --ntasks-per-node=8 scripts/slurm.sh configs/deit_base_toe_r05.yaml data.root=/path/to/imagenet
#
# One task a GPU. Two minutes before the end Slurm sends USR1 to every task; the run writes a checkpoint and ends with
# exit code 75, and the job is put back into the queue. The run folder must lie on a disk that all nodes share.
#SBATCH --job-name=toe-train
#SBATCH --cpus-per-task=12
#SBATCH --time=24:00:00
#SBATCH --signal=USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
set -uo pipefail

config=${1:?usage: sbatch [options] scripts/slurm.sh CONFIG [KEY=VALUE ...]}
shift

MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export MASTER_ADDR MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000)) OMP_NUM_THREADS=1

export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-12}
# A task that has saved its place ends with 75 and must not take the others with it before they end as well.
srun --kill-on-bad-exit=0 bash -c '
    export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_NTASKS
    exec python -m toe_train --config "$@"' toe-train "$config" "$@"
code=$?

if [ "$code" -eq 75 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
