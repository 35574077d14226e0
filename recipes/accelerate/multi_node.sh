#!/usr/bin/env bash
# Several nodes: run this on each of them, with the same numbers but NODE_RANK. Every node starts its own processes, and
# they find each other by torchrun's rendezvous (c10d) at the first node: no ssh between nodes. CONFIG is any
# configuration of this folder; its num_machines and num_processes are replaced. Images a step grow with the GPUs.
#
# Paper:    none: PyTorch's elastic launch
# Command:  NODES=2 NODE_RANK=0 HEAD=10.0.0.1 bash recipes/accelerate/multi_node.sh \
#             --config recipes/koniq/qwen2_5_vl_7b.yaml --data_dir PATH/koniq10k
# Command:  NODES=2 NODE_RANK=1 HEAD=10.0.0.1 bash recipes/accelerate/multi_node.sh \
#             --config recipes/koniq/qwen2_5_vl_7b.yaml --data_dir PATH/koniq10k
# Hardware: nodes of 8 GPUs of 80 GB, or as GPUS says; --output_dir and the data on a disk that all nodes see
# Memory:   that of CONFIG with NODES x GPUS devices
# Ran:      not run on GPUs; tests/test_recipes_accelerate.py runs two launchers of one CPU process each on loopback
set -euo pipefail

: "${NODES:?set NODES to the number of nodes}"
: "${NODE_RANK:?set NODE_RANK to the number of this node, 0 to NODES - 1}"
: "${HEAD:?set HEAD to the address of node 0}"
GPUS=${GPUS:-8} # processes a node
PORT=${PORT:-29500}
CONFIG=${CONFIG:-recipes/accelerate/zero3.yaml}

exec accelerate launch --config_file "$CONFIG" \
  --num_machines "$NODES" --num_processes "$((NODES * GPUS))" --machine_rank "$NODE_RANK" \
  --main_process_ip "$HEAD" --main_process_port "$PORT" --rdzv_backend c10d \
  --module q_hawkeye_trl train "$@"
