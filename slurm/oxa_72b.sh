#!/usr/bin/env bash
#SBATCH --job-name=oxa-72b
#SBATCH --nodes=16
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --signal=B:USR1@300
#SBATCH --open-mode=append
#SBATCH --output=slurm-%x-%j.out
# OXA_Full on Qwen2.5-72B, beyond the paper: its 7B values, unproven at this size; see oxa_7b.sh.
set -euo pipefail
source slurm/job.sh
mreason_job "${CLUSTER:-h100}" run "${RECIPE:-examples/oxa/full_72b.yaml}" "$@"
