#!/usr/bin/env bash
# Stage sample of one run:  scripts/sample.sh --config configs/papalexi.py --workdir runs/papalexi [--config.any.field=value …]
exec scbig sample "$@"
