#!/usr/bin/env bash
# Stage prepare of one run:  scripts/prepare.sh --config configs/papalexi.py --workdir runs/papalexi [--config.any.field=value …]
exec scbig prepare "$@"
