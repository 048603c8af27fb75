#!/usr/bin/env bash
# Prepares a corpus as a SLURM job: one node, no GPU. Restartable: a requeued or resubmitted job goes on.
#
#   sbatch --cpus-per-task=32 slurm/data_prep.sh data=NAME model.tokenizer=FOLDER data.num_proc=32 [overrides]
#
# Options before the script go to SLURM, everything after it to `python -m data_prep`, untouched.
#SBATCH --job-name=corral-data
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=corral-data-%j.log
set -euo pipefail

cd "${CORRAL_REPOSITORY:-${SLURM_SUBMIT_DIR:?start this script with sbatch}}"  # $0 is a copy in SLURM's spool
source slurm/environment.sh
exec "$python" -m data_prep "$@"
