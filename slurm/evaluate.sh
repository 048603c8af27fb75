#!/usr/bin/env bash
# Evaluates a checkpoint of a finished or running run as a SLURM job: one process, and one GPU on request.
#
#   sbatch --gpus-per-node=1 slurm/evaluate.sh run_dir=outputs/NAME [checkpoint=STEP] [max_rows=0]
#
# SLURM gets the options before the script; `python -m train.evaluate` gets everything after it, unchanged.
#SBATCH --job-name=corral-evaluate
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --open-mode=append
#SBATCH --output=corral-evaluate-%j.log
set -euo pipefail

source "${CORRAL_REPOSITORY:-${SLURM_SUBMIT_DIR:?start this script with sbatch}}/slurm/environment.sh"
exec "${python[@]}" -m train.evaluate "$@"
