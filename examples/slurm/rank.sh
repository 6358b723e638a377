#!/usr/bin/env bash
# One process of a job: Slurm's variables under the names that torch reads, then the command in this process's place, so
# that Slurm's signals reach it.
set -euo pipefail
export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID GROUP_RANK=$SLURM_NODEID
export WORLD_SIZE=$SLURM_STEP_NUM_TASKS LOCAL_WORLD_SIZE=$((SLURM_STEP_NUM_TASKS / SLURM_STEP_NUM_NODES))
# What Lightning knows torchrun by: it then leaves Slurm's signals and requeueing alone.
export TORCHELASTIC_RUN_ID=$SLURM_JOB_ID
# The package and conf/ of the checkout that this script lies in, not a copy that is installed in the image.
code=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
export PYTHONPATH=$code${PYTHONPATH:+:$PYTHONPATH}
exec "$@"
