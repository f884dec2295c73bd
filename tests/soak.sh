#!/bin/sh
# Long fuzzing: what `make soak` runs. Root. SLICE_DAMAGES sets the number of damages (2000), SLICE_CLAIM_ROUNDS how often groups of
# one daemon and of two choose their addresses at once (100), SLICE_ARCHIVES the number of hostile archives that are extracted (1,000,000),
# SLICE_SEED the seed; all are printed.
set -eu
cd "$(dirname "$0")/.."
SLICE_DAMAGES="${SLICE_DAMAGES:-2000}"
SLICE_SEED="${SLICE_SEED:-$(date +%s)}"
SLICE_CLAIM_ROUNDS="${SLICE_CLAIM_ROUNDS:-100}"
SLICE_ARCHIVES="${SLICE_ARCHIVES:-1000000}"
export SLICE_DAMAGES SLICE_SEED SLICE_CLAIM_ROUNDS SLICE_ARCHIVES
echo "soak: SLICE_DAMAGES=$SLICE_DAMAGES SLICE_CLAIM_ROUNDS=$SLICE_CLAIM_ROUNDS SLICE_ARCHIVES=$SLICE_ARCHIVES SLICE_SEED=$SLICE_SEED"
tests/setup.sh
# A filter that matches no test would pass. The last argument is the filter, those before it select the binary.
soak() {
    cargo test --quiet --locked "$@" -- --list | grep -q ': test$' || {
        echo "soak: no test matches $*" >&2
        exit 1
    }
    cargo test --locked "$@" -- --nocapture
}
soak --lib no_archive_whatever
soak --test kernel whatever_happens_to_the_files
soak --test e2e after_any_damage
soak --test kernel pipeline::claims::
soak --test e2e claims::
