#!/usr/bin/env bash
# Stage train of one run:  scripts/train.sh --config configs/papalexi.py --workdir runs/papalexi [--config.any.field=value …]
exec scbig train "$@"
