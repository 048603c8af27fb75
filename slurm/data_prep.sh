#!/usr/bin/env bash
# Prepares a corpus as a SLURM job on one node without a GPU. A requeued or resubmitted job continues.
#
#   sbatch --cpus-per-task=32 slurm/data_prep.sh data=NAME model.tokenizer=FOLDER data.num_proc=32 [overrides]
#
# SLURM gets the options before the script; `python -m data_prep` gets everything after it, unchanged.
#SBATCH --job-name=corral-data
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=corral-data-%j.log
set -euo pipefail

source "${CORRAL_REPOSITORY:-${SLURM_SUBMIT_DIR:?start this script with sbatch}}/slurm/environment.sh"
exec "${python[@]}" -m data_prep "$@"
