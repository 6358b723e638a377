# shellcheck shell=bash
# What all jobs here share: the environment, one process per GPU, and what follows when the job is told to stop.
# Sourced by the .sub files, which set IMAGE, MOUNTS, CODE, PYTHON and RUN_DIR, on the first node of the job.
#
# Told to stop: by --signal ahead of the time limit (SIGTERM to this script), or by a preemption (SIGTERM to the tasks
# alone). The workers save at the end of the step and exit with 0, and the job is put back into the queue; started again
# it resumes. How the end of a start is read:
#
#   exit code 0, summary.json says finished   the run is complete (early stopping too says so)
#   exit code 0, it says not finished         the workers had SIGTERM and saved: requeue
#   another code, this script told to stop    stopped before training could save (while it was loading): requeue
#   143, no rank's log tells of an error      the tasks alone had SIGTERM while they were loading: requeue
#   exit code 2                               a setting is wrong (a rank's log says which, mostly rank 0's): not again
#   another code                              a failure: not again; a failed node is Slurm's affair (--requeue)
#
# srun answers with the highest code of its tasks: where one fails, the others' 143, as it ends them. So 143 alone does not
# tell. A rank that is killed without a word (host memory) reads as told to stop; MAX_RESTARTS bounds that.
#
# Each process is a task of srun, with no torchrun in between: on SIGTERM torchrun kills its workers after 30 s
# (TORCH_ELASTIC_SHUTDOWN_TIMEOUT), which may be less than a checkpoint takes, and exits with 1 whatever they did.

MAX_RESTARTS=${MAX_RESTARTS:-100} # a job whose time is too short to reach a checkpoint must not come back for ever

set_environment() {
  MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
  MASTER_PORT=$((20000 + SLURM_JOB_ID % 12000))  # under those that Linux gives to any process (32768 and up)
  export MASTER_ADDR MASTER_PORT
  export OMP_NUM_THREADS=${OMP_NUM_THREADS:-8}
  export TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1
  export PYTHONFAULTHANDLER=1 # a crash (SIGSEGV) says so in the rank's log

  # Hopper and before: kernels start in the order in which they are issued, so that communication begins ahead of the
  # matrix product that hides it (tensor and context parallelism). Blackwell: leave it unset.
  export CUDA_DEVICE_MAX_CONNECTIONS=${CUDA_DEVICE_MAX_CONNECTIONS:-1}
  # Blocks of memory can grow: batches of varying length do not cut it into pieces.
  export PYTORCH_CUDA_ALLOC_CONF=${PYTORCH_CUDA_ALLOC_CONF:-expandable_segments:True}

  # Errors only; INFO shows which interfaces and rings NCCL chose. Where it chooses wrongly, name the interfaces of your
  # site in the .sub file: NCCL_SOCKET_IFNAME (bootstrap), NCCL_IB_HCA (InfiniBand).
  export NCCL_DEBUG=${NCCL_DEBUG:-WARN}
  # A rank that is gone: the others' collectives fail after this many seconds, the step ends, and --kill-on-bad-exit takes
  # the rest down. It is the timeout of all of train_policy's groups; in train_sft and train_rm NeMo gives it to the group
  # of all ranks, and the others have megatron-core's 30 minutes. Longer than the slowest phase in which ranks wait for
  # one another: reading initial weights, or writing a checkpoint.
  export TORCH_NCCL_HEARTBEAT_TIMEOUT_SEC=${TORCH_NCCL_HEARTBEAT_TIMEOUT_SEC:-1800}
  # On such a timeout every rank writes its last collectives, which shows the rank that did not come.
  export TORCH_NCCL_TRACE_BUFFER_SIZE=${TORCH_NCCL_TRACE_BUFFER_SIZE:-2000}
  export TORCH_NCCL_DUMP_ON_TIMEOUT=${TORCH_NCCL_DUMP_ON_TIMEOUT:-1}
  export TORCH_NCCL_DEBUG_INFO_TEMP_FILE=$LOGS/nccl_trace_rank_
}

# run_job ENTRY SETTING…   examples/ENTRY.py on all GPUs of the job; ends this script
run_job() {
  begin "$@"
  run_ranks rank "$@" &
  wait_for $!
  after_training
}

# begin ENTRY SETTING…   this start's logs, environment and answer to SIGTERM
begin() {
  START=${SLURM_RESTART_COUNT:-0}
  LOGS=$RUN_DIR/logs/job-$SLURM_JOB_ID-start-$START
  mkdir -p "$LOGS"
  set_environment
  echo "start $START of job $SLURM_JOB_ID: $* (logs: $LOGS)"
  TOLD=0
  trap 'TOLD=$((TOLD + 1)); scancel --signal=TERM "$SLURM_JOB_ID" || true' TERM # the tasks, not this shell
}

STEP_OPTIONS=() # of srun, where a step does not take the whole job

# run_ranks LOG ENTRY SETTING…   examples/ENTRY.py on all GPUs of a step
run_ranks() {
  local log=$1 entry=$2
  shift 2
  srun --kill-on-bad-exit=1 --output="$LOGS/$log-%t.log" "${STEP_OPTIONS[@]}" \
    --container-image="$IMAGE" --container-mounts="$MOUNTS" --container-workdir="$CODE" \
    bash "$CODE/examples/slurm/rank.sh" "$PYTHON" "$CODE/examples/$entry.py" "$@"
}

# Sets EXIT_CODE. The shell's `wait` also returns when a signal arrives: then it waits on.
wait_for() {
  local before
  while true; do
    before=$TOLD
    EXIT_CODE=0
    wait "$1" || EXIT_CODE=$?
    [ "$TOLD" -eq "$before" ] && return
  done
}

after_training() {
  if [ "$EXIT_CODE" -eq 0 ] && summary_says true; then
    echo "complete: $RUN_DIR/summary.json"
  elif [ "$EXIT_CODE" -eq 0 ] && [ "$TOLD" -eq 0 ] && ! summary_says false; then
    echo "ended without training: no $RUN_DIR/summary.json"
  elif [ "$EXIT_CODE" -eq 0 ] || { [ "$TOLD" -gt 0 ] && [ "$EXIT_CODE" -ne 2 ]; }; then
    put_back
  elif [ "$EXIT_CODE" -eq 143 ] && [ -z "$(logs_with_errors)" ]; then
    put_back
  else
    show_failure >&2
  fi
  exit "$EXIT_CODE"
}

summary_says() {
  grep -qs "\"finished\": $1" "$RUN_DIR/summary.json"
}

logs_with_errors() {
  grep -lsE 'error:|Error' "$LOGS"/rank-*.log || true
}

show_failure() {
  local log logs
  mapfile -t logs < <(logs_with_errors)
  [ "${#logs[@]}" -gt 0 ] || logs=("$LOGS/rank-0.log")
  echo "failed with exit code $EXIT_CODE"
  for log in "${logs[@]}"; do
    echo "last lines of $log:"
    tail -n 20 "$log" || true
  done
}

put_back() {
  local state
  if [ "$EXIT_CODE" -eq 0 ]; then echo "told to stop; saved"; else echo "told to stop before training could save"; fi
  state=$(squeue --noheader --jobs "$SLURM_JOB_ID" --format %T)
  if [ "$state" != RUNNING ]; then
    echo "the job is $state: nothing to put back (cancelled, or Slurm requeues it)"
  elif [ "$START" -ge "$MAX_RESTARTS" ]; then
    echo "started $((START + 1)) times (MAX_RESTARTS=$MAX_RESTARTS): not again" >&2
    exit 1
  elif scontrol requeue "$SLURM_JOB_ID"; then
    echo "put back into the queue"
    exit 0
  else
    echo "could not be put back; submitted again with the same RUN_DIR it resumes" >&2
    exit 1
  fi
}
