#!/usr/bin/env bash
# srun runs this when all processes of a job have ended, however that was: start the job again, or say why not.
# lanes has written down which of the two (LANES_VERDICT); this alone talks to SLURM, outside of any container.
job=${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}  # one number may mean a whole array
say() { echo "lanes: job $job $*" >&2; }
verdict_of() { cat "${LANES_VERDICT%.*}.$1" 2>/dev/null; }  # the first start is 0
this=${SLURM_RESTART_COUNT:-0}
verdict=$(verdict_of "$this")
case $verdict in
  "unsaid: "*) verdict="no: ${verdict#unsaid: }" ;;
  unsaid)  # ended while loading: once may be bad luck
    verdict=again
    [ "$(verdict_of $((this - 1)))" != unsaid ] ||
      verdict="no: it has ended twice before training began; why, if anybody could tell, is said above" ;;
  early)  # a signal while loading: nobody's fault, unless there is no end of it
    verdict=again
    [ "$(verdict_of $((this - 1)))$(verdict_of $((this - 2)))" != earlyearly ] ||
      verdict="no: a signal has ended it three times running before training began; is its time limit long enough?" ;;
esac
if [ "$verdict" != again ]; then
  rm -f "${LANES_VERDICT%.*}".*
  [ "$verdict" = complete ] || say "is not started again: ${verdict#no: }"
  exit 0
fi
if [ "$LANES_REQUEUE" = slurm ]; then
  say "could go on; whether it is started again is left to SLURM"
  exit 0
fi
# Not one that somebody has cancelled, nor one that SLURM has put back into its queue, or even started again, meanwhile.
facts=" $(scontrol -o show job "$job") "
case $facts in
  *" Restarts=${SLURM_RESTART_COUNT:-0} "*) ;;
  *) say "has been put back into the queue by SLURM"; exit 0 ;;
esac
case $facts in
  *" JobState=RUNNING "* | *" Reason=TimeLimit "*) ;;
  *) say "is not started again: it was cancelled, or SLURM has put it back into the queue"; exit 0 ;;
esac
say "goes back into the queue, and then on"
scontrol requeue "$job" || say "cannot be put back into the queue; submit it again with --run (docs/slurm.md)"
