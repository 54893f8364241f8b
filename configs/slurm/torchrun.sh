#!/bin/bash
# Trains on several machines without SLURM; run it on each machine, with the number of that machine:
#
#     configs/slurm/torchrun.sh ADDRESS_OF_MACHINE_0 MACHINES NUMBER CONFIG [options of fit.py]
#
# GPUS (per machine, 1 by default) and PORT (29500) are taken from the environment. All machines share the folder from
# which it is run. If a rank dies, the others are ended; resume with `--ckpt_path last`, on any number of machines.

set -eu
if [ $# -lt 4 ]; then
    echo "usage: $0 ADDRESS_OF_MACHINE_0 MACHINES NUMBER CONFIG [options of fit.py]" >&2
    exit 2
fi
address=$1 machines=$2 number=$3 config=$4
shift 4
gpus=${GPUS:-1}

exec torchrun --nnodes "$machines" --node_rank "$number" --nproc_per_node "$gpus" \
    --master_addr "$address" --master_port "${PORT:-29500}" \
    scripts/fit.py --config "$config" --trainer.num_nodes "$machines" --trainer.devices "$gpus" \
    --trainer.strategy ddp "$@"
