#!/usr/bin/env bash
# Stage cluster of one run:  scripts/cluster.sh --config configs/papalexi.py --workdir runs/papalexi [--config.any.field=value …]
exec scbig cluster "$@"
