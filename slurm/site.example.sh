# Settings of a site: copy this to slurm/site.sh, change it, and read it before you submit:  source slurm/site.sh
# Jobs read it, too. What begins with SBATCH_ is sbatch's own ("Input environment variables" in its manual); the command
# line goes before it. What begins with SITE_ is listed here, all of it; anything else that it exports reaches the jobs.

#export SBATCH_PARTITION=gpu
#export SBATCH_ACCOUNT=my-project
#export SBATCH_GPUS_PER_NODE=4        # one process for each of them
#export SBATCH_CPUS_PER_GPU=8

#SITE_MODULES="cuda/12.8"             # for `module load`
#SITE_VENV=.venv                      # where scripts/setup has installed lanes (the default)
#SITE_CONTAINER="apptainer exec --nv lanes.sif"   # instead of it: a command in front of `lanes`
#SITE_INTERFACE=ib0                   # by which nodes talk, if they choose a wrong one; `ip -brief address` lists them
#SITE_REQUEUE=slurm                   # a job that could go on leaves it to SLURM to start it again (RequeueExit);
                                      # default: self, it puts itself back into the queue
