#!/usr/bin/env bash
# Stage report of one run:  scripts/report.sh --config configs/papalexi.py --workdir runs/papalexi [--config.any.field=value …]
exec scbig report "$@"
