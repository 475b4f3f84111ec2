#!/usr/bin/env bash
# The stages one after another, each in a process of its own, as a cluster would run them.
set -euo pipefail
here="$(dirname "$0")"
for stage in prepare cluster pretrain train sample evaluate report; do
  "$here/$stage.sh" "$@"
done
