#!/usr/bin/env bash
# srun runs this when all processes of a job have ended, however that was: start the job again, or say why not.
# lanes has written down which of the two (LANES_VERDICT); this alone talks to SLURM, outside of any container.
job=${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}  # one number may mean a whole array
say() { echo "lanes: job $job $*" >&2; }
verdict_of() { cat "${LANES_VERDICT%.*}.$1" 2>/dev/null; }  # the first start is 0
this=${SLURM_RESTART_COUNT:-0}
verdict=$(verdict_of "$this")
[ "$verdict" != complete ] || { rm -f "${LANES_VERDICT%.*}".*; exit 0; }

# Not one that somebody has cancelled, nor one that SLURM has put back into its queue, or even started again, meanwhile.
for ((try = 0; try < 12; try++)); do  # the controller may be about to start again itself
  facts=" $(scontrol -o show job "$job") " && break
  sleep 5
done
case $facts in
  "  ") say "cannot be asked for: SLURM does not answer; submit it again with --run (docs/slurm.md)"; exit 0 ;;
  *" Restarts=$this "*) ;;
  *) say "has been put back into the queue by SLURM"; exit 0 ;;
esac
case $facts in
  *" JobState=RUNNING "* | *" Reason=TimeLimit "*) ;;
  *) say "is not started again: it was cancelled, or SLURM has put it back into the queue"; exit 0 ;;
esac

case $verdict in
  "unsaid: "*) verdict="no: ${verdict#unsaid: }" ;;
  unsaid)  # ended while loading, and nobody lived to say why: once may be bad luck
    case "$(verdict_of $((this - 1))) $(verdict_of $((this - 2)))" in
      "unsaid "* | "early unsaid" | "early early")
        verdict="no: it has ended again before training began; why, if anybody could tell, is said above" ;;
      *) verdict=again ;;
    esac ;;
  early) verdict=again ;;
esac
if [ "$verdict" != again ]; then
  rm -f "${LANES_VERDICT%.*}".*
  say "is not started again: ${verdict#no: }"
elif [ "$LANES_REQUEUE" = slurm ]; then
  say "could go on; whether it is started again is left to SLURM"
elif [[ $facts = *" Requeue=0 "* ]]; then
  say "could go on, but is not to be started again (--no-requeue): by another job with --run (docs/slurm.md)"
else
  say "goes back into the queue, and then on"
  for ((try = 0; try < 12; try++)); do
    scontrol requeue "$job" && exit 0
    sleep 5
  done
  say "cannot be put back into the queue; submit it again with --run (docs/slurm.md)"
fi
