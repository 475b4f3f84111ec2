#!/usr/bin/env bash
# Stage evaluate of one run:  scripts/evaluate.sh --config configs/papalexi.py --workdir runs/papalexi [--config.any.field=value …]
exec scbig evaluate "$@"
