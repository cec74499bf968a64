#!/usr/bin/env bash
#SBATCH --job-name=grpo-7b
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --signal=B:USR1@300
#SBATCH --open-mode=append
#SBATCH --output=slurm-%x-%j.out
# GRPO on Qwen2.5-Math-7B; see oxa_7b.sh for what can be given. Rank 0's node also generates, or the
# nodes of a second component: sbatch --nodes=4 : --nodes=1 --ntasks-per-node=8 --gpus-per-node=8 ...
# (docs/cluster.md).
set -euo pipefail
source slurm/job.sh
mreason_job "${CLUSTER:-h100}" run "${RECIPE:-examples/baselines/grpo_7b.yaml}" "$@"
