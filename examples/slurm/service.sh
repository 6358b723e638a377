# shellcheck shell=bash
# A policy whose reward model is a service on nodes of its own: two steps of one job, each with its own layout.
# Sourced after launch.sh by the .sub file, which also sets SERVICE_NODES, SERVICE_PORT and SERVICE_SETTINGS.
#
# The service is started again when it fails, and the training waits for it (reward_patience) and brings its critic to where
# it was. Told to stop, both end: the service once it has done what waits, the training once it has saved, with what the
# critic has learnt since the service's last checkpoint. The service ends with the training.

SERVICE_PAUSE=${SERVICE_PAUSE:-10} # seconds before a service that failed is started again

# run_with_service SETTING…   serve_reward.py on the first SERVICE_NODES nodes, train_policy.py on the others
run_with_service() {
  local nodes address supervisor per_node=$((SLURM_NTASKS / SLURM_NNODES))
  mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
  address="http://${nodes[0]}:$SERVICE_PORT"
  export MOSLIM_SERVICE_TOKEN=${MOSLIM_SERVICE_TOKEN:-$(head -c 24 /dev/urandom | base64)} # of this job alone
  begin train_policy reward="$address" "$@"

  step_on "$per_node" "${nodes[@]:0:SERVICE_NODES}"
  export MASTER_ADDR=${nodes[0]}
  keep_service &
  supervisor=$!

  step_on "$per_node" "${nodes[@]:SERVICE_NODES}"
  export MASTER_ADDR=${nodes[SERVICE_NODES]} MASTER_PORT=$((MASTER_PORT + 1))
  run_ranks rank train_policy reward="$address" "$@" &
  wait_for $!

  touch "$LOGS/training-ended"
  while kill -0 "$supervisor" 2>/dev/null; do # again, for a service that was about to start
    scancel --signal=TERM "$SLURM_JOB_ID" || true
    sleep 1
  done
  after_training
}

# step_on TASKS_PER_NODE NODE…   the next step's nodes
step_on() {
  local per_node=$1 list
  shift
  list=$(printf ',%s' "$@")
  # shellcheck disable=SC2034  # read by launch.sh
  STEP_OPTIONS=(--nodes="$#" --ntasks="$((per_node * $#))" --nodelist="${list:1}")
}

keep_service() {
  local attempt=0
  while ! run_ranks "service-$attempt-rank" serve_reward host=0.0.0.0 port="$SERVICE_PORT" "${SERVICE_SETTINGS[@]}"; do
    [ ! -e "$LOGS/training-ended" ] || return
    attempt=$((attempt + 1))
    echo "the reward model's service failed (logs: $LOGS/service-*): start $attempt in $SERVICE_PAUSE s" >&2
    sleep "$SERVICE_PAUSE"
  done
}
