# What all jobs here have in common; read by them, not run. Sets `srun`, the options of srun, `lanes`, the
# command, and `inside`, what is put in front of any other.
say() { echo "lanes: $*" >&2; }
refuse() { say "error: $*"; exit 2; }

# ---- The site's settings

known=" SITE_MODULES SITE_VENV SITE_CONTAINER SITE_INTERFACE SITE_REQUEUE "
site=${LANES_SITE:-slurm/site.sh}
if [ -e "$site" ]; then
  source "$site" || refuse "$site failed"
elif [ -n "${LANES_SITE:-}" ]; then
  refuse "LANES_SITE=$LANES_SITE is no file"
fi
for name in ${!SITE_@}; do
  [[ $known = *" $name "* ]] || refuse "$site: there is no setting $name; the settings are$known"
done
case ${SITE_REQUEUE:=self} in
  self | slurm) ;;
  *) refuse "$site: SITE_REQUEUE=$SITE_REQUEUE must be self (a job starts itself again) or slurm (your SLURM does)" ;;
esac
if [ -n "${SITE_MODULES:-}" ]; then
  module load $SITE_MODULES || refuse "$site: cannot load the modules $SITE_MODULES"
fi
if [ -n "${SITE_INTERFACE:-}" ]; then
  export GLOO_SOCKET_IFNAME=$SITE_INTERFACE NCCL_SOCKET_IFNAME=$SITE_INTERFACE
fi
if [ -n "${SITE_CONTAINER:-}" ]; then
  inside=($SITE_CONTAINER)  # its words are words
else
  inside=()
  venv=${SITE_VENV:-.venv}
  [ -x "$venv/bin/lanes" ] || refuse "there is no $venv/bin/lanes: run scripts/setup, or say where it is by SITE_VENV in $site"
  export PATH=$(realpath "$venv")/bin:$PATH
fi
lanes=("${inside[@]}" lanes)

# ---- The layout: one task drives one device

tasks=${SLURM_NTASKS_PER_NODE:-${SLURM_GPUS_ON_NODE:-1}}
if [ "${SLURM_GPUS_ON_NODE:-$tasks}" != "$tasks" ]; then
  refuse "the job has $SLURM_GPUS_ON_NODE GPUs on a node and $tasks tasks; leave out --ntasks-per-node, or give as many"
fi
# All processors of the job: srun would give a task one of them, and minds what the job was asked for only in part.
cpus=$((SLURM_CPUS_ON_NODE / tasks))
[ "$cpus" -gt 0 ] || refuse "the job has $SLURM_CPUS_ON_NODE processors on a node for $tasks tasks; give --cpus-per-gpu"
unset SLURM_CPUS_PER_TASK SLURM_CPUS_PER_GPU SLURM_TRES_PER_TASK SLURM_NTASKS SLURM_NPROCS
[ "${OMP_NUM_THREADS:-}" ] || export OMP_NUM_THREADS=$cpus
export PYTHONUNBUFFERED=1  # srun's own --unbuffered makes a terminal, in which progress bars are drawn
# One process that ends by an error takes all others with it.
srun=(--ntasks-per-node="$tasks" --cpus-per-task="$cpus" --kill-on-bad-exit=1)

# ---- What becomes of the job: lanes writes it down, after.sh does it

starts_again() {
  export LANES_VERDICT=$PWD/runs/.jobs/$SLURM_JOB_ID.${SLURM_RESTART_COUNT:-0} LANES_REQUEUE=$SITE_REQUEUE
  mkdir -p "${LANES_VERDICT%/*}" && echo unsaid >"$LANES_VERDICT" || refuse "nothing can be written to $PWD/runs"
  srun+=(--epilog=slurm/after.sh)
}

# ---- Mistakes that can be told before anything is started

check_config() {
  [ -n "${1:-}" ] || refuse "which configuration? sbatch slurm/NAME.sbatch configs/NAME.yaml"
  [ -r "$1" ] || refuse "there is no configuration $1 in $PWD"
}
echo "job ${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}, start ${SLURM_RESTART_COUNT:-0}:" \
  "$SLURM_JOB_NUM_NODES x $tasks tasks on $SLURM_JOB_NODELIST, $(date '+%F %T')"
