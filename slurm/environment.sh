# shellcheck shell=bash
# Sourced by the scripts of this folder, from the repository's root: which python, and what its processes see.

python=${CORRAL_PYTHON:-$PWD/.venv/bin/python}
if [[ ! -x $python ]]; then
  echo "corral: no python at $python; make the environment (make .venv) or set CORRAL_PYTHON" >&2
  exit 66
fi

# Our packages come from here, whatever lies in the working folder.
export PYTHONSAFEPATH=1 PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONFAULTHANDLER=1 PYTHONUNBUFFERED=1

# Node-local: many nodes writing one cache on a shared file system break each other's files.
local_dir=${CORRAL_LOCAL_DIR:-${TMPDIR:-/tmp}/corral-${USER:-$UID}-${SLURM_JOB_ID:-0}}
export TRITON_CACHE_DIR="${TRITON_CACHE_DIR:-$local_dir/triton}"
export TORCHINDUCTOR_CACHE_DIR="${TORCHINDUCTOR_CACHE_DIR:-$local_dir/inductor}"
export TORCH_EXTENSIONS_DIR="${TORCH_EXTENSIONS_DIR:-$local_dir/extensions}"

# NCCL's flight recorder: what every rank was doing when a collective timed out.
export TORCH_NCCL_TRACE_BUFFER_SIZE="${TORCH_NCCL_TRACE_BUFFER_SIZE:-2000}"
export TORCH_NCCL_DUMP_ON_TIMEOUT="${TORCH_NCCL_DUMP_ON_TIMEOUT:-1}"

# Processes per node: as many as SLURM gives GPUs, else as many GPUs as the driver lists, else CPU processes.
if [[ -n ${SLURM_GPUS_ON_NODE:-} ]]; then
  processes=$SLURM_GPUS_ON_NODE
elif [[ -z ${CORRAL_NPROC:-} ]] && command -v nvidia-smi >/dev/null; then
  processes=$(nvidia-smi -L | grep -c '^GPU ' || true)
else
  processes=${CORRAL_NPROC:-1}
fi
export CORRAL_NPROC=$((processes > 0 ? processes : 1))
cpus=${SLURM_CPUS_PER_TASK:-${SLURM_CPUS_ON_NODE:-1}}
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$((cpus > CORRAL_NPROC ? cpus / CORRAL_NPROC : 1))}"
