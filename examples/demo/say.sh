# shellcheck shell=bash
# PASS, FAIL and their evidence; waiting; reading the guests' serial consoles. Sourced by story.sh.
# $vms: the guests. $log: the log file of sliced.

passed=0 failed=0 shown=()
green='' red='' dim='' plain=''
if [ -t 1 ]; then green=$'\e[32m' red=$'\e[31m' dim=$'\e[2m' plain=$'\e[0m'; fi

# Prints one line per check, with its evidence indented below it.
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

# Adds a line below that of the current check.
evidence() { # TEXT
    shown+=("$1")
}

# Ends the demo: later checks depend on this one.
give_up() { # SENTENCE [FILE]
    fail "$1"
    [ -z "${2:-}" ] || sed 's/^/      /' "$2"
    count
}

fail() { # SENTENCE
    echo "${red}FAIL${plain}  $1"
    # The logs at the time of the first failure: the guests may not exist any more when the demo ends.
    if [ "$failed" = 0 ]; then logs >/run/lab-failed.log 2>&1; fi
    failed=$((failed + 1))
}

count() {
    if [ "$failed" -gt 0 ]; then sed 's/^/      /' /run/lab-failed.log; fi
    echo "$passed passed, $failed failed"
    exit $((failed > 0))
}

logs() {
    echo '--- end of the log of sliced at the first failure'
    tail -n 30 "$log"
    local vm
    for vm in $vms; do
        echo "--- end of the serial console of $vm"
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

# The guest's latest result of each probe is ANSWER.
says() { # VM ANSWER PROBE...
    local vm=$1 answer=$2 name line console fine=0
    shift 2
    console=$(serial "$vm")
    for name in "$@"; do
        line=$(grep -F " $name " <<<"$console" | tail -n 1)
        evidence "${line:-$vm has not reported $name}"
        [ "$line" = "GUEST $vm $name $answer" ] || fine=1
    done
    return "$fine"
}

# The probe results that a guest has reported on its serial console.
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
