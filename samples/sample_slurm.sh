#!/usr/bin/env bash
# An array of 16 jobs on one folder; each is a shard. When it was preempted or ran into its limit, submit it again:
#   sbatch samples/sample_slurm.sh prompts.jsonl /shared/outputs/night
# and when all are over:
#   cm3kit sample merge /shared/outputs/night
#SBATCH --job-name=cm3kit-sample
#SBATCH --array=0-15
#SBATCH --time=04:00:00
#SBATCH --cpus-per-task=4
#SBATCH --requeue
set -euo pipefail
rows=${1:?a file of rows} folder=${2:?a folder}
shift 2
export OMP_NUM_THREADS=${SLURM_CPUS_PER_TASK:-4}
first=${SLURM_ARRAY_TASK_MIN:-0}
# Ten minutes before the limit no row is begun any more.
exec cm3kit sample run "$rows" -o "$folder" --seed 1 --time-limit "${TIME_LIMIT:-13800}" \
    --shard "$((SLURM_ARRAY_TASK_ID - first))/${SLURM_ARRAY_TASK_COUNT}" "$@"
