#!/bin/sh
# Runs the kernels under the four tools of compute-sanitizer, and a kernel with a planted mistake under each, so that
# a tool that finds nothing is known to look. Prints a table; fails if a tool finds something in the kernels, or
# nothing in its own control.
#
#   tests/gpu/sanitize.sh GPU_BINARY CONFORMANCE_BINARY [COMPUTE_SANITIZER]
#
# The binaries are those of `cargo test --release -p sage-tests --test gpu --test conformance --no-run`. The PTX of
# the controls comes from the folder SAGE_CONFORMANCE_PTX, see tests/conformance/main.rs. SAGE_SANITIZE_CASES is the
# number of problems of each kernel (default 64), SAGE_SANITIZE_SECONDS how long one tool may take (default 540),
# SAGE_SANITIZE_TOOLS which tools to run. Logs are left in SAGE_RESULTS, or in a temporary folder.
set -u

if [ $# -lt 2 ]; then
    sed -n '2,12s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
gpu=$1
conformance=$2

find_sanitizer() {
    command -v compute-sanitizer && return
    for found in /usr/local/cuda/bin/compute-sanitizer /usr/local/cuda*/bin/compute-sanitizer \
        /usr/local/cuda*/compute-sanitizer/compute-sanitizer /opt/cuda/bin/compute-sanitizer; do
        [ -x "$found" ] && echo "$found" && return
    done
    return 1
}
sanitizer=${3:-$(find_sanitizer)} || { echo "compute-sanitizer is neither on PATH nor under /usr/local/cuda*" >&2; exit 2; }
for program in "$gpu" "$conformance" "$sanitizer"; do
    [ -x "$program" ] || { echo "$program is not a program" >&2; exit 2; }
done

logs=${SAGE_RESULTS:-$(mktemp -d)}
tools=${SAGE_SANITIZE_TOOLS:-memcheck racecheck initcheck synccheck}
limit=${SAGE_SANITIZE_SECONDS:-540}

# Findings of a log: errors of most tools, hazards of racecheck; "none" if the tool has not got as far as counting.
findings() {
    { sed -n 's/.*ERROR SUMMARY: \([0-9]*\) error.*/\1/p' "$1"; sed -n 's/.*RACECHECK SUMMARY: \([0-9]*\) hazard.*/\1/p' "$1"; } |
        tail -n 1 | grep . || echo none
}

# run SECONDS LOG TOOL PROGRAM ARGUMENTS...
run() {
    seconds=$1
    log=$2
    tool=$3
    shift 3
    case $tool in
        memcheck) options="--leak-check no" ;;
        racecheck) options="--racecheck-report all" ;;
        *) options="" ;;
    esac
    # shellcheck disable=SC2086 # options are words
    SAGE_GPU_WATCHDOG=$limit timeout -k 10 "$seconds" "$sanitizer" --tool "$tool" $options --print-limit 20 "$@" >"$log" 2>&1
}

# Kernels with a mistake that the tool is there to find: it must find one.
controls_of() {
    case $1 in
        memcheck) controls="control_out_of_bounds" ;;
        racecheck) controls="control_shared_race" ;;
        initcheck) controls="control_uninitialised" ;;
        synccheck) controls="control_divergent_barrier control_lanes_of_a_barrier control_barrier_without_init" ;;
    esac
}

bad=0
row() { printf '%-10s  %-28s  %10s  %s\n' "$1" "$2" "$3" "$4"; }
row tool on findings verdict
for tool in $tools; do
    controls_of "$tool"
    alive=0
    for control in $controls; do
        log=$logs/sanitize_${tool}_$control.log
        SAGE_CONTROL=$control run 90 "$log" "$tool" "$conformance" --exact the_control_of_a_tool --ignored --nocapture
        count=$(findings "$log")
        case $count in
            none | 0) verdict="not seen, $log" ;;
            *) verdict="alive" alive=1 ;;
        esac
        row "$tool" "$control" "$count" "$verdict"
    done
    [ "$alive" = 1 ] || { row "$tool" controls 0 "DEAD: it sees no mistake of its own"; bad=1; }

    log=$logs/sanitize_kernels_$tool.log
    run "$limit" "$log" "$tool" "$gpu" --exact sanitize::problems_for_a_tool --ignored --nocapture
    code=$?
    count=$(findings "$log")
    problems=$(sed -n 's/.*sanitized: //p' "$log" | tail -n 1)
    if [ "$code" = 124 ]; then
        verdict="NOT DONE after $limit s, $log"; bad=1
    elif [ "$count" = 0 ] && [ "$code" = 0 ] && [ -n "$problems" ]; then
        verdict="clean: $problems"
    elif [ "$count" != 0 ] && [ "$count" != none ]; then
        verdict="FINDINGS, $log"; bad=1
    else
        verdict="FAILED with exit code $code, $log"; bad=1
    fi
    row "$tool" kernels "$count" "$verdict"
done
exit $bad
