#!/bin/sh
# Long fuzzing: what `make soak` runs. Root. SLICE_DAMAGES sets the number of damages (2000), SLICE_CLAIM_ROUNDS how often groups of
# one daemon and of two choose their addresses at once (100), SLICE_ARCHIVES the number of hostile archives that are extracted (1,000,000),
# SLICE_API_KILLS how often the daemon is killed while clients create and delete (60), PROPTEST_CASES the number of messages, lines and
# SFTP packets (1,000,000), SLICE_SCHEMATHESIS_EXAMPLES the number of requests for each operation of the API (300), SLICE_SEED the seed;
# all are printed.
set -eu
cd "$(dirname "$0")/.."
SLICE_DAMAGES="${SLICE_DAMAGES:-2000}"
SLICE_SEED="${SLICE_SEED:-$(date +%s)}"
SLICE_CLAIM_ROUNDS="${SLICE_CLAIM_ROUNDS:-100}"
SLICE_ARCHIVES="${SLICE_ARCHIVES:-1000000}"
SLICE_API_KILLS="${SLICE_API_KILLS:-60}"
PROPTEST_CASES="${PROPTEST_CASES:-1000000}"
SLICE_SCHEMATHESIS_EXAMPLES="${SLICE_SCHEMATHESIS_EXAMPLES:-300}"
export SLICE_DAMAGES SLICE_SEED SLICE_CLAIM_ROUNDS SLICE_ARCHIVES SLICE_API_KILLS SLICE_SCHEMATHESIS_EXAMPLES
echo "soak: SLICE_DAMAGES=$SLICE_DAMAGES SLICE_CLAIM_ROUNDS=$SLICE_CLAIM_ROUNDS SLICE_ARCHIVES=$SLICE_ARCHIVES SLICE_API_KILLS=$SLICE_API_KILLS PROPTEST_CASES=$PROPTEST_CASES SLICE_SCHEMATHESIS_EXAMPLES=$SLICE_SCHEMATHESIS_EXAMPLES SLICE_SEED=$SLICE_SEED"
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
# A set of SFTP packets starts a server: a tenth of them.
for messages in any_message_is_decoded_or_ignored any_bytes_are_the_same_lines what_is_encoded_is_decoded; do
    PROPTEST_CASES="$PROPTEST_CASES" PROPTEST_RNG_SEED="$SLICE_SEED" soak --lib "$messages"
done
PROPTEST_CASES=$((PROPTEST_CASES / 10)) PROPTEST_RNG_SEED="$SLICE_SEED" soak --lib any_input_ends_without_a_panic
soak --test kernel whatever_happens_to_the_files
soak --test e2e after_any_damage
soak --test kernel pipeline::claims::
soak --test e2e claims::
soak --test e2e contract::kills::
soak --test e2e schemathesis_finds
