# shellcheck shell=bash
# The scripts of this folder source this file. It sets the command $python and its environment.
#
#   CORRAL_SETUP      lines of shell that are run first, e.g. "module load cuda/12.8"
#   CORRAL_ENV_FILE   file of NAME=value lines for the environment
#   CORRAL_CONTAINER  words before every python, e.g. "apptainer exec --nv corral.sif"; the host needs no Python then

repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
[[ -z ${CORRAL_SETUP:-} ]] || eval "$CORRAL_SETUP"
if [[ -n ${CORRAL_ENV_FILE:-} ]]; then
  set -a
  # shellcheck source=/dev/null
  source "$CORRAL_ENV_FILE"
  set +a
fi

read -ra container <<<"${CORRAL_CONTAINER:-}"
python=("${container[@]}" "${CORRAL_PYTHON:-${CORRAL_CONTAINER:+python3}}")
[[ -n ${python[-1]} ]] || python=("$repository/.venv/bin/python")
if ! command -v "${python[0]}" >/dev/null; then
  echo "corral: there is no ${python[0]}; make the environment (make .venv), or set CORRAL_PYTHON or CORRAL_CONTAINER" >&2
  exit 66
fi

# Python imports Corral's packages from this folder, even if the working folder contains others.
export PYTHONSAFEPATH=1 PYTHONPATH="$repository${PYTHONPATH:+:$PYTHONPATH}" PYTHONFAULTHANDLER=1 PYTHONUNBUFFERED=1

# Caches are local to a node: many nodes that write one cache on a shared file system damage its files. They hold code
# that is run, and other users may make folders beside them, so the folder is this user's alone (launch/node.py: the
# same on the other nodes).
local_dir=${CORRAL_LOCAL_DIR:-${TMPDIR:-/tmp}/corral-$UID/job-${SLURM_JOB_ID:-0}}
"${python[@]}" -m conf.disk.folders "$local_dir"
export CORRAL_LOCAL_DIR=$local_dir
export TRITON_CACHE_DIR="${TRITON_CACHE_DIR:-$local_dir/triton}"
export TORCHINDUCTOR_CACHE_DIR="${TORCHINDUCTOR_CACHE_DIR:-$local_dir/inductor}"
export TORCH_EXTENSIONS_DIR="${TORCH_EXTENSIONS_DIR:-$local_dir/extensions}"

# Processes per node: the number of GPUs from SLURM, else the number of GPUs from the driver, else CORRAL_NPROC or 1.
if [[ -n ${SLURM_GPUS_ON_NODE:-} ]]; then
  processes=$SLURM_GPUS_ON_NODE
elif [[ -z ${CORRAL_NPROC:-} ]] && command -v nvidia-smi >/dev/null; then
  processes=$(timeout 20 nvidia-smi -L | grep -c '^GPU ' || true)  # a driver that hangs: the preflight names it
else
  processes=${CORRAL_NPROC:-1}
fi
export CORRAL_NPROC=$((processes > 0 ? processes : 1))
cpus=${SLURM_CPUS_PER_TASK:-${SLURM_CPUS_ON_NODE:-1}}
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$((cpus > CORRAL_NPROC ? cpus / CORRAL_NPROC : 1))}"
