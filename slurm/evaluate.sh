#!/usr/bin/env bash
# Evaluates a checkpoint of a finished or running run as a SLURM job: one process, one GPU if asked for.
#
#   sbatch --gpus-per-node=1 slurm/evaluate.sh run_dir=outputs/NAME [checkpoint=STEP] [max_rows=0]
#
# Options before the script go to SLURM, everything after it to `python -m train.evaluate`, untouched.
#SBATCH --job-name=corral-evaluate
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --open-mode=append
#SBATCH --output=corral-evaluate-%j.log
set -euo pipefail

cd "${CORRAL_REPOSITORY:-${SLURM_SUBMIT_DIR:?start this script with sbatch}}"  # $0 is a copy in SLURM's spool
source slurm/environment.sh
exec "$python" -m train.evaluate "$@"
