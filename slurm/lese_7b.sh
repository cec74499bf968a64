#!/usr/bin/env bash
#SBATCH --job-name=lese-7b
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --signal=B:USR1@300
#SBATCH --open-mode=append
#SBATCH --output=slurm-%x-%j.out
# LESE on Qwen2.5-Math-7B; see oxa_7b.sh for what can be given.
set -euo pipefail
source slurm/job.sh
mreason_job "${CLUSTER:-h100}" run "${RECIPE:-examples/lese/lese_7b.yaml}" "$@"
