#!/usr/bin/env bash
# Stage pretrain of one run:  scripts/pretrain.sh --config configs/papalexi.py --workdir runs/papalexi [--config.any.field=value …]
exec scbig pretrain "$@"
