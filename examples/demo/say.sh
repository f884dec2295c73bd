# shellcheck shell=bash
# PASS, FAIL and their evidence; waiting; reading the guests' serial consoles. Sourced by story.sh.
# $vms: the guests. $log: where sliced logs.

passed=0 failed=0 shown=()
green='' red='' dim='' plain=''
if [ -t 1 ]; then green=$'\e[32m' red=$'\e[31m' dim=$'\e[2m' plain=$'\e[0m'; fi

# One line a claim, its evidence indented below it.
check() { # SENTENCE COMMAND...
    local sentence=$1
    shift
    shown=()
    if "$@" >/run/lab-check.log 2>&1; then
        passed=$((passed + 1))
        echo "${green}PASS${plain}  $sentence"
    else
        fail "$sentence"
        sed 's/^/      /' /run/lab-check.log
    fi
    if [ ${#shown[@]} -gt 0 ]; then printf "      $dim%s$plain\n" "${shown[@]}"; fi
}

# Shown below the line of the check that is being made.
evidence() { # TEXT
    shown+=("$1")
}

# Ends the story: nothing after this would mean anything.
give_up() { # SENTENCE [FILE]
    fail "$1"
    [ -z "${2:-}" ] || sed 's/^/      /' "$2"
    count
}

fail() { # SENTENCE
    echo "${red}FAIL${plain}  $1"
    # As it was when it first went wrong: the guests may be gone when the story ends.
    if [ "$failed" = 0 ]; then logs >/run/lab-failed.log 2>&1; fi
    failed=$((failed + 1))
}

count() {
    if [ "$failed" -gt 0 ]; then sed 's/^/      /' /run/lab-failed.log; fi
    echo "$passed passed, $failed failed"
    exit $((failed > 0))
}

logs() {
    echo '--- the last of the log of sliced, when the first line failed'
    tail -n 30 "$log"
    local vm
    for vm in $vms; do
        echo "--- the last of the serial console of $vm"
        slicectl logs "$vm" | tail -n 40
    done
    echo '--- events'
    slicectl events | tail -n 20
}

both() { # WORDS ANSWER PROBE...
    local words=$1
    shift
    check "the guests $words" both_say "$@"
}

both_say() { # ANSWER PROBE...
    local vm fine=0
    for vm in $vms; do
        says "$vm" "$@" || fine=1
    done
    return "$fine"
}

# The guest's newest word on each probe is ANSWER.
says() { # VM ANSWER PROBE...
    local vm=$1 answer=$2 name line console fine=0
    shift 2
    console=$(serial "$vm")
    for name in "$@"; do
        line=$(grep -F " $name " <<<"$console" | tail -n 1)
        evidence "${line:-$vm has said nothing of $name}"
        [ "$line" = "GUEST $vm $name $answer" ] || fine=1
    done
    return "$fine"
}

# What a guest has said of its probes on its serial console.
serial() { # VM
    slicectl logs "$1" | tr -d '\r' | grep -oE "GUEST $1 [^ ]+ (ok|blocked)"
}

eventually() { # SECONDS COMMAND...
    local end=$((SECONDS + $1))
    shift
    until "$@"; do
        [ "$SECONDS" -lt "$end" ] || return 1
        shown=()
        sleep 0.1
    done
}

since() { # EPOCHREALTIME
    awk -v a="$1" -v b="$EPOCHREALTIME" 'BEGIN { printf "%.1f s", b - a }'
}

matches() { # PATTERN COMMAND...
    local pattern=$1 answer
    shift
    answer=$("$@" | tr '\n' ' ') || return 1
    [[ $answer =~ $pattern ]]
}

more_than() { # NUMBER COMMAND...
    local number=$1
    shift
    [ "$("$@")" -gt "$number" ]
}
